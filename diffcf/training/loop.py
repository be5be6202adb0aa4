"""The loop of a run: steps, learning rate, averaged weights, logs, validation and checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from diffcf.errors import ConfigError
from diffcf.training.keyed import drawn_by
from diffcf.training.run import Plan, Run

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
SPLIT_WEIGHTS = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
LOOK = 10  # steps between two looks at the loss


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How a network is trained; what a script's own settings inherit from.

    Args:
        steps: optimiser steps of the whole run.
        batch: samples a step, over all processes.
        learning_rate: of AdamW; reached after `warmup` steps, falling to 0 over the last share `cooldown` of the run.
        warmup: steps until the learning rate is reached.
        cooldown: share of the run over which it falls.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        ema: decay of the averaged weights, reached gradually.
        validate_every: steps from one validation to the next.
        save_every: steps from one checkpoint to the next.
    """

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


class Readings:
    """Loss and norm of the gradient of every step: kept where they were made, looked at and logged several at once.

    A look makes the host wait for the device, and the processes for each other.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.kept: list[tuple[int, float, Tensor]] = []

    def keep(self, done: int, rate: float, reading: Tensor) -> None:
        """What `step` gave at the step after which so many are done, and its learning rate."""
        self.kept.append((done, rate, reading))

    def look(self) -> float:
        """Log all that was kept; returns the last loss, the mean over processes. Every process looks at once.

        Errors: ConfigError where a loss is not finite, or a gradient, after which no weight is.
        """
        loss = math.nan
        together: Any = self.accelerator.reduce(torch.stack([reading for _, _, reading in self.kept]), "mean")
        for (done, rate, _), (loss, norm) in zip(self.kept, together.tolist(), strict=True):
            if not math.isfinite(loss + norm):
                raise ConfigError(
                    f"the loss is {loss} at step {done}, the norm of its gradient {norm}; expected finite numbers: "
                    "lower the learning rate or use precision 'no'."
                )
            self.accelerator.log({"loss": loss, "learning_rate": rate}, step=done)
        self.kept = []
        return loss


def step(
    accelerator: Accelerator,
    run: Run,
    module: Callable[..., Tensor],
    optimiser: torch.optim.Optimizer,
    given: tuple[Any, ...],
    clip: float,
    mark: Callable[[str], None] = lambda part: None,
) -> Tensor:
    """One step of the weights and their average; returns the loss of `given` and the norm of its gradient, "2".

    module, optimiser: the loss and the run's optimiser as the accelerator prepared them. mark: told the name of each
    part when the host is done with it, for a profile.
    """
    value = module(*given)
    mark("forward")
    accelerator.backward(value)
    mark("backward")
    norm: Any = accelerator.clip_grad_norm_(run.weights, clip)
    mark("clip")
    optimiser.step()
    optimiser.zero_grad()
    mark("optimiser")
    run.ema.step(run.weights)
    mark("average")
    return torch.stack([value.detach().float(), norm.float()])


def to_device(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """On `device`; to a CUDA device from pinned memory, so that the host need not wait for the copy."""
    if device.type != "cuda":
        return tuple(tensor.to(device) for tensor in tensors)
    return tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)


def made_ahead(inputs: Callable[[int], tuple[Any, ...]], steps: range) -> Iterator[tuple[Any, ...]]:
    """The inputs of each of `steps`, made in a thread while the caller is busy with those before."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(inputs, step) for step in steps[:1]]
        for step in steps:
            given = waiting.pop().result()
            waiting += [pool.submit(inputs, following) for following in steps[step + 1 - steps.start :][:1]]
            yield given


def check_launcher(accelerator: Accelerator) -> None:
    """Errors: ConfigError for a launcher that splits the weights, which what is written holds whole, and for one that
    accumulates gradients, which would be divided and yet used at every step."""
    if accelerator.distributed_type in SPLIT_WEIGHTS:
        raise ConfigError(
            f"launched with {accelerator.distributed_type.value}, which splits the weights; expected data-parallel "
            "processes that hold them whole: configs/accelerate/ddp_8gpu.yaml (docs/generators.md)."
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(
            f"launched with gradient_accumulation_steps {accelerator.gradient_accumulation_steps}: gradients are not "
            "accumulated here. Leave it out, and set the script's own `batch`."
        )


def train(
    accelerator: Accelerator,
    run: Run,
    loss: nn.Module,
    config: Stage,
    *,
    name: str,
    inputs: Callable[[int], tuple[Any, ...]],
    validate: Callable[[Any, int], dict[str, float]],
    compile: bool = False,
    ahead: bool = False,
) -> dict[str, float]:
    """Train `run.model` to `config.steps`, from its newest checkpoint on; returns the last validation's figures.

    loss: gives a scalar from this process's `inputs` of a step (0, 1, ...), on the accelerator's device. validate:
    called in the main process alone with the averaged weights, a module like `run.model`, and the steps done; writes
    what is to be kept. What layers draw (dropout) follows from `torch.initial_seed()`, step and process. compile:
    torch.compile the loss. ahead: make the inputs of a step in a thread while the one
    before is computed; they must be the same whenever they are made.

    The loss is looked at every `LOOK` steps, and before anything is written: weights that are not finite never are.

    Errors: ConfigError for a loss or a gradient that is not finite; those of `check_launcher` and `Run.resume`.
    """
    check_launcher(accelerator)
    console = Console(quiet=not accelerator.is_main_process)
    averaged = copy.deepcopy(run.model)
    plan = Plan(config.learning_rate, config.steps, config.warmup, config.cooldown)
    start = run.resume()
    if start:
        console.print(f"resumed at step {start}")
    module, optimiser = accelerator.prepare(torch.compile(loss) if compile else loss, run.optimiser)
    accelerator.init_trackers("logs")
    readings, mean, seed = Readings(accelerator), math.nan, torch.initial_seed()
    figures: dict[str, float] = {}
    steps = range(start, config.steps)
    with Progress(*COLUMNS, console=console, disable=not accelerator.is_main_process) as progress:
        task = progress.add_task(name, total=config.steps, completed=start)
        for done, given in enumerate(made_ahead(inputs, steps) if ahead else map(inputs, steps), start + 1):
            rate = plan.apply(run.optimiser, done - 1)
            with drawn_by(accelerator.device, "layers", seed, done - 1, accelerator.process_index):
                reading = step(accelerator, run, module, optimiser, given, config.clip)
            readings.keep(done, rate, reading)
            last = done == config.steps
            validates, saves = (last or done % every == 0 for every in (config.validate_every, config.save_every))
            if validates or saves or done % LOOK == 0:
                mean = readings.look()
            speed = (progress.tasks[0].speed or 0) * config.batch
            progress.update(task, advance=1, description=f"{name}: loss {mean:.4g}, {speed:.0f} images/s")
            if validates and accelerator.is_main_process:
                run.ema.copy_to(averaged.parameters())
                figures = validate(averaged, done)
                accelerator.log(figures, step=done)
                said = ", ".join(f"{key} {number:.3f}" for key, number in figures.items())
                console.print(f"step {done}: loss {mean:.4g}, {said}")
            if saves and accelerator.is_main_process:
                run.save(done)
    for tracker in accelerator.trackers:  # what init_trackers opened; a script may train several networks
        tracker.finish()
    accelerator.wait_for_everyone()
    return figures
