"""What is left out of a change: what neither the black box nor the agent needs."""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor

from diffcf.counterfactuals import AgentScorer, ImageScorer, Trim
from diffcf.counterfactuals.ray import Ray
from diffcf.types import Code

SIZE = 12


class Identity:
    forwards = 0

    def encode(self, image: Tensor) -> Code:
        return Code(image)

    def decode(self, code: Code) -> Tensor:
        return code.semantic


def reader(rows: slice, columns: slice):
    def read(image: Tensor) -> Tensor:
        m = 12 * reduce(image[..., rows, columns], "b s c h w -> b", "mean")
        return torch.stack([-m, m], 1) / 2

    return read


def trimmed(change: Tensor, agent, target: int = 1, asked: float = 0.75, **settings) -> Tensor:
    factual = torch.full((1, 1, 1, SIZE, SIZE), -0.2)
    ray = Ray(
        factual,
        generator=Identity(),
        blackbox=ImageScorer(reader(slice(2, 4), slice(2, 4))),
        agent=AgentScorer(agent),
        residual_carry=True,
    )
    carried = Trim(**settings)(ray, factual + change, torch.tensor([target]), asked)
    assert carried.shape == change.shape
    assert int(ray.effort.blackbox_forwards[0]) > 2
    return carried * change


def test_haze_and_fragments_go_and_what_is_read_stays() -> None:
    needed = torch.zeros(1, 1, 1, SIZE, SIZE)
    needed[..., 2:4, 2:4] = 0.8
    haze = torch.full_like(needed, 0.05)
    fragment = torch.zeros_like(needed)
    fragment[..., 9:11, 8:11] = -0.8
    kept = trimmed(needed + haze + fragment, reader(slice(2, 4), slice(2, 4)))
    assert float(kept[..., 8:, :].abs().max()) < 1e-3
    torch.testing.assert_close(kept[..., 2:4, 2:4], torch.full((1, 1, 1, 2, 2), 0.85), rtol=2e-2, atol=0)
    outside = kept.clone()
    outside[..., 2:4, 2:4] = 0
    assert float(outside.abs().sum()) < 0.02 * float(kept.abs().sum())


def test_what_only_the_agent_needs_stays() -> None:
    change = torch.zeros(1, 1, 1, SIZE, SIZE)
    change[..., 2:4, 2:4] = 0.8
    change[..., 8:10, 8:10] = 0.7

    def both(image: Tensor) -> Tensor:
        return (reader(slice(2, 4), slice(2, 4))(image) + reader(slice(8, 10), slice(8, 10))(image)) / 2

    assert float(trimmed(change, both, asked=0.99)[..., 8:10, 8:10].min()) > 0.6
    assert float(trimmed(change, reader(slice(2, 4), slice(2, 4)), asked=0.99)[..., 8:10, 8:10].max()) == 0


def test_a_change_that_never_convinced_loses_nothing_of_its_score() -> None:
    change = torch.zeros(1, 1, 1, SIZE, SIZE)
    change[..., 2:4, 2:4] = 0.1  # far too little for the asked probability
    change[..., 2:4, 4:5] = 0.05
    kept = trimmed(change, reader(slice(2, 4), slice(2, 4)))
    torch.testing.assert_close(kept[..., 2:4, 2:4], change[..., 2:4, 2:4], rtol=1e-3, atol=0)
