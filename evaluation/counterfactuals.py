"""Does the black box really change its mind, in both directions, and on how little change? (paper 004, section 2.4)

    python evaluation/counterfactuals.py --config configs/evaluation/counterfactuals_lidc.yaml

Held-out scans that the black box classifies correctly are pushed to the other class, as `diffcf explain` does it, and
reported by direction. `validity` is the share that the black box itself gives the asked score; `decision_validity` the
share whose predicted class changed. `proximity_l1` is the mean change in HU, `sparsity` the share of pixels that change
by more than 5% of the window's width, `cause_precision` the share of the absolute change that lies in the known cause
(manifest column `mask`; over the scans that have one), beside `cause_area`, what a change spread evenly would score.
`monotone` is the share of steps along the path, from one class to the other, on which the score does not fall.
Also: the agent's agreement on these scans, how many counterfactuals are pictures that the generator knows (`plausible`)
and how many explanations pass every trust check (`trusted`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, mean_row, write_result
from rich.progress import track

from diffcf.counterfactuals import rising_share
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.errors import ConfigError
from diffcf.explain import Explainer, ExplainSettings
from diffcf.training.command import run_script
from diffcf.types import Explanation

VISIBLE = 0.05  # of the window's width


@dataclass(frozen=True)
class Config:
    """Which models, judged on what.

    Args:
        name: the result is written to docs/results/counterfactuals_NAME.json.
        manifest: CSV file; labelled rows of `split` are explained.
        classifiers: method -> [classifier, generator, agent], folders or bundled names; the first is the default.
        settings: of the explanation.
        residual_carry: judge explanations with residual carry too.
        split: test, or val while something is still being chosen.
        scans: at most so many of each class; 0 takes all.
        batch: scans explained together.
        data: what the data are, in words.
        resamples: of the bootstrap over patients.
        seed: of the noise floor and the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    classifiers: dict[str, list[str]]
    settings: ExplainSettings = field(default_factory=ExplainSettings)
    residual_carry: bool = True
    split: str = "test"
    scans: int = 0
    batch: int = 16
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


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
        "agreement": float(checks["agent_agreement"]),
        "plausible": float(checks.get("plausibility", False)),
        "trusted": float(all(checks.values())),
        "evaluations": float(explanation.cost.generator_forwards),
    }


def judge(explainer: Explainer, scans: ScanDataset, config: Config) -> list[tuple[str, str, dict[str, float]]]:
    """(direction, patient, figures) of every scan that the black box classifies correctly."""
    device = next(explainer.blackbox.parameters()).device
    view = explainer.blackbox.view_of(explainer.preparation)

    def classify(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([explainer.blackbox(view(part.to(device))).cpu() for part in images.split(config.batch)])

    right = (classify(scans.images).argmax(1) == scans.labels).nonzero().squeeze(1)
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
            target = int(explanation.target[0])
            mask = scans.masks[i].to(device) if scans.masks is not None and bool(scans.has_mask[i]) else None
            direction = f"{explainer.classes[int(scans.labels[i])]} to {explainer.classes[target]}"
            half = explainer.preparation.window.width / 2
            found.append((direction, scans.patients[i], figures_of(explanation, mask, half)))
    return found


def rows_of(
    found: Sequence[tuple[str, str, dict[str, float]]], common: dict[str, Any], config: Config
) -> list[dict[str, Any]]:
    """A row for both directions together and one for each."""
    directions = ["both", *sorted({direction for direction, _, _ in found})]
    rows = []
    for direction in directions:
        mine = [entry for entry in found if direction in ("both", entry[0])]
        values = {key: [figures[key] for _, _, figures in mine] for key in mine[0][2]}
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
    for place, (method, names) in enumerate(config.classifiers.items()):
        if len(names) != 3:
            raise ConfigError(f"{method!r} names {len(names)} models; expected [classifier, generator, agent].")
        classifier, generator, agent = names
        for carry in (False, True) if config.residual_carry else (False,):
            settings = replace(config.settings, residual_carry=carry)
            explainer = Explainer.load(generator, classifier, agent, settings, device=device)
            preparation = replace(explainer.preparation, slices=explainer.slices)
            scans = ScanDataset(
                [row for row in manifest.split(config.split) if row.label is not None], preparation, mask=True
            )
            named = {
                "method": f"{method}, {'residual carry' if carry else 'plain decode'}",
                "data": config.name,
                "split": config.split,
                "classifier": explainer.blackbox.card.architecture,
                "probability": settings.shift.search.probability,
                "default": place == 0 and carry == config.settings.residual_carry,
            }
            table += rows_of(judge(explainer, scans, config), named, config)
    title = "Counterfactuals of correctly classified held-out scans, judged by the black box (paper 004, section 2.4)"
    write_result(__file__, config, title, table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
