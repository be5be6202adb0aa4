"""How good is a gradient through the argmin, and what does it cost?

    python evaluation/implicit.py --config configs/evaluation/implicit_lidc.yaml

The outer loss is the alignment penalty of a batch of scans; its truth is the counterfactual found anew after a step of
the weights, in double precision. By adjoint and classifier, over batches: `descends`, the share in which the loss found
anew is lower a small step against the gradient than a step along it; `sign`, the share of random directions of the
weights along which the loss found anew changes as the gradient says (of a gradient at an angle a to the true one it is
1 - a / pi); `cosine`, with the derivative of the steps themselves, where `unrolled` asks for it; `stationarity` and
`indefinite` of the report. `stuck` names how many batches were left out since the inner solver itself did not come to
rest.

By solver steps, in one run, single precision: `seconds` of loss and gradient (of the loss alone in the row `search
alone`); `adjoint_ratio`, the seconds beyond the search by those of unrolling's search and gradient together; and
`saved_mb`, the most that was kept for the backward pass at once. Of `training`, a whole step of the weights over
`training_batch` scans: by cross-entropy alone, and aligned, which takes `step_ratio` as long; processor time.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, mean_row, write_result
from rich.progress import track
from torch import Tensor, nn

from diffcf.alignment.loss import AlignmentLoss, Inner, Start
from diffcf.alignment.methods import CounterfactualAlignment, TrainingLoss, Vanilla
from diffcf.alignment.regions import regions_of
from diffcf.classifiers.blackbox import load_blackbox
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.data.shortcuts import add_marks
from diffcf.implicit import Detached, GaussNewton, Implicit, Unrolled
from diffcf.training.command import run_script


@dataclass(frozen=True)
class Config:
    """Which classifiers, which adjoints.

    Args:
        name: the result is written to docs/results/implicit_NAME.json.
        manifest: CSV file; rows of `split` with a mask. classifiers: name -> folder or bundled name.
        adjoints: name -> adjoint. inner: the inner problem and its solver, for the quality of the gradient.
        shortcut: mark by chance on every scan. widen: of the regions.
        batches, batch: of scans. directions: random ones a batch. step: of the weights, relative to their norm.
        again: solver steps by which u* is found anew from where it was.
        unrolled: also compare with the unrolled steps; in double precision 64 x 64 pixels take 10 GB.
        timed: solver steps whose cost is measured. repeats: of each measurement; the fastest counts.
        training: the alignment whose step is compared with a plain one. training_batch: scans of such a step.
        split, data, resamples, seed, out: as in the other evaluations.
    """

    name: str
    manifest: Path
    classifiers: dict[str, str]
    adjoints: dict[str, Implicit]
    inner: Inner = field(default_factory=lambda: Inner(distance_weight=0.1, solver=GaussNewton(40, halvings=6)))
    shortcut: Shortcut | None = None
    widen: int = 2
    batches: int = 8
    batch: int = 8
    directions: int = 8
    step: float = 1e-6
    again: int = 10
    unrolled: bool = True
    timed: list[int] = field(default_factory=lambda: [3, 10])
    repeats: int = 3
    training: CounterfactualAlignment = field(default_factory=CounterfactualAlignment)
    training_batch: int = 64
    split: str = "test"
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


class Moved:
    """The penalty of a batch after a step of the weights, u* found anew from where it was."""

    def __init__(self, classifier: nn.Module, inner: Inner, again: int, image: Tensor, region: Tensor) -> None:
        self.classifier, self.image, self.region = classifier, image, region
        found = AlignmentLoss(classifier, replace(inner, adjoint=Detached()))(image, region)
        nearer: Any = replace(inner.solver, steps=again)
        self.loss = AlignmentLoss(classifier, replace(inner, solver=nearer, adjoint=Detached()))
        self.target, self.start = found.target, Start(found.change, found.target)

    @torch.no_grad()
    def __call__(self, direction: list[Tensor], step: float) -> float:
        """The penalty at θ + step * direction."""
        weights = list(self.classifier.parameters())
        kept = [weight.detach().clone() for weight in weights]
        for weight, along in zip(weights, direction, strict=True):
            weight += step * along
        value = float(self.loss(self.image, self.region, self.target, self.start).penalty.mean())
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)
        return value


def gradient_of(loss: AlignmentLoss, image: Tensor, region: Tensor, start: Start | None) -> tuple[list[Tensor], Any]:
    """The gradient of the mean penalty to every weight, and the report."""
    found = loss(image, region, start=start)
    slopes = torch.autograd.grad(found.penalty.mean(), list(loss.classifier.parameters()))
    return list(slopes), found.report


def dot(left: list[Tensor], right: list[Tensor]) -> float:
    """Over all weights."""
    return sum(float((a * b).sum().detach()) for a, b in zip(left, right, strict=True))


def quality(classifier: nn.Module, image: Tensor, region: Tensor, config: Config) -> list[dict[str, Any]]:
    """A row for every adjoint."""
    scale = dot(list(classifier.parameters()), list(classifier.parameters())) ** 0.5
    random = torch.Generator().manual_seed(config.seed)
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in config.adjoints}
    stuck = 0
    batches = min(config.batches, -(-len(image) // config.batch))
    for part in track(range(batches), description="gradients"):
        chosen = slice(part * config.batch, (part + 1) * config.batch)
        moved = Moved(classifier, config.inner, config.again, image[chosen], region[chosen])
        nearer: Any = replace(config.inner.solver, steps=config.again)
        truth: list[Tensor] | None = None
        if config.unrolled:  # from u* itself, where the steps' derivative has the limit that they have from u_0
            unrolled = AlignmentLoss(classifier, replace(config.inner, solver=nearer, adjoint=Unrolled()))
            truth, _ = gradient_of(unrolled, image[chosen], region[chosen], moved.start)
        directions = [
            [torch.randn(w.shape, generator=random, dtype=w.dtype) for w in classifier.parameters()]
            for _ in range(config.directions)
        ]
        lengths = [scale / dot(d, d) ** 0.5 for d in directions]
        slopes = [
            (moved(d, config.step * n) - moved(d, -config.step * n)) for d, n in zip(directions, lengths, strict=True)
        ]
        rested: bool | None = None
        for name, adjoint in config.adjoints.items():
            loss = AlignmentLoss(classifier, replace(config.inner, solver=nearer, adjoint=adjoint))
            found, report = gradient_of(loss, image[chosen], region[chosen], moved.start)
            rested = float(report.stationarity.max()) < 0.05 if rested is None else rested
            if not rested:
                stuck += 1
                break
            size = dot(found, found) ** 0.5
            down = [-scale / max(size, 1e-30) * slope for slope in found]
            agreed = [
                (dot(found, d) > 0) == (change > 0) for d, change in zip(directions, slopes, strict=True) if change != 0
            ]
            one = {
                "descends": float(moved(down, config.step) < moved(down, -config.step)),
                "sign": sum(agreed) / max(len(agreed), 1),
                "stationarity": float(report.stationarity.mean()),
                "indefinite": float(report.indefinite.double().mean()),
            }
            if truth is not None:
                one["cosine"] = dot(found, truth) / max(size * dot(truth, truth) ** 0.5, 1e-30)
            for key, value in one.items():
                figures[name].setdefault(key, []).append(value)
    options: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}
    return [
        {
            "method": name,
            "stuck": stuck,
            "n": len(values["sign"]),
            **mean_row(values, range(len(values["sign"])), **options),
        }
        for name, values in figures.items()
        if values
    ]


class Kept:
    """Counts what autograd keeps for the backward pass: `most` bytes at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> Held:
        """Takes note of a tensor for as long as it is kept."""
        return Held(self, tensor)


