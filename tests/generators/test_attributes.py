"""Attribute directions against closed forms, and the space of amounts over a generator whose every answer is known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from einops import einsum, rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.attributes import AttributeDirections, AttributeSpace
from diffcf.types import Code

NAMES = ("size", "light", "round")
SHAPE = (2, 3, 2, 2)  # s d h w
MEAN, SPREAD = torch.tensor([10.0, 0.0, -3.0]), torch.tensor([2.0, 0.5, 1.0])


def truth(seed: int = 0) -> Tensor:
    return torch.randn(len(NAMES), *SHAPE, generator=torch.Generator().manual_seed(seed))


def rated(count: int, together: float = 0.8, noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes 5 + A V + noise, and values in their own units; the first two attributes go together."""
    random = torch.Generator().manual_seed(seed + 1)
    amounts = torch.randn(count, len(NAMES), generator=random)
    amounts[:, 1] = together * amounts[:, 0] + (1 - together**2) ** 0.5 * amounts[:, 1]
    codes = 5 + einsum(amounts, truth(), "n k, k ... -> n ...")
    codes = codes + noise * torch.randn(codes.shape, generator=random)
    return codes, MEAN + SPREAD * amounts


def fitted(**how: float) -> AttributeDirections:
    return AttributeDirections.fit(NAMES, *rated(400, **how), rated(100, seed=5, **how), "a hash")


def test_each_attribute_has_its_own_effect_though_they_go_together() -> None:
    found = fitted(together=0.9)
    own = rearrange(rated(400, together=0.9)[1].std(0) / SPREAD, "k -> k 1 1 1 1")  # of the sample
    torch.testing.assert_close(found.directions, truth() * own, atol=1e-3, rtol=1e-3)


def test_amounts_are_read_back_where_nothing_is_hidden() -> None:
    found, (codes, values) = fitted(), rated(50, seed=9)
    mean, spread = torch.tensor(found.card.mean), torch.tensor(found.card.spread)
    torch.testing.assert_close(mean + spread * found.read(codes), values, atol=0.1, rtol=0.05)
    assert min(found.card.about["read"].values()) > 0.99


@settings(max_examples=15, deadline=None)
@given(noise=st.floats(0.1, 4.0), together=st.floats(0.0, 0.95))
def test_the_reader_is_a_ridge_regression(noise: float, together: float) -> None:
    codes, values = rated(120, noise=noise, together=together)
    found = AttributeDirections.fit(NAMES, codes, values, rated(80, noise=noise, together=together, seed=3), "")
    flat = (codes - codes.mean(0)).flatten(1).double()
    amounts = ((values - values.mean(0)) / values.std(0)).double()
    within = [
        torch.linalg.solve(flat.T @ flat + penalty * torch.eye(flat.shape[1]).double(), flat.T @ amounts).T
        for penalty in (1e0, 1e1, 1e2, 1e3, 1e4, 1e5)
    ]
    errors = [float((found.reader.flatten(1).double() - reader).norm() / reader.norm()) for reader in within]
    assert min(errors) < 1e-4


def test_the_card_says_mean_spread_and_range_in_units() -> None:
    codes, values = rated(400)
    card = AttributeDirections.fit(NAMES, codes, values, rated(50, seed=5), "a hash").card
    assert card.mean == pytest.approx(values.mean(0).tolist())
    assert card.spread == pytest.approx(values.std(0).tolist())
    highest = [mean + spread * high for mean, spread, high in zip(card.mean, card.spread, card.high, strict=True)]
    assert highest == pytest.approx(values.amax(0).tolist(), abs=1e-4)
    assert card.low < card.high
    assert card.generator_hash == "a hash"


