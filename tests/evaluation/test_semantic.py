"""What is kept of a code, and what is added to it."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from einops import rearrange
from scripts import ROOT, load


@pytest.fixture
def semantic(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    return load("evaluation", "semantic")


def codes(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(40, 2, 5), (40, 2, 5, 3, 3)])
def test_directions(semantic: ModuleType, shape: tuple[int, ...]) -> None:
    every = codes(shape)
    spread = semantic.Spread.of(every)
    torch.testing.assert_close(spread.kept(every, 5), every)
    errors = [float((spread.kept(every, k) - every).square().sum()) for k in range(6)]
    assert errors == sorted(errors, reverse=True)
    # What is lost is what the other directions hold: the smallest eigenvalues of the covariance.
    vectors = rearrange(every, "n s d ... -> (n s ...) d").double()
    values = torch.linalg.svdvals(vectors - vectors.mean(0)).square()
    assert errors[2] == pytest.approx(float(values[2:].sum()), rel=1e-5)
    # Codes along one direction need no other.
    line = every[:, :, :1] * torch.tensor([1.0, -2, 0, 3, 0.5]).view(1, 1, 5, *([1] * (len(shape) - 3))) + 4
    torch.testing.assert_close(semantic.Spread.of(line).kept(line, 1), line, atol=1e-5, rtol=0)


def test_noise_is_measured_in_deviations_of_each_channel(semantic: ModuleType) -> None:
    wide = codes((200, 1, 3, 4, 4)) * torch.tensor([1.0, 10, 0]).view(3, 1, 1)
    spread = semantic.Spread.of(wide)
    added = spread.noised(wide, 0.3, seed=1) - wide
    assert added.std((0, 1, 3, 4)).tolist() == pytest.approx([0.3, 3, 0], rel=0.05)
    torch.testing.assert_close(spread.noised(wide, 0.3, seed=1) - wide, added)


def test_distance_of_halves(semantic: ModuleType) -> None:
    features, patients = codes((60, 4)), [f"P{i // 2}" for i in range(60)]
    same = semantic.halved(features, features, patients, 0)
    assert 0 < same < 1
    assert semantic.halved(features + 3, features, patients, 0) == pytest.approx(same + 4 * 9, rel=0.1)