class Held:
    """A tensor that is kept, and counted until let go; detached, since a node's own output would hold the node."""

    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        self.kept, self.tensor, self.size = kept, tensor.detach(), tensor.numel() * tensor.element_size()
        kept.now += self.size
        kept.most = max(kept.most, kept.now)

    def __del__(self) -> None:
        self.kept.now -= self.size


def cost(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """(seconds of the fastest of several runs, MB kept at most)."""
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor):
        run()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return min(seconds), kept.most / 2**20


def costs(classifier: nn.Module, image: Tensor, region: Tensor, config: Config) -> list[dict[str, Any]]:
    """A row for every number of steps and adjoint: nothing, unrolled, with checkpoints, Gauss-Newton."""
    rows = []
    for steps in config.timed:
        ways = {
            "search alone": Detached(),
            "unrolled": Unrolled(False),
            "unrolled, checkpointed": Unrolled(),
            "gauss_newton": Implicit(),
        }
        measured = {}
        for name, adjoint in ways.items():
            loss = AlignmentLoss(
                classifier, replace(config.inner, solver=GaussNewton(steps, halvings=0), adjoint=adjoint)
            )
            found: Callable[[], Any] = (
                (lambda loss=loss: loss(image, region))
                if isinstance(adjoint, Detached)
                else (lambda loss=loss: gradient_of(loss, image, region, None))
            )
            measured[name] = cost(found, config.repeats)
        search, whole = measured["search alone"][0], measured["unrolled"][0]
        rows += [
            {
                "method": name,
                "steps": steps,
                "n": len(image),
                "seconds": seconds,
                "adjoint_ratio": (seconds - search) / whole,
                "saved_mb": saved,
            }
            for name, (seconds, saved) in measured.items()
        ]
    return rows


def step_costs(classifier: nn.Module, image: Tensor, label: Tensor, region: Tensor, config: Config) -> list[Any]:
    """A row for a plain and for an aligned step over the same scans."""
    measured = {}
    for name, method in (("plain step", Vanilla()), ("aligned step", config.training)):
        loss = TrainingLoss(classifier, method.terms(classifier))
        measured[name], _ = cost(lambda loss=loss: loss(image, label, region, 1.0).backward(), config.repeats)
    plain = measured["plain step"]
    return [
        {"method": name, "n": len(image), "seconds": seconds, "step_ratio": seconds / plain}
        for name, seconds in measured.items()
    ]


def main(config: Config) -> list[dict[str, Any]]:
    """Measure; prints and writes the table, returns its rows."""
    rows: list[dict[str, Any]] = []
    chance = None if config.shortcut is None else replace(config.shortcut, correlation=0.0)
    for name, source in config.classifiers.items():
        classifier = load_blackbox(source)
        preparation = classifier.card.preparation
        picked = [
            row for row in Manifest.read(config.manifest).split(config.split) if row.label is not None and row.mask
        ]
        scans = ScanDataset(picked, preparation, mask=True)
        image = add_marks(scans.images, scans.labels, chance, preparation.window, scans.indices.tolist(), config.seed)
        region = regions_of(scans, config.widen)
        classifier.requires_grad_(True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the table says how far from stationary, and how indefinite
            made = quality(classifier.double(), image.double(), region.double(), config)
            few = config.batch
            made += costs(classifier.float(), image[:few], region[:few], config)
            many = config.training_batch
            made += step_costs(classifier, image[:many], scans.labels[:many], region[:many], config)
        rows += [
            {"classifier": name, "data": config.name, "split": config.split, **row, "default": False} for row in made
        ]
    write_result(__file__, config, "Gradients through the argmin: are they right, and what do they cost", rows)
    return rows


if __name__ == "__main__":
    run_script(main, Config)
