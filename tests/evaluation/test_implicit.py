"""evaluation/implicit.py: what is said of a gradient's quality tells a right one from a wrong one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scripts import ROOT, load
from torch import Tensor, nn

from diffcf.alignment.loss import Inner
from diffcf.implicit import GaussNewton, Implicit, Unrolled


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    return load("evaluation", "implicit")


def judged(script: ModuleType) -> dict[str, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    image = torch.rand(4, 1, 1, 4, 4, dtype=torch.float64)
    region = torch.zeros_like(image)
    region[..., :2, :] = 1
    config = script.Config(
        "small",
        Path(),
        {},
        {"cg": Implicit("cg", iterations=100, tolerance=1e-10)},
        inner=Inner(distance_weight=1.0, solver=GaussNewton(12, halvings=3)),
        batches=1,
        batch=4,
        directions=3,
        again=8,
    )
    [row] = script.quality(net, image, region, config)
    return row


def test_the_right_gradient_is_found_right(script) -> None:
    row = judged(script)
    assert row["stuck"] == 0
    assert (row["descends"], row["sign"]) == (1, 1)
    assert row["cosine"] > 0.999


def test_its_negative_is_found_wrong(script, monkeypatch) -> None:
    right = script.gradient_of

    def negated(loss: Any, *rest: Any) -> tuple[list[Tensor], Any]:
        slopes, report = right(loss, *rest)
        return slopes if isinstance(loss.inner.adjoint, Unrolled) else [-slope for slope in slopes], report

    monkeypatch.setattr(script, "gradient_of", negated)
    row = judged(script)
    assert (row["descends"], row["sign"]) == (0, 0)
    assert row["cosine"] < -0.999
