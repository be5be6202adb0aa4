"""Checkpoints and the plan of the learning rate."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from diffcf.distances import L1, SquaredL2
from diffcf.errors import CheckpointError, ConfigError
from diffcf.training.checkpoint import TENSORS, newest_checkpoint
from diffcf.training.run import Best, Plan, Run, settings


def a_run(folder: Path, optimiser: str = "adamw", layout=torch.contiguous_format, **changes) -> Run:
    torch.manual_seed(1)
    first = nn.Conv2d(3, 4, (2, 2)), nn.BatchNorm2d(4), nn.Flatten()
    model = nn.Sequential(*first, nn.Linear(16, 1)).to(memory_format=layout)
    adam = {
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.01),
        "fused": lambda: torch.optim.AdamW(model.parameters(), lr=0.01, fused=True),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    }[optimiser]()
    return Run(folder, model, adam, 0.9, {"seed": 0, **changes})


def train(run: Run, steps: range) -> None:
    for step in steps:
        batch = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(step))
        run.model(batch).square().mean().backward()
        run.optimiser.step()
        run.optimiser.zero_grad()
        run.ema.step(run.weights)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("optimiser", ["adamw", "fused", "sgd"])
def test_resumed_equals_uncut(tmp_path, optimiser: str, layout: torch.memory_format) -> None:
    uncut = a_run(tmp_path / "a", optimiser, layout)
    train(uncut, range(10))
    first = a_run(tmp_path / "b", optimiser, layout)
    train(first, range(6))
    first.save(6)
    second = a_run(tmp_path / "b", optimiser, layout)
    assert second.resume() == 6
    train(second, range(6, 10))
    for name, value in uncut.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    for ours, theirs in zip(uncut.ema.shadow_params, second.ema.shadow_params, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()


def test_averaged_weights_are_those_of_the_formula(tmp_path) -> None:
    """a <- d a + (1 - d) w with d = min(decay, (1 + s) / (10 + s)) at step s = 1, 2, ...; at step 0 they are w."""
    run = a_run(tmp_path)
    expected = [weight.detach().double() for weight in run.weights]
    for step in range(20):
        train(run, range(step, step + 1))
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0.0
        expected = [decay * a + (1 - decay) * w.detach().double() for a, w in zip(expected, run.weights, strict=True)]
    for ours, plain in zip(run.ema.shadow_params, expected, strict=True):
        torch.testing.assert_close(ours.double(), plain, rtol=0, atol=1e-6)


def test_a_run_starts_at_0_and_keeps_two_checkpoints(tmp_path) -> None:
    run = a_run(tmp_path)
    assert run.resume() == 0
    for step in (1, 2, 10):
        run.save(step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000002", "step-000000010"]
    assert newest_checkpoint(tmp_path).step == 10


def test_other_settings_are_refused_by_name(tmp_path) -> None:
    a_run(tmp_path).save(1)
    with pytest.raises(ConfigError, match="another colour, seed"):
        a_run(tmp_path, seed=1, colour="red").resume()


def test_a_damaged_checkpoint_is_named(tmp_path) -> None:
    a_run(tmp_path).save(1)
    (tmp_path / "step-000000001" / TENSORS).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="step-000000001 is damaged"):
        a_run(tmp_path).resume()


def test_half_written_checkpoints_do_not_count(tmp_path) -> None:
    run = a_run(tmp_path)
    run.save(1)
    (tmp_path / ".step-000000002.77").mkdir()
    assert newest_checkpoint(tmp_path).step == 1


def test_the_plan_rises_stays_and_falls() -> None:
    plan = Plan(2.0, steps=100, warmup=10, cooldown=0.2)
    rates = [plan.at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert set(rates[10:80]) == {2.0}
    assert rates[80:] == pytest.approx([2.0 * (20 - i) / 20 for i in range(20)])
    assert Plan(1.0, 10, cooldown=0).at(9) == 1.0
    model = nn.Linear(1, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    assert plan.apply(sgd, 0) == sgd.param_groups[0]["lr"] == pytest.approx(0.2)


def test_settings_tell_classes_with_the_same_fields_apart() -> None:
    @dataclass(frozen=True)
    class Config:
        distance: object

    first, second = (settings(Config(distance)) for distance in (L1(), SquaredL2()))
    assert first != second
    assert first == settings(Config(L1()))
    assert settings(Config([{"a": L1()}]))["distance"][0]["a"]["class"] == "L1"


def test_settings_leave_out_what_may_change() -> None:
    @dataclass(frozen=True)
    class Config:
        out: Path
        seed: int = 0

    assert settings(Config(Path("a")), ("out",)) == {"seed": 0}
    assert copy.deepcopy(settings(Config(Path("a")))) == {"out": "a", "seed": 0}


def test_the_best_figure_outlives_a_pause_and_no_new_run(tmp_path) -> None:
    run, path = a_run(tmp_path / "checkpoints"), tmp_path / "best.json"
    best = Best(path, run)
    assert best.beaten(0.5)
    best.keep(10, 0.5)
    assert not best.beaten(0.5)
    assert best.beaten(0.6)
    run.save(10)
    assert not Best(path, run).beaten(0.4)  # however often the run that goes on is validated
    shutil.rmtree(run.folder)
    assert Best(path, run).beaten(0.4)
