"""Distances: values by hand, proximal steps against their definition."""

from __future__ import annotations

import pytest
import torch

from diffcf.distances import L1, GroupL1, Proximal, SmoothL1, SquaredL2, median_deviation, standard_deviation
from diffcf.errors import ConfigError

SCALE = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
PROXIMAL = [L1(), L1("mean"), L1(scale=SCALE), GroupL1(), SquaredL2(), SquaredL2("mean"), SquaredL2(scale=SCALE)]


def changes(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_values() -> None:
    change = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert L1()(change).tolist() == [7, 0]
    assert L1("mean")(change).tolist() == [3.5, 0]
    assert L1(scale=torch.tensor([1.0, 2.0]))(change).tolist() == [5, 0]
    assert SquaredL2()(change).tolist() == [12.5, 0]
    assert SquaredL2(scale=torch.tensor([3.0, 4.0]))(change).tolist() == [1, 0]
    assert SmoothL1(1e-6)(change).tolist() == pytest.approx([7, 0], abs=1e-4)
    place = torch.zeros(1, 1, 2, 2, 2)
    place[0, 0, :, 1, 0] = torch.tensor([3.0, 4.0])
    assert GroupL1()(place).tolist() == [5]


@pytest.mark.parametrize("distance", PROXIMAL, ids=str)
def test_the_proximal_step_minimises_what_it_says(distance) -> None:
    change = changes(2, 1, 3, 2, 4)
    step = torch.tensor([0.3, 5.0], dtype=torch.float64)
    assert isinstance(distance, Proximal)
    found = distance.prox(change, step)

    def value(at: torch.Tensor) -> torch.Tensor:
        return (at - change).square().flatten(1).sum(1) / 2 + step * distance(at)

    best = value(found)
    random = torch.Generator().manual_seed(1)
    for size in (1.0, 0.1, 1e-3):
        for _ in range(30):
            near = found + size * torch.randn(change.shape, generator=random, dtype=torch.float64)
            assert (value(near) >= best - 1e-12).all()


@pytest.mark.parametrize("distance", PROXIMAL, ids=str)
def test_nothing_stays_nothing(distance) -> None:
    nothing = torch.zeros(2, 1, 3, 2, 4, dtype=torch.float64)
    assert torch.equal(distance.prox(nothing, torch.ones(2, dtype=torch.float64)), nothing)
    assert distance(nothing).tolist() == [0, 0]


def test_smooth_l1_is_smooth_at_zero() -> None:
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(SmoothL1()(zero).sum(), zero)
    assert slope.tolist() == [[0, 0, 0]]
    with pytest.raises(ConfigError, match="positive"):
        SmoothL1(0)


def test_scales_of_training_samples() -> None:
    values = torch.tensor([[0.0, 5.0, 1.0], [1.0, 5.0, 2.0], [3.0, 5.0, 9.0]], dtype=torch.float64)
    assert median_deviation(values).tolist() == [1, 1, 1]  # the middle one never varies: it takes the smallest
    torch.testing.assert_close(standard_deviation(values)[0], values[:, 0].std())
    with pytest.raises(ConfigError, match="no entry varies"):
        standard_deviation(torch.ones(3, 2))
