"""Do classifiers decide for the experts' reasons? (papers 001, Tables 1 to 7, and 000, Fig. 3)

    python evaluation/alignment.py --config configs/evaluation/alignment_lidc.yaml

Every row is a method, trained from several seeds by `train/align.py`; test patients. `accuracy`, `balanced_accuracy`,
`auc`: marks by chance. `reversal_accuracy`: every mark points the wrong way; `reversal_gap` is it less `accuracy`, and
`accuracy_gap` is `accuracy` less that of the reference, both paired by scan.

Where the reasons lie is told of six maps. `saliency`: input gradient. `gradcam`: Grad-CAM at the last layer with rows
and columns, the papers' CAM. `hirescam`: HiResCAM at the last layer of half the image's side
(`half_resolution_layer`). `occlusion`. `change`: of counterfactuals in pixels, converged, found in the same way for all
methods, at that `validity`. `decoded`: of explanations through a generator's full decoder, on `decoded` scans of each
class that are told right, at that `decoded_validity`; no method has trained for these.

MAP_precision is the area of the map in the region by the area of the map, which is what reaches `threshold` times its
maximum, a number that the papers do not give. `chance` is the region's share of the image, what any map would have by
chance, `region_pixels` its size; MAP_lift is mean precision by mean chance. MAP_mass is the share of the map's sum in
the region, without a threshold, MAP_pointing whether its maximum lies there. By names of their own go `relevance_mass`
and `pointing`, of the input gradient, `roi_precision`, the mass of `change`, and `decoded_roi`, that of `decoded`.

Figures are means over seeds; intervals resample patients. KEY_std is the standard deviation over seeds. With `panels`
the counterfactuals of a few scans are drawn, one classifier beside the other (paper 000, Fig. 4; 001, Fig. 7 and 9).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, mean_of, mean_row, over_seeds, write_result
from panels import Panels, draw_panels
from reasons import MAPS, Cases, Scene, decode, judge, scene_of
from rich.progress import track
from sklearn.metrics import roc_auc_score

from diffcf.alignment.loss import Inner
from diffcf.classifiers.blackbox import load_blackbox
from diffcf.counterfactuals import Latent, Method
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.errors import ConfigError
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.implicit import GaussNewton
from diffcf.metrics.classification import bootstrap_interval
from diffcf.saliency import Occlusion
from diffcf.training.command import run_script

SCORED = ("auc", "balanced_accuracy")  # of probabilities, not means over cases
SPREAD = ("accuracy", "precision")  # endings of the figures whose deviation over seeds is told, beside those


@dataclass(frozen=True)
class Config:
    """Which classifiers, on what.

    Args:
        name: the result is written to docs/results/alignment_NAME.json.
        manifest: CSV file; labelled rows of `split` with a mask are judged.
        methods: name -> black boxes, one a seed, all over the same preparation.
        reference: the method that `accuracy_gap` is measured against.
        shortcut: the mark; null where there is none. marks: method -> mark, of those that are judged beside another.
        widen: pixels by which masks are widened to regions.
        inner: how counterfactuals in pixels are found, for all methods.
        generator: of the explanations through a full decoder; null leaves them out. decoded: scans of each class.
        decoded_method: how these are found.
        threshold: of the maps, times their maximum.
        occlusion: of the occlusion map.
        panels: which counterfactuals are drawn; null draws none.
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
    marks: dict[str, Shortcut | None] = field(default_factory=dict)
    widen: int = 2
    inner: Inner = field(default_factory=lambda: Inner(distance_weight=0.1, solver=GaussNewton(20)))
    generator: str | None = None
    decoded: int = 10
    decoded_method: Method = field(default_factory=Latent)
    threshold: float = 0.5
    occlusion: Occlusion = field(default_factory=Occlusion)
    panels: Panels | None = None
    split: str = "test"
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS

    def __post_init__(self) -> None:
        reference = [] if self.reference is None else [self.reference]
        drawn = [] if self.panels is None else self.panels.methods
        for name in (self.default, *reference, *self.marks, *drawn):
            if name not in self.methods:
                raise ConfigError(f"no method {name!r}; there are {', '.join(self.methods)}.")
        if not 0 < self.threshold <= 1:
            raise ConfigError(
                f"threshold {self.threshold}: expected a share of a map's maximum, above 0 and at most 1."
            )


