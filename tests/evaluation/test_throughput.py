"""evaluation/throughput.py on configs/tiny, and what it measures with."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from scripts import load, result, run
from tiny_generator import SIZE, tiny

from diffcf.errors import ConfigError


@pytest.fixture
def script(folder: Path) -> ModuleType:
    return load("evaluation", "throughput")


def test_ways_are_compared_in_one_table(folder) -> None:
    run("evaluation", "throughput")
    rows = result(folder, "throughput")["rows"]
    plain, patches, _, last = rows
    assert [row["method"] for row in rows] == ["plain", "patches", "bfloat16", "channels last"]
    assert [row["default"] for row in rows] == [False, False, False, True]
    assert plain["throughput_ratio"] == plain["throughput_ratio_low"] == plain["throughput_ratio_high"] == 1
    for row in rows:
        assert row["throughput_low"] <= row["throughput"] <= row["throughput_high"]
        assert sum(value for key, value in row.items() if key.startswith("share_")) == pytest.approx(1, abs=1e-4)
        assert row["matrix_share"] == pytest.approx(row["gflop"] * row["throughput"] / row["matrix_gflops"], rel=0.05)
        assert row["parameters"] == pytest.approx(plain["parameters"], rel=0.02)
    assert patches["gflop"] == pytest.approx(plain["gflop"] / 4, rel=0.1)
    assert patches["memory_mb"] < plain["memory_mb"]
    assert "psnr" not in patches
    for row in (plain, last):
        assert row["seconds"] >= 0.2
        assert row["images"] % 8 == 0
        assert row["denoising_low"] <= row["denoising"] <= row["denoising_high"]
        assert {"psnr", "psnr_random"} <= set(row)
    assert abs(plain["seconds"] - last["seconds"]) < 1


def test_one_way_alone_is_refused(script) -> None:
    with pytest.raises(ConfigError, match="1 ways to train here, plain"):
        script.measure(
            SimpleNamespace(device=torch.device("cpu")),
            script.Config("one", Path("runs/tiny/data/manifest.csv"), {"plain": script.Way({})}),
        )


def test_ways_in_bfloat16_are_left_out_where_it_is_emulated(script, monkeypatch, capsys) -> None:
    monkeypatch.setattr(script, "has_bfloat16", lambda device: False)
    ways = {"plain": script.Way({}), "half": script.Way({}, precision="bf16")}
    config = script.Config("half", Path("runs/tiny/data/manifest.csv"), ways)
    with pytest.raises(ConfigError, match="1 ways"):
        script.measure(SimpleNamespace(device=torch.device("cpu")), config)
    assert "half: left out" in capsys.readouterr().out


def test_a_network_that_says_nothing_makes_the_error_of_the_noise(script, monkeypatch) -> None:
    model = tiny()
    monkeypatch.setattr(model, "forward", lambda x, t, semantic: torch.zeros_like(x))
    error = script.denoising(model, torch.rand(3, 1, SIZE, SIZE), seed=0)
    assert error.shape == (3,)
    assert error.mean() == pytest.approx(1, abs=0.05)  # the variance of white noise, over 6144 numbers


def test_memory_is_that_of_a_step_s_tensors(script) -> None:
    """A weight of 4 MB, its average and two moments; and a step that holds three more at once and then another."""
    training = object.__new__(script.Training)
    weight = torch.zeros(1024, 1024)
    training.run, training.device = SimpleNamespace(weights=[weight]), torch.device("cpu")

    def step(steps: int) -> None:
        held = [torch.ones(1024, 1024) for _ in range(3)]
        del held
        torch.ones(1024, 1024)

    training.train = step
    assert training.megabytes() == pytest.approx(4 * 4 + 3 * 4, abs=0.01)
