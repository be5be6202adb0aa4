"""What is left out of a change: what neither the black box nor the agent needs."""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor

from diffcf.counterfactuals import AgentScorer, ImageScorer, Trim
from diffcf.counterfactuals.ray import Ray
from diffcf.counterfactuals.trim import seam
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


def test_a_mixture_has_a_seam_where_neither_image_has_an_edge() -> None:
    one, other = torch.full((2, 1, 1, 6, 6), -0.5), torch.full((2, 1, 1, 6, 6), 0.3)
    mixed = one.clone()
    mixed[1, ..., :3] = other[1, ..., :3]
    torch.testing.assert_close(seam(mixed, one, other), torch.tensor([0.0, 0.8]))
    edged = one.clone()
    edged[..., 3:] = 0.4  # an edge of the scan's own lies there
    assert seam(edged, edged, other).tolist() == [0, 0]
    reversed_ = edged.clone()
    reversed_[..., 3] = 1.0  # a rim: up and down again
    torch.testing.assert_close(seam(reversed_, edged, other), torch.full((2,), 0.6))


def test_the_soft_border_of_what_goes_is_not_left_behind_as_a_rim() -> None:
    """A blob with a soft border is taken out: its rim is weak against the middle, and goes with it all the same."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    blob = torch.exp(-((y - 5.5) ** 2 + (x - 5.5) ** 2) / 12.0)[None, None, None]
    agent = reader(slice(4, 8), slice(4, 8))
    kept = {}
    for limit in (0.1, 9.0):
        ray = Ray(
            0.9 * blob - 0.5,
            generator=Identity(),
            blackbox=ImageScorer(agent),
            agent=AgentScorer(agent),
            residual_carry=True,
        )
        change = -0.9 * blob
        carried = Trim(seam=limit)(ray, ray.factual + change, torch.tensor([0]), 0.75)
        kept[limit] = ray.factual + carried * change
    sources = 0.9 * blob - 0.5, torch.full_like(blob, -0.5)
    assert float(seam(kept[0.1], *sources)) <= 0.1
    assert float(seam(kept[9.0], *sources)) > 0.2
