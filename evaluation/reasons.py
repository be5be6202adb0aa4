"""Where the reasons of one classifier lie: every figure of every case, for evaluation/alignment.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import first_of_each_class
from einops import reduce
from torch import Tensor

from diffcf.alignment.loss import Aligned, AlignmentLoss, Inner
from diffcf.alignment.regions import regions_of
from diffcf.cards import check_alike
from diffcf.classifiers.blackbox import BlackBox
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.data.shortcuts import add_marks, reversed_mark
from diffcf.explain import Explainer, ExplainSettings
from diffcf.implicit import Detached
from diffcf.metrics.localisation import pointing, region_share, relevance_mass, saliency_precision
from diffcf.saliency import GradCAM, HiResCAM, InputGradient, SaliencyMethod, half_resolution_layer
from diffcf.types import Explanation

if TYPE_CHECKING:
    from alignment import Config

Cases = Mapping[str, np.ndarray]  # figure -> of every case, "n"
MAPS = ("saliency", "gradcam", "hirescam", "occlusion", "change", "decoded")
NAMED = {  # figures that results have always held by a name of their own
    "saliency_mass": "relevance_mass",
    "saliency_pointing": "pointing",
    "change_mass": "roi_precision",
    "decoded_mass": "decoded_roi",
}
PART = 64  # scans a classifier sees at once


@dataclass(frozen=True)
class Scene:
    """What is judged: scans, their regions, and their images with marks by chance and the wrong way."""

    scans: ScanDataset
    region: Tensor
    chance: Tensor
    wrong: Tensor


def scene_of(config: Config, blackbox: BlackBox, mark: Shortcut | None) -> Scene:
    """Read the scans and paint the marks."""
    rows = [row for row in Manifest.read(config.manifest).split(config.split) if row.label is not None and row.mask]
    scans = ScanDataset(rows, blackbox.card.preparation, mask=True)
    window, keys = blackbox.card.preparation.window, scans.indices.tolist()
    by_chance = None if mark is None else replace(mark, correlation=0.0)
    painted = [
        add_marks(scans.images, scans.labels, one, window, keys, config.seed)
        for one in (by_chance, reversed_mark(mark))
    ]
    return Scene(scans, regions_of(scans, config.widen), *painted)


def in_parts(function: Callable[..., Tensor], *tensors: Tensor, size: int = PART) -> Tensor:
    """The function over parts of a batch."""
    return torch.cat(
        [function(*parts).cpu() for parts in zip(*(tensor.split(size) for tensor in tensors), strict=True)]
    )


def probabilities(blackbox: BlackBox, images: Tensor) -> Tensor:
    """Of every class, "n k"."""
    with torch.no_grad():
        return in_parts(lambda part: blackbox(part).softmax(1), images)


def rightly(blackbox: BlackBox, scene: Scene) -> Tensor:
    """Which scans are told right beside marks by chance, bool "n"."""
    return probabilities(blackbox, scene.chance).argmax(1) == scene.scans.labels


def lies(name: str, shown: Tensor, region: Tensor, threshold: float) -> dict[str, Tensor]:
    """The three figures of maps "n s 1 h w" called `name`, "n" each, NaN where a map is zero everywhere."""
    figures = {
        "precision": saliency_precision(shown, region, threshold),
        "mass": relevance_mass(shown, region),
        "pointing": pointing(shown, region),
    }
    return {NAMED.get(f"{name}_{key}", f"{name}_{key}"): value for key, value in figures.items()}


def size_of(change: Tensor) -> Tensor:
    """A change "n s c h w" as a map "n s 1 h w"."""
    return reduce(change.abs(), "n s c h w -> n s 1 h w", "mean")


def searched(blackbox: BlackBox, images: Tensor, region: Tensor, inner: Inner) -> list[Aligned]:
    """The counterfactuals in pixels of images "n s c h w", in parts."""
    loss = AlignmentLoss(blackbox, replace(inner, adjoint=Detached()))
    return [loss(*parts) for parts in zip(images.split(PART), region.split(PART), strict=True)]


def decoded(blackbox: BlackBox, generator: Any, images: Tensor, config: Config) -> list[Explanation]:
    """The explanations of images "n s c h w" through a generator's full decoder."""
    if not len(images):
        return []
    check_alike(generator.card.preparation, blackbox.card.preparation, "the generator and the black box")
    explainer = Explainer(generator, blackbox, None, ExplainSettings(config.decoded_method))
    return [one for part in images.split(10) for one in explainer.explain_batch(part, seed=config.seed)]


def judge(blackbox: BlackBox, scene: Scene, config: Config) -> Cases:
    """Every figure of every case for one classifier, but for those through a decoder."""
    label, region = scene.scans.labels, scene.region
    probability, wrong = (probabilities(blackbox, images) for images in (scene.chance, scene.wrong))
    figures: dict[str, Tensor] = {
        "accuracy": (probability.argmax(1) == label).double(),
        "reversal_accuracy": (wrong.argmax(1) == label).double(),
        "score": probability[:, -1],
        "positive": (label == probability.shape[1] - 1).double(),
        "chance": region_share(region),
        "region_pixels": reduce(region, "n s 1 h w -> n", "sum"),
    }
    maps: dict[str, SaliencyMethod] = {
        "saliency": InputGradient(),
        "gradcam": GradCAM(),
        "hirescam": HiResCAM(half_resolution_layer(blackbox, scene.chance[:2])),
        "occlusion": config.occlusion,
    }
    for name, method in maps.items():
        shown = in_parts(lambda part, method=method: method(blackbox, part), scene.chance)
        figures |= lies(name, shown, region, config.threshold)
    found = searched(blackbox, scene.chance, region, config.inner)
    changed = torch.cat([part.counterfactual.detach() for part in found]) - scene.chance
    figures |= lies("change", size_of(changed), region, config.threshold)
    figures["validity"] = torch.cat([part.valid for part in found])
    return {key: value.double().numpy() for key, value in figures.items()}


def decode(blackbox: BlackBox, scene: Scene, config: Config, generator: Any) -> Cases:
    """The figures of explanations through the full decoder; NaN for scans that are not explained."""
    chosen = first_of_each_class(
        scene.scans.labels, rightly(blackbox, scene).nonzero().squeeze(1).tolist(), config.decoded
    )
    explained = decoded(blackbox, generator, scene.chance[chosen], config)
    changed = torch.cat([scene.chance[:0], *(one.difference.cpu() for one in explained)])  # perhaps of no scan
    found = lies("decoded", size_of(changed), scene.region[chosen], config.threshold)
    found["decoded_validity"] = torch.tensor([float(one.reachable[0]) for one in explained])
    figures = {key: np.full(len(scene.scans.labels), np.nan) for key in found}
    for key, value in found.items():
        figures[key][chosen] = value.double().numpy()
    return figures
