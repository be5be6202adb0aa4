"""A run over epochs that can be cut off, of which the best epoch is kept."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffcf.training.checkpoint import (
    Checkpoint,
    join_names,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
    split_names,
)
from diffcf.training.run import resumable


class Epochs:
    """Network, optimiser and average of a run, with the best epoch so far, saved to and resumed from `folder`.

    model: on its device already. averaged: of the model. settings: what must be the same when the run is resumed.

    done: epochs. best, figures, kept: the epoch with the highest figure, all its figures, and its averaged weights;
    0 and nothing before the first.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        averaged: AveragedModel,
        optimiser: torch.optim.Optimizer,
        settings: dict[str, Any],
    ) -> None:
        self.folder, self.model, self.averaged, self.optimiser = folder, model, averaged, optimiser
        self.settings = settings
        self.done, self.best, self.highest = 0, 0, -math.inf
        self.figures: dict[str, float] = {}
        self.kept: dict[str, Tensor] = {}

    def resume(self) -> None:
        """Take over the newest checkpoint, if there is one. Errors: those of `resumable`."""
        last = resumable(self.folder, self.settings)
        if last is None:
            return
        self.done, self.kept = last.step, split_names(last.tensors, "best")
        self.best, self.highest, self.figures = (last.state[key] for key in ("best", "highest", "figures"))
        self.model.load_state_dict(split_names(last.tensors, "model"))
        self.averaged.load_state_dict(split_names(last.tensors, "averaged"))
        restore_optimiser(self.optimiser, split_names(last.tensors, "optimiser"))

    def judged(self, figures: dict[str, float], chosen: float) -> bool:
        """Count an epoch with these figures, `chosen` the same in every process; whether it is the best so far."""
        self.done += 1
        if not chosen > self.highest:  # also where it is no number
            return False
        self.best, self.highest, self.figures = self.done, chosen, figures
        self.kept = copy.deepcopy(self.averaged.module.state_dict())
        return True

    def save(self) -> None:
        """Write a checkpoint."""
        parts = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": optimiser_tensors(self.optimiser),
            "best": self.kept,
        }
        said = {"best": self.best, "highest": self.highest, "figures": self.figures, "config": self.settings}
        save_checkpoint(self.folder, Checkpoint(self.done, join_names(**parts), said), keep=1)
