"""A run that can be cut off: what it consists of, how it is saved and resumed, and the plan of its learning rate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffcf.errors import ConfigError
from diffcf.training.checkpoint import (
    Checkpoint,
    has_checkpoint,
    join_names,
    newest_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
    split_names,
)


@dataclass(frozen=True)
class Plan:
    """The learning rate of each step: up over `warmup` steps, level, and down to 0 over the last share `cooldown`."""

    learning_rate: float
    steps: int
    warmup: int = 0
    cooldown: float = 0.3

    def at(self, step: int) -> float:
        """Of step 0, 1, ..., steps - 1."""
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup), left)

    def apply(self, optimiser: torch.optim.Optimizer, step: int) -> float:
        """Set the rate of every parameter group; returns it."""
        value = self.at(step)
        for group in optimiser.param_groups:
            group["lr"] = value
        return value


def settings(config: Any, free: Collection[str] = ()) -> dict[str, Any]:
    """A config dataclass as JSON holds it, without the fields `free` that a resumed run may change.

    A dataclass inside it also says its class: two of one kind may have the same fields.
    """
    every = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return json.loads(json.dumps({key: _said(value) for key, value in every.items() if key not in free}, default=str))


def _said(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {field.name: _said(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {key: _said(one) for key, one in value.items()}
    return [_said(one) for one in value] if isinstance(value, list | tuple) else value


def resumable(folder: Path, settings: dict[str, Any]) -> Checkpoint | None:
    """The newest checkpoint of a run with these settings; None where there is none.

    Errors: ConfigError for a run with other settings, named; CheckpointError for a damaged checkpoint.
    """
    last = newest_checkpoint(folder)
    if last is None:
        return None
    then = last.state["config"]
    changed = sorted(key for key in {*then, *settings} if then.get(key) != settings.get(key))
    if changed:
        raise ConfigError(
            f"{folder} holds a run with another {', '.join(changed)}; give another run folder, or delete it."
        )
    return last


class Best:
    """The best validation figure of a run so far, kept in a file: the weights that had it are those that are kept.

    A run without a checkpoint begins anew, and forgets the figure of what lay there before.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        if not has_checkpoint(run.folder):
            path.unlink(missing_ok=True)

    def beaten(self, value: float) -> bool:
        """Whether this is better than all before."""
        return not self.path.is_file() or value > json.loads(self.path.read_text())["value"]

    def keep(self, step: int, value: float) -> None:
        """The new best, after what had it is written."""
        self.path.write_text(json.dumps({"step": step, "value": value}))


class Memory(Protocol):
    """What a loss keeps from step to step."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by names."""
        ...

    def restore(self, named: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        ...


class Run:
    """Network, optimiser and averaged weights of a run, saved to and resumed from `folder`.

    model: on its device already. decay: of the averaged weights, reached gradually. settings: what must be the same
    when the run is resumed; anything that JSON holds. memory: of the loss, the same in every process, its own weights
    among it where the optimiser steps such; None: it keeps nothing.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        decay: float,
        settings: dict[str, Any],
        memory: Memory | None = None,
    ) -> None:
        self.folder, self.model, self.optimiser, self.settings = folder, model, optimiser, settings
        self.memory = memory
        self.weights = list(model.parameters())
        self.ema = EMAModel(self.weights, decay=decay, foreach=True)

    def resume(self) -> int:
        """Take over the newest checkpoint; returns the steps done, 0 where there is none. Errors: of `resumable`."""
        last = resumable(self.folder, self.settings)
        if last is None:
            return 0
        self.model.load_state_dict(split_names(last.tensors, "model"))
        restore_optimiser(self.optimiser, split_names(last.tensors, "optimiser"))
        shadow = split_names(last.tensors, "ema")
        for i, average in enumerate(self.ema.shadow_params):
            average.copy_(shadow[str(i)])
        self.ema.optimization_step = last.step
        if self.memory is not None:
            self.memory.restore(split_names(last.tensors, "memory"))
        return last.step

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` steps."""
        parts = {
            "model": self.model.state_dict(),
            "optimiser": optimiser_tensors(self.optimiser),
            "ema": {str(i): weight for i, weight in enumerate(self.ema.shadow_params)},
            "memory": {} if self.memory is None else self.memory.tensors(),
        }
        save_checkpoint(self.folder, Checkpoint(step, join_names(**parts), {"config": self.settings}))