def mark_of(config: Config, method: str) -> Shortcut | None:
    """The mark beside which a method is judged."""
    return config.marks.get(method, config.shortcut)


def scored(kind: str, label: np.ndarray, cases: Cases, at: np.ndarray) -> float:
    """Over the cases `at`, the "auc" of the last class against all others, or the "balanced_accuracy", the mean over
    classes of the share told right; NaN where there is one class only."""
    label, right, positive, score = label[at], *(cases[key][at] for key in ("accuracy", "positive", "score"))
    if len(set(label if kind == "balanced_accuracy" else positive)) < 2:
        return float("nan")
    if kind == "auc":
        return float(roc_auc_score(positive, score))
    return float(np.mean([right[label == one].mean() for one in set(label)]))


def lift(precision: np.ndarray, chance: np.ndarray) -> float:
    """Mean precision by the mean chance of the same cases, "n"; cases with a precision of NaN do not count."""
    known = ~np.isnan(precision)
    return mean_of(precision[known]) / mean_of(chance[known])


def row_of(
    name: str, seeds: list[Cases], scene: Scene, config: Config, reference: list[Cases] | None
) -> dict[str, Any]:
    """The row of a method."""
    label, patients = scene.scans.labels.numpy(), scene.scans.patients
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    each = over_seeds(seeds)
    del each["score"], each["positive"]
    if mark_of(config, name) is not None:
        each["reversal_gap"] = each["reversal_accuracy"] - each["accuracy"]
    if reference is not None:
        each["accuracy_gap"] = each["accuracy"] - np.stack([cases["accuracy"] for cases in reference]).mean(0)
    row = mean_row(each, patients, **options)

    def add(key: str, statistic: Callable[[np.ndarray], float]) -> None:
        low, high = bootstrap_interval(statistic, groups=patients, **options)
        row.update({key: statistic(np.arange(len(label))), f"{key}_low": low, f"{key}_high": high})

    for kind in SCORED:
        add(
            kind,
            lambda at, kind=kind: float(np.mean([scored(kind, label, cases, at) for cases in seeds])),
        )
    for shown in MAPS:
        precision = each.get(f"{shown}_precision")
        if precision is not None:
            add(f"{shown}_lift", lambda at, precision=precision: lift(precision[at], each["chance"][at]))
    if len(seeds) > 1:
        spread = {key: [mean_of(cases[key]) for cases in seeds] for key in seeds[0] if key.endswith(SPREAD)}
        spread |= {kind: [scored(kind, label, cases, np.arange(len(label))) for cases in seeds] for kind in SCORED}
        row |= {f"{key}_std": float(np.std(values, ddof=1)) for key, values in spread.items()}
    about = {"method": name, "data": config.name, "split": config.split, "n": len(label), "seeds": len(seeds)}
    return about | {"threshold": config.threshold} | row | {"default": name == config.default}


def main(config: Config) -> list[dict[str, Any]]:
    """Judge every method; prints and writes the table, draws the panels, returns the rows."""
    first = load_blackbox(next(iter(config.methods.values()))[0])
    marks = {mark_of(config, name) for name in config.methods}
    scenes = {mark: scene_of(config, first, mark) for mark in marks}
    generator = None if config.generator is None else SliceWise(load_generator(config.generator))
    judged: dict[str, list[Cases]] = {}
    for name, sources in config.methods.items():
        judged[name], scene = [], scenes[mark_of(config, name)]
        for source in track(sources, description=name):
            blackbox = load_blackbox(source)
            cases = dict(judge(blackbox, scene, config))
            if generator is not None:
                cases |= decode(blackbox, scene, config, generator)
            judged[name].append(cases)
    reference = None if config.reference is None else judged[config.reference]
    rows = [row_of(name, seeds, scenes[mark_of(config, name)], config, reference) for name, seeds in judged.items()]
    write_result(__file__, config, "Whether classifiers decide for the experts' reasons (paper 001, Table 1)", rows)
    if config.panels is not None:
        beside = {
            name: (load_blackbox(config.methods[name][0]), scenes[mark_of(config, name)])
            for name in config.panels.methods
        }
        draw_panels(beside, config.panels, config, generator)
    return rows


if __name__ == "__main__":
    run_script(main, Config)
