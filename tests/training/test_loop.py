"""The loop: what it reads and when, inputs made ahead, and that nothing is written of a run that broke."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from train_runs import losses

from diffcf.errors import ConfigError
from diffcf.training import loop
from diffcf.training.run import Run

PACE = loop.Stage(steps=23, batch=4, warmup=1, validate_every=9, save_every=6)


class Fit(nn.Module):
    """The mean squared output, or the square root of zero times it, whose gradient alone is not finite."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, breaks: bool) -> Tensor:
        made = self.model(x).square().mean()
        return (made * 0).sqrt() if breaks else made


class Products(TorchDispatchMode):
    """Notes the precision of every matrix product."""

    def __init__(self, seen: list[torch.dtype]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), more: Any = None) -> Any:
        made = function(*given, **(more or {}))
        if function in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            self.seen.append(made.dtype)
        return made


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def train(
    folder: Path,
    *,
    breaks_at: int | None = None,
    validated: list[int] | None = None,
    dropout: bool = False,
    **changes: Any,
) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)) if dropout else nn.Linear(3, 2)
    run = Run(folder / "checkpoints", model, torch.optim.AdamW(model.parameters(), fused=True), PACE.ema, {})
    precision = changes.pop("precision", "no")
    accelerator = Accelerator(cpu=True, mixed_precision=precision, log_with="tensorboard", project_dir=folder)

    def inputs(step: int) -> tuple[Tensor, bool]:
        return torch.randn(4, 3, generator=torch.Generator().manual_seed(step)), step == breaks_at

    def validate(averaged: nn.Module, done: int) -> dict[str, float]:
        (validated if validated is not None else []).append(done)
        return {"done": float(done)}

    pace = dataclasses.replace(PACE, **{key: changes.pop(key) for key in ("steps",) if key in changes})
    figures = loop.train(accelerator, run, Fit(model), pace, name="fit", inputs=inputs, validate=validate, **changes)
    assert figures == {"done": float(pace.steps)}
    return run


def test_every_loss_is_logged_however_seldom_it_is_looked_at(tmp_path) -> None:
    validated: list[int] = []
    model = train(tmp_path, validated=validated).model
    assert validated == [9, 18, 23]
    logged = losses(tmp_path)
    assert len(logged) == 23
    torch.manual_seed(0)
    own = nn.Linear(3, 2)
    first = own(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).square().mean()
    assert logged[0] == pytest.approx(first.item())
    assert not torch.equal(own.weight, model.weight)


def test_a_run_that_goes_on_logs_and_ends_as_one_that_was_not_cut(tmp_path) -> None:
    whole = train(tmp_path / "whole").model
    # The plan of the learning rate depends on the end of the run: cut it in the middle by an error instead.
    with pytest.raises(ConfigError):
        train(tmp_path / "cut", breaks_at=14)
    assert [path.name for path in sorted((tmp_path / "cut" / "checkpoints").iterdir())] == [
        "step-000000006",
        "step-000000012",
    ]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.equal(train(tmp_path / "cut").model.weight, whole.weight)


def test_what_dropout_draws_is_the_same_when_a_run_goes_on(tmp_path) -> None:
    whole = train(tmp_path, dropout=True).model
    for later in sorted((tmp_path / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)  # as if it had been cut off then
    AcceleratorState._reset_state(reset_partial_state=True)
    again = train(tmp_path, dropout=True).model
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("breaks_at", [17, 22])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_written(tmp_path, breaks_at: int) -> None:
    """The loss of that step is 0 and the weights after it are NaN: a checkpoint would be of them (18, 23)."""
    validated: list[int] = []
    with pytest.raises(ConfigError, match=f"the loss is 0.0 at step {breaks_at + 1}, the norm of its gradient nan"):
        train(tmp_path, breaks_at=breaks_at, validated=validated)
    assert breaks_at + 1 not in validated
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1].name
    assert newest == ("step-000000012" if breaks_at == 17 else "step-000000018")


def test_inputs_made_ahead_are_the_same(tmp_path) -> None:
    here = train(tmp_path / "here").model
    AcceleratorState._reset_state(reset_partial_state=True)
    ahead = train(tmp_path / "ahead", ahead=True).model
    assert torch.equal(here.weight, ahead.weight)
    assert losses(tmp_path / "here") == losses(tmp_path / "ahead")


def test_inputs_are_made_one_step_ahead_in_a_thread() -> None:
    made: list[tuple[int, bool]] = []

    def inputs(step: int) -> tuple[int]:
        made.append((step, threading.current_thread() is threading.main_thread()))
        return (step,)

    assert list(loop.made_ahead(inputs, range(3, 7))) == [(3,), (4,), (5,), (6,)]
    assert made == [(step, False) for step in range(3, 7)]
    assert list(loop.made_ahead(inputs, range(7, 7))) == []

    def broken(step: int) -> tuple[int]:
        raise ConfigError("no inputs")

    with pytest.raises(ConfigError, match="no inputs"):
        next(loop.made_ahead(broken, range(2)))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_compiled_loss_is_what_runs_in_every_step(tmp_path, monkeypatch, precision: str) -> None:
    products: list[torch.dtype] = []

    def backend(graph: torch.fx.GraphModule, examples: Any) -> Any:
        """Runs the graph as it is, and says in which precision the layer computed."""

        def ran(*given: Any) -> Any:
            with Products(products):
                return graph(*given)

        return ran

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend=backend))
    train(tmp_path, compile=True, steps=5, precision=precision)
    assert products == [torch.bfloat16 if precision == "bf16" else torch.float32] * 5


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_weights_that_are_split_are_refused(tmp_path, monkeypatch, kind: str) -> None:
    """The checkpoint of a part would be no checkpoint."""
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType[kind])
    with pytest.raises(ConfigError, match=f"launched with {kind}, which splits the weights"):
        train(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_accumulated_gradients_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ConfigError, match="gradient_accumulation_steps 4: gradients are not accumulated"):
        train(tmp_path)
