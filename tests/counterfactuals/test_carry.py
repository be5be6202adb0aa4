"""The gate of a carried change."""

from __future__ import annotations

import pytest
import torch

from diffcf.counterfactuals import Gate
from diffcf.errors import ConfigError


def test_strong_changes_pass_weak_ones_do_not_and_nothing_stays_nothing() -> None:
    change = torch.zeros(1, 1, 1, 12, 12)
    assert torch.equal(Gate()(change), change)
    change[..., 2:7, 2:7] = 0.9
    change[..., 9:, 9:] = 0.02
    carried = Gate(0.2)(change)
    torch.testing.assert_close(carried[..., 3:6, 3:6], change[..., 3:6, 3:6], rtol=0.01, atol=0)
    assert carried[..., 9:, 9:].abs().max() < 1e-3
    assert torch.equal(carried[..., 8, :2], change[..., 8, :2])
    torch.testing.assert_close(Gate()(-3 * change), -3 * Gate()(change))  # sign and size play no part


def test_zero_lets_everything_through() -> None:
    change = torch.randn(2, 2, 1, 6, 6)
    assert torch.equal(Gate(0)(change), change)


def test_it_is_differentiable() -> None:
    change = torch.randn(1, 2, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(Gate(0.3), (change.requires_grad_(),), eps=1e-7, atol=1e-4)


def test_thresholds() -> None:
    with pytest.raises(ConfigError, match="0 to 1"):
        Gate(-0.1)
