"""What a key gives is the same everywhere, and nothing but the key decides it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffcf.data.views import view
from diffcf.errors import ConfigError
from diffcf.training.keyed import Order, noise_for, timesteps_for, turns_for


@given(st.integers(1, 40), st.data())
def test_an_epoch_shows_every_sample_at_most_once(count: int, data) -> None:
    batch = data.draw(st.integers(1, count))
    order = Order(count, batch, seed=3)
    epoch = torch.cat([order.at(step) for step in range(order.steps_per_epoch)])
    assert len(set(epoch.tolist())) == len(epoch) == count // batch * batch


def test_epochs_differ_and_seeds_differ() -> None:
    order = Order(64, 64, seed=0)
    assert order.at(0).tolist() != order.at(1).tolist()
    assert order.at(0).tolist() != Order(64, 64, seed=1).at(0).tolist()


def test_processes_share_a_batch() -> None:
    order = Order(50, 12, seed=0)
    for step in (0, 3, 4, 9):
        shares = [order.at(step, rank, 3) for rank in range(3)]
        assert {len(share) for share in shares} == {4}
        assert sorted(torch.cat(shares).tolist()) == sorted(order.at(step).tolist())
    with pytest.raises(ConfigError, match="5 processes"):
        order.at(0, 0, 5)
    with pytest.raises(ConfigError, match="from 3 samples"):
        Order(3, 4, seed=0)


def test_weights_draw_some_more_often() -> None:
    weights = torch.tensor([1.0] * 950 + [19.0] * 50)
    order = Order(1000, 100, 0, weights)
    index = torch.cat([order.at(step) for step in range(10)])
    assert float((index >= 950).double().mean()) == pytest.approx(0.5, abs=0.05)
    shares = [order.at(3, rank, 2) for rank in range(2)]
    assert sorted(torch.cat(shares).tolist()) == sorted(order.at(3).tolist())


def test_draws_are_keyed_by_sample() -> None:
    together = noise_for([4, 9], (1, 8, 8), seed=0, step=5)
    assert torch.equal(together[1:], noise_for([9], (1, 8, 8), seed=0, step=5))
    assert not torch.equal(together[1:], noise_for([9], (1, 8, 8), seed=0, step=6))
    assert not torch.equal(together[1:], noise_for([9], (1, 8, 8), seed=1, step=5))
    many = noise_for(range(300), (1, 8, 8), seed=0, step=0)
    assert float(many.mean()) == pytest.approx(0, abs=0.03)
    assert float(many.std()) == pytest.approx(1, abs=0.03)
    t = timesteps_for(range(2000), 1000, seed=0, step=0)
    assert int(t.min()) >= 0
    assert int(t.max()) <= 999
    assert float(t.double().mean()) == pytest.approx(499.5, abs=25)
    turns = turns_for(range(800), seed=0, step=0, kinds=8)
    assert set(turns) == set(range(8))


def test_views_are_the_eight_symmetries_of_a_square() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    seen = {tuple(view(image, [kind]).flatten().tolist()) for kind in range(8)}
    assert len(seen) == 8
    assert torch.equal(view(image, [0]), image)
    assert torch.equal(view(image, [1]), image.flip(-1))
    assert torch.equal(view(image, [4]), image.transpose(-1, -2))
