"""Counterfactual search: a direction, a step along it, and the path between two classes."""

from diffcf.counterfactuals.attributes import Attributes
from diffcf.counterfactuals.carry import Gate
from diffcf.counterfactuals.direction import class_score, shift_direction, spread_covariance
from diffcf.counterfactuals.exemplar import Exemplar, Exemplars
from diffcf.counterfactuals.joint import Joint
from diffcf.counterfactuals.methods import Latent, LatentShift, Method, Minimal, Pixels, Shift, default_method
from diffcf.counterfactuals.names import METHODS, method_named
from diffcf.counterfactuals.ray import Points, Ray
from diffcf.counterfactuals.scorers import AgentScorer, ImageScorer
from diffcf.counterfactuals.searches import diverse, prototype
from diffcf.counterfactuals.shift import Counterfactuals, counterfactual, other_class, path, rising_share
from diffcf.counterfactuals.steps import StepFound, StepSearch, find_step
from diffcf.counterfactuals.trim import Trim

__all__ = [
    "METHODS",
    "AgentScorer",
    "Attributes",
    "Counterfactuals",
    "Exemplar",
    "Exemplars",
    "Gate",
    "ImageScorer",
    "Joint",
    "Latent",
    "LatentShift",
    "Method",
    "Minimal",
    "Pixels",
    "Points",
    "Ray",
    "Shift",
    "StepFound",
    "StepSearch",
    "Trim",
    "class_score",
    "counterfactual",
    "default_method",
    "diverse",
    "find_step",
    "method_named",
    "other_class",
    "path",
    "prototype",
    "rising_share",
    "shift_direction",
    "spread_covariance",
]
