"""Do classifiers decide for the experts' reasons? (papers 001, Tables 1 to 7, and 000, Fig. 3)

    python evaluation/alignment.py --config configs/evaluation/alignment_lidc.yaml

Every row is a method, trained from several seeds by `train/align.py`; test patients. `accuracy`, `balanced_accuracy`,
`auc`: marks by chance. `reversal_accuracy`: every mark points the wrong way; `reversal_gap` is it less `accuracy`, and
`accuracy_gap` is `accuracy` less that of the reference, both paired by scan.

Where the reasons lie: `saliency_precision` (input gradient), `hirescam_precision` (at `half_resolution_layer`) and
`occlusion_precision` are the area of the map in the region by the area of the map, which is what reaches half of its
maximum. `chance` is the region's share of the image, what all of them would have by chance. `relevance_mass` and
`pointing` are of the input gradient. `roi_precision` and `validity`: of counterfactuals in pixels, converged, found in
the same way for all methods; `decoded_roi` and `decoded_validity`: of explanations through a generator's full decoder,
on `decoded` scans of each class, which no method has trained for.

Figures are means over seeds; intervals resample patients. KEY_std is the standard deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import torch
from common import RESULTS, first_of_each_class, mean_row, write_result
from rich.progress import track
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from diffcf.alignment.loss import AlignmentLoss, Inner
from diffcf.alignment.regions import regions_of
from diffcf.classifiers.blackbox import BlackBox, load_blackbox
from diffcf.counterfactuals import Latent
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.data.shortcuts import add_marks, reversed_mark
from diffcf.errors import ConfigError
from diffcf.explain import Explainer, ExplainSettings
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.implicit import Detached, GaussNewton
from diffcf.metrics.classification import bootstrap_interval
from diffcf.metrics.counterfactual import cause_precision
from diffcf.metrics.localisation import pointing, region_share, relevance_mass, saliency_precision
from diffcf.saliency import HiResCAM, InputGradient, Occlusion, SaliencyMethod, half_resolution_layer
from diffcf.training.command import run_script

Cases = Mapping[str, np.ndarray]  # figure -> of every case, "n"


@dataclass(frozen=True)
class Config:
    """Which classifiers, on what.

    Args:
        name: the result is written to docs/results/alignment_NAME.json.
        manifest: CSV file; labelled rows of `split` with a mask are judged.
        methods: name -> black boxes, one a seed, all over the same preparation.
        reference: the method that `accuracy_gap` is measured against.
        shortcut: the mark; null where there is none.
        widen: pixels by which masks are widened to regions.
        inner: how counterfactuals in pixels are found, for all methods.
        generator: of the explanations through a full decoder; null leaves them out. decoded: scans of each class.
        occlusion: of the occlusion map.
        default: which method is ours.
        split: test, or val while something is still being chosen.
        data: what the data are, in words.
        resamples: of the bootstrap over patients. seed: of it, and of the marks. out: folder of the result.
    """

    name: str
    manifest: Path
    methods: dict[str, list[str]]
    default: str
    reference: str | None = None
    shortcut: Shortcut | None = None
    widen: int = 2
    inner: Inner = field(default_factory=lambda: Inner(distance_weight=0.1, solver=GaussNewton(20)))
    generator: str | None = None
    decoded: int = 10
    occlusion: Occlusion = field(default_factory=Occlusion)
    split: str = "test"
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


@dataclass(frozen=True)
class Scene:
    """What is judged: scans, their regions, and their images with marks by chance and the wrong way."""

    scans: ScanDataset
    region: Tensor
    chance: Tensor
    wrong: Tensor


def scene_of(config: Config, blackbox: BlackBox) -> Scene:
    """Read the scans and paint the marks."""
    rows = [row for row in Manifest.read(config.manifest).split(config.split) if row.label is not None and row.mask]
    scans = ScanDataset(rows, blackbox.card.preparation, mask=True)
    window, keys = blackbox.card.preparation.window, scans.indices.tolist()
    by_chance = None if config.shortcut is None else replace(config.shortcut, correlation=0.0)
    painted = [
        add_marks(scans.images, scans.labels, mark, window, keys, config.seed)
        for mark in (by_chance, reversed_mark(config.shortcut))
    ]
    return Scene(scans, regions_of(scans, config.widen), *painted)


def in_parts(function: Callable[..., Tensor], *tensors: Tensor, size: int = 64) -> Tensor:
    """The function over parts of a batch."""
    return torch.cat(
        [function(*parts).cpu() for parts in zip(*(tensor.split(size) for tensor in tensors), strict=True)]
    )


def judge(blackbox: BlackBox, scene: Scene, config: Config) -> Cases:
    """Every figure of every case for one classifier."""
    label, region = scene.scans.labels, scene.region
    with torch.no_grad():
        probability, wrong = (in_parts(lambda x: blackbox(x).softmax(1), x) for x in (scene.chance, scene.wrong))
    figures: dict[str, Tensor] = {
        "accuracy": (probability.argmax(1) == label).double(),
        "reversal_accuracy": (wrong.argmax(1) == label).double(),
        "score": probability[:, -1].double(),
        "chance": region_share(region),
    }
    maps: dict[str, SaliencyMethod] = {
        "saliency": InputGradient(),
        "hirescam": HiResCAM(half_resolution_layer(blackbox, scene.chance[:2])),
        "occlusion": config.occlusion,
    }
    for name, method in maps.items():
        shown = in_parts(lambda x, method=method: method(blackbox, x), scene.chance)
        figures[f"{name}_precision"] = saliency_precision(shown, region)
        if name == "saliency":
            figures |= {"relevance_mass": relevance_mass(shown, region), "pointing": pointing(shown, region)}
    loss = AlignmentLoss(blackbox, replace(config.inner, adjoint=Detached()))
    found = [loss(*parts) for parts in zip(scene.chance.split(64), region.split(64), strict=True)]
    figures["roi_precision"] = 1 - torch.cat([part.outside for part in found])
    figures["validity"] = torch.cat([part.valid for part in found]).double()
    return {key: value.double().numpy() for key, value in figures.items()}


def decode(blackbox: BlackBox, scene: Scene, config: Config, explainer: Explainer) -> Cases:
    """Share in the region and validity of explanations through the full decoder; NaN for scans not explained."""
    with torch.no_grad():
        said = in_parts(lambda x: blackbox(x).argmax(1), scene.chance)
    right = (said == scene.scans.labels).nonzero().squeeze(1).tolist()
    chosen = first_of_each_class(scene.scans.labels, right, config.decoded)
    figures = {key: np.full(len(said), np.nan) for key in ("decoded_roi", "decoded_validity")}
    for part in torch.as_tensor(chosen).split(10):
        explained = explainer.explain_batch(scene.chance[part], seed=config.seed)
        for i, one in zip(part.tolist(), explained, strict=True):
            figures["decoded_validity"][i] = float(one.reachable[0])
            figures["decoded_roi"][i] = float(cause_precision(one.difference.cpu(), scene.region[i][None]))
    return figures


def row_of(
    name: str, seeds: list[Cases], scene: Scene, config: Config, reference: list[Cases] | None
) -> dict[str, Any]:
    """The row of a method."""
    label, patients = scene.scans.labels.numpy(), scene.scans.patients
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    each: dict[str, np.ndarray] = {}
    for key in seeds[0]:
        if key != "score":
            stacked = np.stack([cases[key] for cases in seeds])
            known = ~np.isnan(stacked)
            total = np.where(known, stacked, 0).sum(0)
            each[key] = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
    if config.shortcut is not None:
        each["reversal_gap"] = each["reversal_accuracy"] - each["accuracy"]
    if reference is not None:
        each["accuracy_gap"] = each["accuracy"] - np.stack([cases["accuracy"] for cases in reference]).mean(0)
    row = mean_row(each, patients, **options)
    for key, of in (("auc", roc_auc_score), ("balanced_accuracy", balanced_accuracy_score)):

        def figure(index: np.ndarray, key: str = key, of: Any = of) -> float:
            if len(set(label[index])) < 2:
                return float("nan")
            given = [cases["score"][index] for cases in seeds]
            return float(np.mean([of(label[index], one if key == "auc" else one > 0.5) for one in given]))

        low, high = bootstrap_interval(figure, groups=patients, **options)
        row |= {key: figure(np.arange(len(label))), f"{key}_low": low, f"{key}_high": high}
    if len(seeds) > 1:
        for key in ("accuracy", "saliency_precision", "hirescam_precision", "roi_precision"):
            row[f"{key}_std"] = stdev(float(np.nanmean(cases[key])) for cases in seeds)
    return {"method": name, "data": config.name, "split": config.split, "n": len(label), "seeds": len(seeds), **row}


def main(config: Config) -> list[dict[str, Any]]:
    """Judge every method; prints and writes the table, returns its rows."""
    for name in (config.default, *([] if config.reference is None else [config.reference])):
        if name not in config.methods:
            raise ConfigError(f"no method {name!r}; there are {', '.join(config.methods)}.")
    scene = scene_of(config, load_blackbox(next(iter(config.methods.values()))[0]))
    generator = None if config.generator is None else SliceWise(load_generator(config.generator))
    judged: dict[str, list[Cases]] = {}
    for name, sources in config.methods.items():
        judged[name] = []
        for source in track(sources, description=name):
            blackbox = load_blackbox(source)
            cases = dict(judge(blackbox, scene, config))
            if generator is not None:
                explainer = Explainer(generator, blackbox, None, ExplainSettings(Latent()))
                cases |= decode(blackbox, scene, config, explainer)
            judged[name].append(cases)
    reference = None if config.reference is None else judged[config.reference]
    rows = [
        row_of(name, seeds, scene, config, reference) | {"default": name == config.default}
        for name, seeds in judged.items()
    ]
    write_result(__file__, config, "Whether classifiers decide for the experts' reasons (paper 001, Table 1)", rows)
    return rows


if __name__ == "__main__":
    run_script(main, Config)
