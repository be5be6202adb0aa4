"""Does the black box really change its mind, on how little change, and for the true reason? (paper 004, section 2.4)

    python evaluation/counterfactuals.py --config configs/evaluation/counterfactuals_lidc.yaml

Held-out scans that the black box classifies correctly are pushed to the other class, as `diffcf explain` does it, and
reported by direction. `validity` is the share that the black box itself gives the asked score; `decision_validity` the
share whose predicted class changed. All other figures are of every scan, with the best point where the score was not
reached: they are to be read beside `validity`. `proximity_l1` and `proximity_l2` are the mean and the root mean squared
change in HU, `sparsity` the share of pixels that change by more than 5% of the window's width, `cause_precision` the
share of the absolute change that lies in the known cause (manifest column `mask`; over the scans that have one), beside
`cause_area`, what a change spread evenly would score; `cause_recall` the share of the cause that changes visibly.
`cout` and `identity` are as in `diffcf.metrics.counterfactual`; features are those of `encoder`, a fixed wavelet
transform. `kid` compares patches around the changes with patches of other patients' scans; `kid_excess` is by how much
it is above that of plain reconstructions of the same scans (`realism.py`).
`transfer_validity`: of the scans that another classifier gets right, the share whose counterfactual it takes for the
target too. `survival_validity`: of the scans whose decision outlives noise and denoising by another generator, the
share whose counterfactual's does. `reader`: the share whose symbol a reader of the scene takes for the target's; where
there is one, scans whose symbol cannot be told from what it lies on are left out (`illegible`: how many).
`monotone` is the share of steps along the path, from one class to the other, on which the score does not fall.
`evaluations` and `backwards` are of the generator, an image, search and path included. Also: the agent's agreement on
these scans, how many counterfactuals are pictures that the generator knows (`plausible`) and how many explanations pass
every trust check (`trusted`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, first_of_each_class, mean_row, write_result
from judges import Judge, Judges, judged_by, judges_of, legible
from realism import realism_row
from rich.progress import track
from torch.nn import functional as F

from diffcf.counterfactuals import Method, rising_share
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.errors import ConfigError
from diffcf.explain import Explainer, ExplainSettings
from diffcf.metrics.counterfactual import (
    cause_precision,
    cause_recall,
    cout,
    identity,
    proximity_l1,
    proximity_l2,
    sparsity,
)
from diffcf.metrics.realism import patches_at
from diffcf.metrics.scattering import Scattering
from diffcf.training.command import run_script
from diffcf.types import Explanation

MOST_DIRECTIONS = 2  # of two classes; among more each has too few scans for a row of its own
OPTIONAL = ("transfer_validity", "survival_validity", "reader")  # left out where nobody was asked


@dataclass(frozen=True)
class Found:
    """One explanation: its direction, whose scan it is, its figures, and features "1 f" of three patches."""

    direction: str
    patient: str
    figures: dict[str, float]
    features: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table: models as folders or bundled names, and how explanations are made.

    Args:
        classifier: the black box.
        generator: whose code is searched.
        agent: of this pair; null where the method does without.
        method: null is the default for this generator.
        residual_carry: null is the method's own way.
        other: an independent classifier, for `transfer_validity`.
        purifier: another generator, for `survival_validity`.
    """

    classifier: str
    generator: str
    agent: str | None = None
    method: Method | None = None
    residual_carry: bool | None = None
    other: str | None = None
    purifier: str | None = None


