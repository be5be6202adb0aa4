"""The stages of paper 003's Algorithm 1 that train a classifier: the baseline, and one that reads saliency maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import ManifestRow
from diffcf.data.views import KINDS, Views, view
from diffcf.errors import ConfigError
from diffcf.metrics.classification import figures_of
from diffcf.training import loop
from diffcf.training.keyed import Order, generator, turns_for
from diffcf.training.loop import Stage
from diffcf.training.run import Best, Run

BATCH = 64  # of validation


@dataclass(frozen=True)
class Part:
    """Scans, and the saliency map of each, "n s 1 h w" in [0, 1]; None where the classifier reads none."""

    scans: ScanDataset
    maps: Tensor | None = None

    def at(self, positions: Sequence[int] | slice | Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """What a classifier is given of some scans: images, and maps where there are some."""
        given = (self.scans.images[positions], *(() if self.maps is None else (self.maps[positions],)))
        return tuple(value.to(device) for value in given)


@dataclass(frozen=True)
class Recipe:
    """What all classifiers of a run share.

    views: turns of a training scan with its map. select: the validation figure whose best weights are kept. weights:
    of the classes in the cross-entropy, "k"; None: all the same. seed: of order and views.
    """

    views: Views
    select: Literal["accuracy", "auc"]
    weights: Tensor | None
    seed: int


class ClassificationLoss(nn.Module):
    """Cross-entropy of a classifier of scans, or of scans beside their maps."""

    def __init__(self, model: nn.Module, weights: Tensor | None) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, label: Tensor, *given: Tensor) -> Tensor:
        """Scalar, for labels "b" of what `Part.at` gave."""
        # Not divided by the weights of the batch: each process has another part of it.
        return F.cross_entropy(self.model(*given), label, self.weights, reduction="none").mean()


def fewer(rows: Sequence[ManifestRow], count: int, seed: int) -> list[ManifestRow]:
    """So many of the rows, whole patients in an order drawn from `seed`; the last patient may be cut. 0: all.

    Errors: ConfigError where there are fewer.
    """
    if not 0 <= count <= len(rows):
        raise ConfigError(f"{count} training scans were asked for; there are {len(rows)}.")
    patients = sorted({row.patient for row in rows})
    order = torch.randperm(len(patients), generator=generator("fewer", seed)).tolist()
    place = {patients[at]: place for place, at in enumerate(order)}
    return sorted(rows, key=lambda row: place[row.patient])[: count or len(rows)]


@torch.no_grad()
def logits_of(model: nn.Module, part: Part, device: torch.device) -> Tensor:
    """Logits "n k" of all scans of a part, on the CPU."""
    starts = range(0, len(part.scans), BATCH)
    return torch.cat([model(*part.at(slice(start, start + BATCH), device)).cpu() for start in starts])


def fit_classifier(
    model: nn.Module,
    train: Part,
    val: Part,
    stage: Stage,
    recipe: Recipe,
    *,
    out: Path,
    settings: Mapping[str, Any],
    write: Callable[[Any, dict[str, Any]], None],
) -> dict[str, float]:
    """Train to `stage.steps`, from the newest checkpoint below OUT on; returns the last validation's figures.

    write: keeps the averaged weights, and is given `step` and figures of the validation, whenever they are the best so
    far; the best figure stands in OUT/best.json. settings: what must be the same when the run is resumed.
    """
    accelerator = Accelerator(log_with="tensorboard", project_dir=out)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    model.to(device)
    weights = None if recipe.weights is None else recipe.weights.to(device)
    adam = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=stage.weight_decay)
    run = Run(out / "checkpoints", model, adam, stage.ema, dict(settings))
    order = Order(len(train.scans), min(stage.batch, len(train.scans)), recipe.seed)
    best = Best(out / "best.json", run)

    def inputs(step: int) -> tuple[Tensor, ...]:
        positions = order.at(step, rank, world)
        keys = train.scans.indices[positions].tolist()
        turns = turns_for(keys, recipe.seed, step, KINDS[recipe.views])
        given = [view(value, turns) for value in train.at(positions, torch.device("cpu"))]
        return train.scans.labels[positions].to(device), *(value.to(device) for value in given)

    def validate(averaged: nn.Module, done: int) -> dict[str, float]:
        for own, trained in zip(averaged.buffers(), model.buffers(), strict=True):
            own.copy_(trained)
        averaged.eval()
        logits = logits_of(averaged, val, device)
        figures = figures_of(logits.double().softmax(1).numpy(), val.scans.labels.numpy(), None)
        if best.beaten(figures[recipe.select]):
            shown = {key: round(value, 4) for key, value in figures.items()}
            write(averaged, {"step": done, "validation": {"n": len(val.scans), **shown}})
            best.keep(done, figures[recipe.select])
        return {key: figures[key] for key in ("accuracy", "auc")}

    loss = ClassificationLoss(model, weights)
    return loop.train(accelerator, run, loss, stage, name=out.name, inputs=inputs, validate=validate)
