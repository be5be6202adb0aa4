"""Does the black box really change its mind, on how little change, and for the true reason? (paper 004, section 2.4)

    python evaluation/counterfactuals.py --config configs/evaluation/counterfactuals_lidc.yaml

Held-out scans that the black box classifies correctly are pushed to the other class, as `diffcf explain` does it, and
reported by direction. `validity` is the share that the black box itself gives the asked score; `decision_validity` the
share whose predicted class changed. `proximity_l1` is the mean change in HU, `sparsity` the share of pixels that change
by more than 5% of the window's width, `cause_precision` the share of the absolute change that lies in the known cause
(manifest column `mask`; over the scans that have one), beside `cause_area`, what a change spread evenly would score.
`transfer_validity`: of the scans that another classifier gets right, the share whose counterfactual it takes for the
target too. `survival_validity`: of the scans whose decision outlives noise and denoising by another generator, the
share whose counterfactual's does. `reader`: the share whose symbol a reader of the scene takes for the target's.
`monotone` is the share of steps along the path, from one class to the other, on which the score does not fall.
`evaluations` and `backwards` are of the generator, an image, search and path included. Also: the agent's agreement on
these scans, how many counterfactuals are pictures that the generator knows (`plausible`) and how many explanations pass
every trust check (`trusted`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, mean_row, write_result
from rich.progress import track
from torch.nn import functional as F

from diffcf.classifiers.blackbox import load_blackbox
from diffcf.counterfactuals import Method, rising_share
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.data.phantom.shortcut import Shortcut, read_symbol
from diffcf.errors import ConfigError
from diffcf.explain import Explainer, ExplainSettings
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.training.command import run_script
from diffcf.types import Explanation

VISIBLE = 0.05  # of the window's width
OPTIONAL = ("transfer_validity", "survival_validity", "reader")  # left out where nobody was asked
Found = tuple[str, str, dict[str, float]]  # direction, patient, figures


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
        scans: at most so many of each class; 0 takes all.
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
    batch: int = 16
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


Judge = Callable[[torch.Tensor], torch.Tensor]  # images "b s c h w" -> predicted classes "b"


@dataclass(frozen=True)
class Judges:
    """Who decides about images: the black box, it after purification, another classifier, a reader of the symbol.

    None where a case names none.
    """

    blackbox: Judge
    purified: Judge | None
    other: Judge | None
    reader: Judge | None


def judges_of(explainer: Explainer, case: Case, config: Config) -> Judges:
    """The judges of a case's counterfactuals."""
    device, preparation = next(explainer.blackbox.parameters()).device, explainer.preparation

    def by(blackbox: Any) -> Judge:
        view = blackbox.view_of(preparation)

        @torch.no_grad()
        def judge(images: torch.Tensor) -> torch.Tensor:
            parts = images.split(config.batch)
            return torch.cat([blackbox(view(part.to(device))).argmax(1).cpu() for part in parts])

        return judge

    def read(images: torch.Tensor) -> torch.Tensor:
        window, symbol = preparation.window, config.symbol
        assert symbol is not None
        hu = (window.centre + images[:, :, 0] * window.width / 2).cpu().numpy()
        return torch.tensor([read_symbol(volume, symbol) for volume in hu])

    decide = by(explainer.blackbox)
    purifier = SliceWise(load_generator(case.purifier)).to(device) if case.purifier else None

    @torch.no_grad()
    def purified(images: torch.Tensor) -> torch.Tensor:
        assert purifier is not None
        cleaned = [purifier.purified(part.to(device), config.seed) for part in images.split(config.batch)]
        return decide(torch.cat(cleaned).clamp(-1, 1))

    other = by(load_blackbox(case.other).to(device)) if case.other else None
    return Judges(decide, purified if purifier else None, other, read if config.symbol else None)


def figures_of(explanation: Explanation, mask: torch.Tensor | None, half_width: float) -> dict[str, float]:
    """What is measured on one explanation. mask: "s 1 h w", the known cause, or None. half_width: HU of the window."""
    target, change = int(explanation.target[0]), explanation.difference[0].abs()
    inside = float((change * mask).sum() / change.sum()) if mask is not None and float(change.sum()) > 0 else np.nan
    decided = int(explanation.counterfactual_probability[0].argmax())
    checks = {check.name: check.passed for check in explanation.trust}
    return {
        "validity": float(explanation.reachable[0]),
        "decision_validity": float(decided == target),
        "proximity_l1": float(change.mean()) * half_width,
        "sparsity": float((change > 2 * VISIBLE).float().mean()),
        "cause_precision": inside,
        "cause_area": np.nan if mask is None else float(mask.mean()),
        "monotone": float(rising_share(explanation.path_probability[:, 0, target])),
        "step": float(explanation.path_steps[-1]),
        "agreement": float(checks.get("agent_agreement", np.nan)),
        "plausible": float(checks.get("plausibility", False)),
        "trusted": float(all(checks.values())),
        "evaluations": float(explanation.cost.generator_forwards),
        "backwards": float(explanation.cost.generator_backwards),
        "seconds": explanation.cost.seconds,
    }


def judged_by(judge: Judge | None, factual: torch.Tensor, edited: torch.Tensor, label: int, target: int) -> float:
    """1 where a judge that gets the factual image right takes the counterfactual for the target, NaN where it is wrong
    about the factual image or there is no judge."""
    if judge is None or int(judge(factual)) != label:
        return np.nan
    return float(int(judge(edited)) == target)


def judge(explainer: Explainer, judges: Judges, scans: ScanDataset, config: Config) -> list[Found]:
    """(direction, patient, figures) of every scan that the black box classifies correctly."""
    device = next(explainer.blackbox.parameters()).device
    right = (judges.blackbox(scans.images) == scans.labels).nonzero().squeeze(1)
    chosen: list[int] = []
    for label in range(len(explainer.classes)):
        of_class = [int(i) for i in right if int(scans.labels[i]) == label]
        chosen += of_class[: config.scans or len(of_class)]
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
            direction = f"{explainer.classes[label]} to {explainer.classes[target]}"
            found.append((direction, scans.patients[i], figures))
    return found


def rows_of(found: Sequence[Found], common: dict[str, Any], config: Config) -> list[dict[str, Any]]:
    """A row for both directions together and one for each."""
    directions = ["both", *sorted({direction for direction, _, _ in found})]
    rows = []
    for direction in directions:
        mine = [entry for entry in found if direction in ("both", entry[0])]
        values = {key: [figures[key] for _, _, figures in mine] for key in mine[0][2]}
        values = {key: each for key, each in values.items() if key not in OPTIONAL or not np.isnan(each).all()}
        patients = [patient for _, patient, _ in mine]
        row = {
            **common,
            "default": common["default"] and direction == "both",
            "direction": direction,
            "n": len(mine),
            "patients": len(set(patients)),
            **mean_row(values, patients, resamples=config.resamples, seed=config.seed),
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
        scans = ScanDataset(rows, replace(explainer.preparation, slices=explainer.slices), mask=True)
        named = {
            "method": name,
            "search": type(explainer.method).__name__,
            "data": config.name,
            "split": config.split,
            "classifier": explainer.blackbox.card.architecture,
            "probability": settings.search.probability,
            "default": place == 0,
        }
        table += rows_of(judge(explainer, judges_of(explainer, case, config), scans, config), named, config)
    title = "Counterfactuals of correctly classified held-out scans, judged by the black box (paper 004, section 2.4)"
    write_result(__file__, config, title, table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