@dataclass(frozen=True)
class Config:
    """Which models and methods, judged on what.

    Args:
        name: the result is written to docs/results/counterfactuals_NAME.json.
        manifest: CSV file; labelled rows of `split` are explained.
        cases: name -> what is judged; the first is the default.
        settings: of every explanation; a case's method and residual_carry replace its own.
        dilate: pixels by which a mask is widened before a change is called inside.
        symbol: read this symbol in every counterfactual.
        split: test, or val while something is still being chosen.
        scans: at most so many of each class; 0 takes all. one_each: no more than one of a patient.
        batch: scans explained together.
        data: what the data are, in words.
        resamples: of the bootstrap over patients.
        seed: of the noise floor, of purification and of the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    cases: dict[str, Case]
    settings: ExplainSettings = field(default_factory=ExplainSettings)
    dilate: int = 0
    symbol: Shortcut | None = None
    split: str = "test"
    scans: int = 0
    one_each: bool = False
    batch: int = 16
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


def figures_of(explanation: Explanation, mask: torch.Tensor | None, half_width: float) -> dict[str, float]:
    """What is measured on one explanation. mask: "s 1 h w", the known cause, or None. half_width: HU of the window."""
    target, change = int(explanation.target[0]), explanation.difference
    decided = int(explanation.counterfactual_probability[0].argmax())
    checks = {check.name: check.passed for check in explanation.trust}
    cost = explanation.cost
    return {
        "validity": float(explanation.reachable[0]),
        "decision_validity": float(decided == target),
        "proximity_l1": float(proximity_l1(change)) * half_width,
        "proximity_l2": float(proximity_l2(change)) * half_width,
        "sparsity": float(sparsity(change)),
        "cause_precision": np.nan if mask is None else float(cause_precision(change, mask[None])),
        "cause_recall": np.nan if mask is None else float(cause_recall(change, mask[None])),
        "cause_area": np.nan if mask is None else float(mask.mean()),
        "monotone": float(rising_share(explanation.path_probability[:, 0, target])),
        "step": float(explanation.path_steps[-1]),
        "agreement": float(checks.get("agent_agreement", np.nan)),
        "plausible": float(checks.get("plausibility", False)),
        "trusted": float(all(checks.values())),
        "evaluations": float(cost.generator_forwards),
        "backwards": float(cost.generator_backwards),
        "blackbox_evaluations": float(cost.blackbox_forwards),
        "seconds": cost.seconds,
        "peak_mb": cost.peak_memory_mb,
    }


@torch.no_grad()
def transition(explanation: Explanation, probability: Judge, label: int) -> torch.Tensor:
    """COUT of an explanation, "1"."""
    label_index = torch.tensor([label], device=explanation.factual.device)
    return cout(explanation.factual, explanation.counterfactual, probability, label_index, explanation.target)


def judge(explainer: Explainer, judges: Judges, scans: ScanDataset, config: Config) -> tuple[list[Found], int]:
    """What is found for every scan that the black box classifies correctly, and how many were not legible."""
    device = next(explainer.blackbox.parameters()).device
    right = (judges.blackbox(scans.images) == scans.labels).nonzero().squeeze(1)
    illegible = 0
    if config.symbol is not None:
        shown = legible(scans.images[right], config.symbol, explainer.preparation.window)
        illegible, right = int((~shown).sum()), right[shown]
    encoder, view = Scattering().to(device), explainer.blackbox.view_of(explainer.preparation)

    def probability(images: torch.Tensor) -> torch.Tensor:
        return explainer.blackbox(view(images)).softmax(1)

    patients = scans.patients if config.one_each else None
    chosen = first_of_each_class(scans.labels, right.tolist(), config.scans, patients)
    if not chosen:
        raise ConfigError("the black box classifies no scan correctly; check labels and class order.")
    found = []
    for start in track(range(0, len(chosen), config.batch), description="explaining"):
        index = chosen[start : start + config.batch]
        images = scans.images[index].to(device)
        for i, explanation in zip(index, explainer.explain_batch(images, seed=config.seed), strict=True):
            label, target = int(scans.labels[i]), int(explanation.target[0])
            mask = scans.masks[i].to(device) if scans.masks is not None and bool(scans.has_mask[i]) else None
            if mask is not None and config.dilate:
                mask = F.max_pool2d(mask, 2 * config.dilate + 1, stride=1, padding=config.dilate)
            figures = figures_of(explanation, mask, explainer.preparation.window.width / 2)
            pair = (explanation.factual, explanation.counterfactual, label, target)
            figures["transfer_validity"] = judged_by(judges.other, *pair)
            figures["survival_validity"] = judged_by(judges.purified, *pair)
            figures["reader"] = judged_by(judges.reader, *pair)
            figures["cout"] = float(transition(explanation, probability, label))
            seen = {
                "factual": explanation.factual,
                "counterfactual": explanation.counterfactual,
                "reconstruction": explanation.reconstruction,
            }
            features = {name: encoder(patches_at(image, explanation.difference)) for name, image in seen.items()}
            figures["identity"] = float(identity(features["factual"], features["counterfactual"]))
            direction = f"{explainer.classes[label]} to {explainer.classes[target]}"
            found.append(Found(direction, scans.patients[i], figures, features))
    return found, illegible


def rows_of(found: Sequence[Found], common: dict[str, Any], config: Config) -> list[dict[str, Any]]:
    """A row for all directions together, and for two classes one for each."""
    directions = sorted({one.direction for one in found})
    directions = ["both", *(directions if len(directions) <= MOST_DIRECTIONS else [])]
    rows = []
    for direction in directions:
        mine = [one for one in found if direction in ("both", one.direction)]
        values = {key: [one.figures[key] for one in mine] for key in mine[0].figures}
        values = {key: each for key, each in values.items() if key not in OPTIONAL or not np.isnan(each).all()}
        patients = [one.patient for one in mine]
        features = {name: torch.cat([one.features[name] for one in mine]) for name in mine[0].features}
        row = {
            **common,
            "default": common["default"] and direction == "both",
            "direction": direction,
            "n": len(mine),
            "patients": len(set(patients)),
            **mean_row(values, patients, resamples=config.resamples, seed=config.seed),
            **realism_row(features, patients, seed=config.seed),
        }
        rows.append(row)
    return rows


def main(config: Config) -> list[dict[str, Any]]:
    """Judge every pair; prints and writes the table, returns its rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    manifest = Manifest.read(config.manifest)
    table = []
    for place, (name, case) in enumerate(config.cases.items()):
        settings = replace(
            config.settings,
            method=case.method or config.settings.method,
            residual_carry=config.settings.residual_carry if case.residual_carry is None else case.residual_carry,
        )
        explainer = Explainer.load(case.generator, case.classifier, case.agent, settings, device=device)
        rows = [row for row in manifest.split(config.split) if row.label is not None]
        scans = ScanDataset(rows, explainer.preparation, mask=True)
        named = {
            "method": name,
            "search": type(explainer.method).__name__,
            "data": config.name,
            "split": config.split,
            "classifier": explainer.blackbox.card.architecture,
            "probability": settings.search.probability,
            "encoder": Scattering().name,
            "default": place == 0,
        }
        judges = judges_of(
            explainer,
            other=case.other,
            purifier=case.purifier,
            symbol=config.symbol,
            batch=config.batch,
            seed=config.seed,
        )
        found, illegible = judge(explainer, judges, scans, config)
        if config.symbol is not None:
            named["illegible"] = illegible
        table += rows_of(found, named, config)
    title = "Counterfactuals of correctly classified held-out scans, judged by the black box (paper 004, section 2.4)"
    write_result(__file__, config, title, table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
