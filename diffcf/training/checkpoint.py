"""Checkpoints that resume exactly and never unpickle: safetensors for tensors, JSON for everything else.

Accelerate's own `save_state` pickles optimiser and random states. Here randomness follows from keys (`keyed.py`), and
an optimiser's state is written tensor by tensor.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffcf.errors import CheckpointError, ConfigError
from diffcf.weights import write_tensors

TENSORS, STATE = "tensors.safetensors", "state.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on after `step` steps: named tensors, and plain data in `state`."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of every parameter, named "GROUP.PARAMETER.KEY". Errors: ConfigError for state that is no tensor."""
    named = {}
    for g, group in enumerate(optimiser.param_groups):
        for p, parameter in enumerate(group["params"]):
            for key, value in optimiser.state.get(parameter, {}).items():
                if not isinstance(value, Tensor):
                    raise ConfigError(f"{type(optimiser).__name__} keeps {key!r} as {type(value).__name__}, no tensor.")
                named[f"{g}.{p}.{key}"] = value
    return named


def restore_optimiser(optimiser: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` gave, in the memory layout of the parameters: fused steps rely on it."""
    for name, value in named.items():
        g, p, key = name.split(".", 2)
        group = optimiser.param_groups[int(g)]
        parameter = group["params"][int(p)]
        on_device = key != "step" or group.get("fused") or group.get("capturable")  # where torch keeps its counter
        if key != "step" and value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        optimiser.state[parameter][key] = value.to(parameter.device) if on_device else value


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write `folder/step-N`, whole or not at all, and drop all but the `keep` newest."""
    target = folder / f"{PREFIX}{checkpoint.step:09d}"
    partial = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # Cloned (in the host's memory): weights that share storage are written as often as they are named.
    write_tensors({name: value.detach().cpu().clone() for name, value in checkpoint.tensors.items()}, partial / TENSORS)
    (partial / STATE).write_text(json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    for old in _found(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def has_checkpoint(folder: Path) -> bool:
    """Whether there is one below `folder`, which is not read."""
    return bool(_found(folder))


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The last checkpoint below `folder`; None where there is none. Errors: CheckpointError where it is damaged."""
    found = _found(folder)
    if not found:
        return None
    try:
        state = json.loads((found[-1] / STATE).read_text())
        return Checkpoint(state.pop("step"), load_file(found[-1] / TENSORS), state)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{found[-1]} is damaged ({error}); delete it to resume from the checkpoint before it."
        ) from error


def split_names(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Those named "PART/...", without the part."""
    return {name.removeprefix(f"{part}/"): value for name, value in tensors.items() if name.startswith(f"{part}/")}


def join_names(**parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split_names` for several parts."""
    return {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}


def _found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir()) if folder.is_dir() else []
