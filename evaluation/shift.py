"""Do one long step and small steps reach the other class? (paper 003, appendix F, Fig. 5 and 6)

    python evaluation/shift.py --config configs/evaluation/shift_lidc.yaml

Scans that the baseline classifies correctly; the target is the other class (of several, the runner-up). Along the line
of the latent shift (Cohen et al. 2021) its probability is looked at for step sizes from `first` on, each twice the one
before; along a descent after every step. `best`: the largest probability that was met; `reached_half` and `reached`:
whether it was at least 0.5 and 0.8; `last`: the probability at the end, the longest step or the last one; `lost`: best
less last, how unsteady the way is. `start` is that of the reconstruction, or of the scan where the change is carried.
Intervals resample patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acat_runs import AcatRun
from common import RESULTS, mean_row, write_result
from torch import Tensor

from diffcf.errors import ConfigError
from diffcf.saliency import CounterfactualSaliency, descent_curve, shift_curve
from diffcf.training.command import run_script

REACHED = 0.8
Curve = Callable[[Tensor, Tensor], Tensor]  # images, targets -> probabilities "b n"


@dataclass(frozen=True)
class Config:
    """Which descents, over which runs.

    Args:
        name: the result is written to docs/results/shift_NAME.json.
        manifest: CSV file; labelled rows of each run's own `split`.
        runs: folders that train/acat.py wrote.
        methods: name -> descent.
        chosen_on: runs by whose validation scans settings were chosen; their patients are left out.
        first, doublings: of the latent shift's step sizes.
        most: so many scans a run, spread evenly; 0: all. split: which scans. batch: scans at once.
        resamples: of the bootstrap. data: what the scans are, in words. seed: of the bootstrap. out: folder.
    """

    name: str
    manifest: Path
    runs: list[Path]
    methods: dict[str, CounterfactualSaliency] = field(default_factory=dict)
    chosen_on: list[Path] = field(default_factory=list)
    first: float = 1e-5
    doublings: int = 24
    most: int = 0
    split: str = "test"
    batch: int = 30
    resamples: int = 1000
    data: str = ""
    seed: int = 0
    out: Path = RESULTS


@torch.no_grad()
def runner_up(logits: Tensor) -> Tensor:
    """The class that comes second, int "b"."""
    return logits.topk(2, dim=1).indices[:, 1]


def figures_of(curve: Tensor) -> dict[str, np.ndarray]:
    """Every figure of each scan, from probabilities "b n" of the target."""
    best = curve.amax(1)
    figures = {"start": curve[:, 0], "best": best, "last": curve[:, -1], "lost": best - curve[:, -1]}
    figures |= {"reached_half": (best >= 0.5).float(), "reached": (best >= REACHED).float()}
    return {key: value.double().numpy() for key, value in figures.items()}


def main(config: Config) -> list[dict[str, Any]]:
    """Follow every way in every run; prints and writes the table, returns its rows."""
    if not config.methods:
        raise ConfigError("no methods to compare the latent shift with; name some in the config.")
    lambdas = torch.cat([torch.zeros(1), config.first * 2.0 ** torch.arange(config.doublings + 1)])
    judged: dict[str, list[dict[str, np.ndarray]]] = {}
    patients: list[str] = []
    for folder in config.runs:
        run = AcatRun(folder)
        blackbox, generator = run.baseline, run.generator
        scans = run.scans(run.rows(config.manifest, config.split, chosen_on=config.chosen_on))
        logits = torch.cat([blackbox(part) for part in scans.images.split(config.batch)])
        right = (logits.argmax(1) == scans.labels).nonzero().squeeze(1)
        if config.most and len(right) > config.most:
            right = right[torch.linspace(0, len(right) - 1, config.most).round().long()]
        patients += [scans.patients[int(place)] for place in right]
        ways: dict[str, Curve] = {
            "latent shift": lambda image, target, f=blackbox, g=generator: shift_curve(f, image, g, lambdas, target)
        }
        for name, method in config.methods.items():
            ways[name] = lambda image, target, f=blackbox, g=generator, by=method: descent_curve(
                by, f, image, g, target
            )
        for name, way in ways.items():
            parts = [way(scans.images[part], runner_up(logits[part])) for part in right.split(config.batch)]
            width = max(part.shape[1] for part in parts)  # a batch whose scans have all converged ends early
            curve = torch.cat([torch.cat([part, part[:, -1:].expand(-1, width - part.shape[1])], 1) for part in parts])
            judged.setdefault(name, []).append(figures_of(curve))
    rows = []
    for name, runs in judged.items():
        row = {"method": name, "data": config.name, "split": config.split, "n": len(patients), "runs": len(runs)}
        cases = {key: np.concatenate([one[key] for one in runs]) for key in runs[0]}
        rows.append(row | mean_row(cases, patients, resamples=config.resamples, seed=config.seed))
    write_result(__file__, config, "Whether the other class is reached (paper 003, appendix F)", rows)
    return rows


if __name__ == "__main__":
    run_script(main, Config)
