"""The loop of a run: steps, learning rate, averaged weights, logs, validation and checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from diffcf.errors import ConfigError
from diffcf.training.run import Plan, Run

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


class Pace(Protocol):
    """What a script's Config says of the loop: numbers of steps, and the optimiser's settings."""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        ...

    @property
    def batch(self) -> int:
        """Samples a step, over all processes."""
        ...

    @property
    def learning_rate(self) -> float:
        """Reached after `warmup` steps, falling to 0 over the last share `cooldown`."""
        ...

    @property
    def warmup(self) -> int:
        """Steps."""
        ...

    @property
    def cooldown(self) -> float:
        """Share of the run."""
        ...

    @property
    def clip(self) -> float:
        """Largest norm of the gradient."""
        ...

    @property
    def validate_every(self) -> int:
        """Steps."""
        ...

    @property
    def save_every(self) -> int:
        """Steps."""
        ...


@dataclass(frozen=True)
class Stage:
    """A `Pace` for scripts that train several networks one after the other, by AdamW: `weight_decay` is its, and `ema`
    the decay of the averaged weights."""

    steps: int = 500
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    cooldown: float = 1.0
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.98
    validate_every: int = 50
    save_every: int = 250


def train(
    accelerator: Accelerator,
    run: Run,
    loss: nn.Module,
    config: Pace,
    *,
    name: str,
    inputs: Callable[[int], tuple[Any, ...]],
    validate: Callable[[Any, int], dict[str, float]],
    compile: bool = False,
) -> dict[str, float]:
    """Train `run.model` to `config.steps`, from its newest checkpoint on; returns the last validation's figures.

    loss: gives a scalar from this process's `inputs` of a step (0, 1, ...), on the accelerator's device. validate:
    called in the main process alone with the averaged weights, a module like `run.model`, and the steps done; writes
    what is to be kept. compile: torch.compile the loss.

    Errors: ConfigError for a loss that is not finite; those of `Run.resume`.
    """
    console = Console(quiet=not accelerator.is_main_process)
    averaged = copy.deepcopy(run.model)
    plan = Plan(config.learning_rate, config.steps, config.warmup, config.cooldown)
    start = run.resume()
    if start:
        console.print(f"resumed at step {start}")
    module, optimiser = accelerator.prepare(torch.compile(loss) if compile else loss, run.optimiser)
    accelerator.init_trackers("logs")
    figures: dict[str, float] = {}
    with Progress(*COLUMNS, console=console, disable=not accelerator.is_main_process) as progress:
        task = progress.add_task(name, total=config.steps, completed=start)
        for step in range(start, config.steps):
            given = inputs(step)
            rate = plan.apply(run.optimiser, step)
            value = module(*given)
            accelerator.backward(value)
            accelerator.clip_grad_norm_(run.weights, config.clip)
            optimiser.step()
            optimiser.zero_grad()
            run.ema.step(run.weights)
            done = step + 1
            mean = float(accelerator.reduce(value.detach(), "mean"))  # type: ignore[arg-type]
            if not math.isfinite(mean):
                raise ConfigError(f"the loss is {mean} at step {done}; lower the learning rate or use precision 'no'.")
            accelerator.log({"loss": mean, "learning_rate": rate}, step=done)
            speed = (progress.tasks[0].speed or 0) * config.batch
            progress.update(task, advance=1, description=f"{name}: loss {mean:.4g}, {speed:.0f} images/s")
            if (done % config.validate_every == 0 or done == config.steps) and accelerator.is_main_process:
                run.ema.copy_to(averaged.parameters())
                figures = validate(averaged, done)
                accelerator.log(figures, step=done)
                said = ", ".join(f"{key} {number:.3f}" for key, number in figures.items())
                console.print(f"step {done}: loss {mean:.4g}, {said}")
            if (done % config.save_every == 0 or done == config.steps) and accelerator.is_main_process:
                run.save(done)
    for tracker in accelerator.trackers:  # what init_trackers opened; a script may train several networks
        tracker.finish()
    accelerator.wait_for_everyone()
    return figures