def test_it_is_kept_and_read_again(tmp_path) -> None:
    found = fitted()
    found.save(tmp_path / "attributes")
    again = AttributeDirections.load(tmp_path / "attributes")
    assert again.card == found.card
    for name in ("directions", "reader", "middle"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    with pytest.raises(CheckpointError, match="no card"):
        AttributeDirections.load(tmp_path)


def test_what_cannot_be_fitted_is_refused() -> None:
    codes, values = rated(40)
    with pytest.raises(ConfigError, match="light never vary"):
        AttributeDirections.fit(NAMES, codes, values * torch.tensor([1.0, 0, 1]), (codes, values), "")
    with pytest.raises(ConfigError, match="round never vary in the held-out scans"):
        AttributeDirections.fit(NAMES, codes, values, (codes, values * torch.tensor([1.0, 1, 0])), "")
    with pytest.raises(ConfigError, match="4 rated scans for 3 attributes"):
        AttributeDirections.fit(NAMES, codes[:4], values[:4], (codes, values), "")


class Doubling:
    """Decodes a code to twice itself plus its noise; one evaluation a call, and a preview without the noise."""

    def __init__(self, noise: bool = True) -> None:
        self.noise, self.forwards, self.card = noise, 0, SimpleNamespace(name="a card")

    def encode_semantic(self, image: Tensor) -> Tensor:
        return image / 2

    def encode(self, image: Tensor) -> Code:
        return Code(image / 2, torch.ones(len(image), *SHAPE) if self.noise else None)

    def decode(self, code: Code) -> Tensor:
        self.forwards += 1
        return 2 * code.semantic + (0 if code.stochastic is None else code.stochastic)

    def preview(self, code: Code) -> Tensor:
        return 2 * code.semantic

    def fresh_stochastic(self, semantic: Tensor, seed: int) -> Tensor:
        return torch.randn(len(semantic), *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise", [True, False])
def test_own_amounts_give_the_plain_decode_and_others_a_shift_along_the_directions(noise: bool) -> None:
    found, image = fitted(), 2 * rated(4, seed=7)[0]
    generator = Doubling(noise)
    space = AttributeSpace(generator, found)
    code = space.encode(image)
    assert code.semantic.shape == (4, 3)
    torch.testing.assert_close(code.semantic, space.encode_semantic(image))
    torch.testing.assert_close(space.decode(code), generator.decode(generator.encode(image)))
    more = torch.tensor([0.5, 0.0, -1.5])
    moved = space.decode(Code(code.semantic + more, code.stochastic)) - space.decode(code)
    expected = 2 * einsum(more, found.directions, "k, k ... -> ...")
    torch.testing.assert_close(moved, expected.expand_as(moved), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(space.preview(code), image)
    assert space.forwards == generator.forwards == 4
    assert space.card is generator.card


def test_frozen_attributes_keep_the_scans_own_amounts_and_unknown_ones_are_listed() -> None:
    found, image = fitted(), 2 * rated(3)[0]
    space = AttributeSpace(Doubling(), found, ["light"])
    assert space.attributes.names == ["size", "round"]
    assert space.attributes.high == [found.card.high[0], found.card.high[2]]
    code = space.encode(image)
    torch.testing.assert_close(code.semantic, found.read(image / 2)[:, [0, 2]])
    torch.testing.assert_close(code.semantic, space.encode_semantic(image))
    moved = space.preview(Code(code.semantic + torch.tensor([1.0, -2.0]), code.stochastic)) - image
    expected = 2 * (found.directions[0] - 2 * found.directions[2])
    torch.testing.assert_close(moved, expected.expand_as(moved), atol=1e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match="colour do not exist; there are size, light, round"):
        AttributeSpace(Doubling(), found, ["colour"])
    with pytest.raises(ConfigError, match="all attributes are frozen"):
        AttributeSpace(Doubling(), found, NAMES)


def test_the_decode_is_differentiable_in_the_amounts() -> None:
    found = fitted()
    space = AttributeSpace(Doubling(), found)
    code = space.encode(2 * rated(2)[0])
    amounts = code.semantic.clone().requires_grad_()
    space.decode(dataclasses.replace(code, semantic=amounts)).sum().backward()
    expected = 2 * found.directions.flatten(1).sum(1)
    torch.testing.assert_close(amounts.grad, expected.expand_as(amounts), atol=1e-3, rtol=1e-3)


def test_fresh_noise_leaves_amounts_and_content() -> None:
    space, image = AttributeSpace(Doubling(), fitted()), 2 * rated(3)[0]
    code = space.encode(image)
    fresh = space.refreshed(code, 4)
    assert torch.equal(fresh.semantic, code.semantic)
    noise = Doubling().fresh_stochastic(torch.zeros(1), 4)
    torch.testing.assert_close(space.decode(fresh), image + noise)
    bare = AttributeSpace(Doubling(noise=False), fitted())
    assert bare.refreshed(kept := bare.encode(image), 4) is kept
