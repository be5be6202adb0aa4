"""Saliency of a classifier: images "b s c h w" -> maps "b s 1 h w", at least 0; one small class a method."""

from diffcf.saliency.cams import (
    GradCAM,
    GradCAMPlusPlus,
    GradientCAM,
    HiResCAM,
    ScoreCAM,
    half_resolution_layer,
    outputs,
)
from diffcf.saliency.counterfactual import CounterfactualSaliency, descent_curve
from diffcf.saliency.gradients import InputGradient, IntegratedGradients
from diffcf.saliency.maps import check_maps, maps_of
from diffcf.saliency.occlusion import Occlusion
from diffcf.saliency.protocol import SaliencyMethod, explained, normalised
from diffcf.saliency.search import SearchSaliency
from diffcf.saliency.shift import LatentShiftSaliency, shift_curve

__all__ = [
    "CounterfactualSaliency",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientCAM",
    "HiResCAM",
    "InputGradient",
    "IntegratedGradients",
    "LatentShiftSaliency",
    "Occlusion",
    "SaliencyMethod",
    "ScoreCAM",
    "SearchSaliency",
    "check_maps",
    "descent_curve",
    "explained",
    "half_resolution_layer",
    "maps_of",
    "normalised",
    "outputs",
    "shift_curve",
]
