"""Whether classifiers that decide by attributes know them, and decide by those that caused the label.

    python evaluation/hierarchy.py --config configs/evaluation/hierarchy_lidc.yaml

On held-out scans whose marks say nothing. `attribute_accuracy`: share of the rated attributes that are told right,
`attribute_auc`: the mean over the attributes; `commonest`: accuracy of always saying the commoner value.
`reason_precision`: share of the change of counterfactual attributes (Eq. 6 of paper 001, found in the same way for all)
that falls on the causal ones, at `reason_validity`; `reason_chance` is what a change of equal size everywhere would
have. The causal ones are those of CCCE, its table fitted to the training rows; cases without one are left out there.
`accuracy` and `reversal_accuracy` are of the label, with marks by chance and all wrong.

Where the image's change lies is judged by evaluation/alignment.py, for these classifiers and for flat ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, mean_row, over_seeds, write_result
from reasons import Cases, in_parts
from sklearn.metrics import roc_auc_score

from diffcf.alignment.attributes import AttributeSettings, Causes
from diffcf.alignment.hierarchy import EDGE, Decider, LogOdds, Perceiver, hierarchy_of, row_of
from diffcf.alignment.loss import AlignmentLoss, Inner
from diffcf.classifiers.blackbox import BlackBox, load_blackbox
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest, Split
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.data.shortcuts import add_marks, reversed_mark
from diffcf.errors import ConfigError
from diffcf.implicit import Detached, GaussNewton
from diffcf.metrics.classification import bootstrap_interval
from diffcf.training.command import run_script


@dataclass(frozen=True)
class Config:
    """Which classifiers, on what.

    Args:
        name: the result is written to docs/results/hierarchy_NAME.json.
        manifest: CSV file; labelled rows of `split` with one of the attributes or more are judged.
        methods: name -> black boxes that decide by attributes, one a seed, all over the same preparation.
        attributes: which, as in training.
        default: which method is ours.
        shortcut: the mark; null where there is none.
        reasons: how counterfactual attributes are found, for all methods.
        split: test, or val while something is still being chosen.
        data: what the data are, in words.
        resamples: of the bootstrap over patients. seed: of it, and of the marks. out: folder of the result.
    """

    name: str
    manifest: Path
    methods: dict[str, list[str]]
    attributes: AttributeSettings
    default: str
    shortcut: Shortcut | None = None
    reasons: Inner = field(default_factory=lambda: Inner(distance_weight=0.1, solver=GaussNewton(20, halvings=6)))
    split: Split = "test"
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


@dataclass(frozen=True, eq=False)
class Scene:
    """Scans with marks by chance and the wrong way, and what experts say of them: "n p" each."""

    scans: ScanDataset
    images: dict[str, torch.Tensor]
    coded: np.ndarray
    causes: np.ndarray


def scene_of(config: Config, blackbox: BlackBox) -> Scene:
    """Read the scans, code their attributes, find the causal ones."""
    manifest, settings = Manifest.read(config.manifest), config.attributes
    train = [row for row in manifest.split("train") if row.label is not None]
    fitted = Causes.fit(settings.coded(train), np.array([row.label for row in train]), settings)
    rows = [row for row in manifest.split(config.split) if row.label is not None]
    coded = settings.coded(rows)
    rated = np.flatnonzero(~np.isnan(coded).all(1)).tolist()
    scans = ScanDataset([rows[i] for i in rated], blackbox.card.preparation)
    by_chance = None if config.shortcut is None else replace(config.shortcut, correlation=0.0)
    marks = {"accuracy": by_chance, "reversal_accuracy": reversed_mark(config.shortcut)}
    window, keys = blackbox.card.preparation.window, scans.indices.tolist()
    images = {
        name: add_marks(scans.images, scans.labels, mark, window, keys, config.seed) for name, mark in marks.items()
    }
    return Scene(scans, images, coded[rated], fitted.of(coded[rated], scans.labels.numpy()))


def judge(blackbox: BlackBox, scene: Scene, config: Config) -> tuple[Cases, np.ndarray]:
    """Figures of every case, and the chance of every attribute "n p"."""
    names = tuple(config.attributes.names)
    if hierarchy_of(blackbox).attributes != names:
        raise ConfigError(f"a classifier decides by {', '.join(hierarchy_of(blackbox).attributes)}, not by {names}.")
    figures: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for name, image in scene.images.items():
            said = in_parts(lambda x: blackbox(x).argmax(1), image)
            figures[name] = (said == scene.scans.labels).double().numpy()
        perceiver = Perceiver(blackbox)
        chance = in_parts(lambda x: perceiver(x).sigmoid(), scene.images["accuracy"])
    right = np.where(np.isnan(scene.coded), np.nan, (chance.numpy() > 0.5) == (scene.coded == 1))
    common = np.where(np.isnan(scene.coded), np.nan, scene.coded == (np.nanmean(scene.coded, 0) > 0.5))
    figures |= {"attribute_accuracy": np.nanmean(right, 1), "commonest": np.nanmean(common, 1)}
    loss = AlignmentLoss(Decider(blackbox), replace(config.reasons, adjoint=Detached()), space=LogOdds())
    found = loss(row_of(chance.clamp(EDGE, 1 - EDGE)), row_of(torch.from_numpy(scene.causes).to(chance)))
    known = scene.causes.any(1)
    shown = {
        "reason_precision": 1 - found.outside.double().numpy(),
        "reason_validity": found.valid.double().numpy(),
        "reason_chance": scene.causes.mean(1),
    }
    return figures | {name: np.where(known, value, np.nan) for name, value in shown.items()}, chance.numpy()


def row_of_method(name: str, seeds: list[tuple[Cases, np.ndarray]], scene: Scene, config: Config) -> dict[str, Any]:
    """The row of a method."""
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    each = over_seeds([cases for cases, _ in seeds])
    row = mean_row(each, scene.scans.patients, **options)

    def auc(index: np.ndarray) -> float:
        coded = scene.coded[index]
        found = []
        for _, chance in seeds:
            for j in range(coded.shape[1]):
                rated = ~np.isnan(coded[:, j])
                if len(set(coded[rated, j])) == 2:
                    found.append(roc_auc_score(coded[rated, j], chance[index][rated, j]))
        return float(np.mean(found)) if found else float("nan")

    low, high = bootstrap_interval(auc, groups=scene.scans.patients, **options)
    row |= {"attribute_auc": auc(np.arange(len(scene.coded))), "attribute_auc_low": low, "attribute_auc_high": high}
    about = {"method": name, "data": config.name, "split": config.split, "n": len(scene.coded), "seeds": len(seeds)}
    return about | row | {"default": name == config.default}


def main(config: Config) -> list[dict[str, Any]]:
    """Judge every method; prints and writes the table, returns its rows."""
    if config.default not in config.methods:
        raise ConfigError(f"no method {config.default!r}; there are {', '.join(config.methods)}.")
    scene = scene_of(config, load_blackbox(next(iter(config.methods.values()))[0]))
    rows = []
    for name, sources in config.methods.items():
        seeds = [judge(load_blackbox(source), scene, config) for source in sources]
        rows.append(row_of_method(name, seeds, scene, config))
    write_result(__file__, config, "Attributes that are known and decided by (paper 001, section 4.3)", rows)
    return rows


if __name__ == "__main__":
    run_script(main, Config)
