"""Every method in the world of closed forms: it reaches the asked probability, and says what it cost."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from diffcf.counterfactuals import (
    METHODS,
    AgentScorer,
    ImageScorer,
    Joint,
    Latent,
    LatentShift,
    Minimal,
    Pixels,
    StepSearch,
    counterfactual,
)
from diffcf.counterfactuals.solvers import Adam, ProximalGradient
from diffcf.errors import ConfigError
from diffcf.types import Code

SEARCH = StepSearch(0.8, evaluations=60, tolerance=0.0, resolution=1e-6)
LONG = ProximalGradient(steps=400, tolerance=1e-8)
SPARSE = Latent(solver=LONG, share=0, distance_weight=0.01)
FOUND = [SPARSE, LatentShift(), Minimal(solver=Adam(0.05, 60)), Pixels()]


def find(world, method, search=SEARCH, agent=False, **options):
    world.generator.card = None
    return counterfactual(
        world.image,
        generator=world.generator,
        blackbox=ImageScorer(world.blackbox),
        agent=AgentScorer(world.agent) if agent else None,
        method=method,
        search=search,
        **options,
    )


@pytest.mark.parametrize("method", FOUND, ids=lambda method: type(method).__name__)
def test_the_black_box_itself_gives_the_asked_probability(make_world, method) -> None:
    world = make_world()
    found = find(world, method)
    assert found.reachable.all()
    given = world.blackbox(found.end.image).softmax(1)[torch.arange(4), found.target]
    torch.testing.assert_close(given, torch.full_like(given, 0.8), rtol=1e-4, atol=0)
    assert (found.end.agent_probability.isnan()).all()  # nobody was asked


def test_latent_shift_goes_along_the_black_boxs_gradient(make_world) -> None:
    world = make_world(gain=2.0)
    found = find(world, LatentShift())
    weight = (world.blackbox.weight @ world.generator.basis)[: world.generator.kept]
    line = torch.where(found.target == 1, 1.0, -1.0).double()[:, None, None] * weight / weight.norm()
    direction = found.ray.direction / found.ray.direction.flatten(1).norm(dim=1)[:, None, None]
    cosine = (direction * line / 2**0.5).sum((1, 2))
    assert (cosine > 0.99).all()


def test_pixels_change_where_the_weight_is_largest_and_nowhere_else(make_world) -> None:
    world = make_world(gain=8.0)
    found = find(world, Pixels(distance_weight=0.5))
    changed = found.difference.flatten(1) != 0
    assert 0 < float(changed.double().mean()) < 0.6
    weight = world.blackbox.weight.abs()
    for row in changed.reshape(4, 2, -1):
        least = weight[row.any(0)].min()
        assert (row.any(0) >= (weight > least)).all()


def test_a_larger_weight_gives_a_sparser_code(make_world) -> None:
    world = make_world(gain=8.0)
    moved = []
    for weight in (0.01, 1.0):
        found = find(world, dataclasses.replace(SPARSE, distance_weight=weight))
        moved.append(float((found.ray.direction != 0).double().mean()))
    assert moved[1] < moved[0]


def test_minimal_change_moves_less_than_the_smallest_weight(make_world) -> None:
    world = make_world()
    one, many = (find(world, Minimal(solver=Adam(0.05, 80), rounds=rounds)) for rounds in (1, 6))
    assert one.reachable.all()
    assert many.reachable.all()
    assert float(many.difference.abs().mean()) <= float(one.difference.abs().mean()) * 1.01


def test_the_agent_alone_is_asked_first(make_world) -> None:
    """Where the agent knows the black box exactly, the search starts at its end."""
    world = make_world()

    class Reader:
        scale = torch.ones(1, dtype=torch.float64)

        def __call__(self, semantic):
            return world.agent(semantic)

    options = {"generator": world.generator, "blackbox": ImageScorer(world.blackbox), "search": SEARCH}
    method = Latent(solver=dataclasses.replace(LONG, steps=50), share=0, distance_weight=0.01)
    found = counterfactual(world.image, agent=AgentScorer(Reader()), method=method, frames=True, **options)
    assert found.reachable.all()
    # Its first iterate gives the agent what was asked, less what the distance takes; after the scan, the first frame.
    start = found.ray.iterates[0]
    asked = world.agent(start).softmax(1)[torch.arange(len(start)), found.target]
    assert ((asked > SEARCH.probability) & (asked < SEARCH.beyond(method.asked))).all()
    assert found.frames is not None
    assert len(found.frames) == 1 + len(found.ray.iterates)
    assert torch.equal(found.frames[0], found.ray.reference)
    assert not torch.equal(found.frames[1], found.ray.reference)


def test_evaluations_and_gradients_are_counted(make_world) -> None:
    world = make_world()
    found = find(world, Latent(solver=LONG))
    effort = found.ray.effort
    assert (effort.generator_backwards > 0).all()
    assert (effort.generator_forwards > effort.generator_backwards).all()
    assert int(effort.blackbox_forwards.sum()) == world.blackbox.calls
    assert not found.end.image.requires_grad


def test_batches_change_nothing(make_world) -> None:
    world = make_world(batch=5)
    method = Latent(solver=LONG, share=0)
    whole, single = find(world, method), find(world, method, batch=1)
    torch.testing.assert_close(whole.end.image, single.end.image, rtol=0, atol=1e-9)


def test_a_black_box_without_gradients_is_refused_with_the_way_out(make_world) -> None:
    world = make_world()
    forward = world.blackbox.forward
    world.blackbox.forward = lambda image: forward(image.detach())
    for method in (Latent(), LatentShift(), Minimal(), Pixels()):
        with pytest.raises(ConfigError, match="--method agent"):
            find(world, method)


def test_the_papers_shift_needs_an_agent(make_world) -> None:
    with pytest.raises(ConfigError, match="follows an agent"):
        find(make_world(), METHODS["agent"]())


class Rest:
    """Codes the mean of an image; all else is in x_T. What is asked below lies in x_T alone."""

    card = None

    def __init__(self) -> None:
        self.forwards = 0

    def encode(self, image):
        self.forwards += 1
        mean = image.mean((2, 3, 4))[..., None]
        return Code(mean, (image - mean[..., None, None])[:, :, None])

    def decode(self, code):
        self.forwards += 1
        return code.semantic[..., None, None] + code.stochastic[:, :, 0]


def left_against_right(image):
    d = 40 * (image[..., :2].mean((1, 2, 3, 4)) - image[..., 2:].mean((1, 2, 3, 4)))
    return torch.stack([d, -d], 1) / 2


@pytest.mark.parametrize("method", [Joint(solver=Adam(0.02, 40)), SPARSE], ids=["code and x_T", "code"])
def test_only_a_search_in_x_t_reaches_what_lies_there(make_world, method) -> None:
    world = make_world()
    found = counterfactual(
        world.image, generator=Rest(), blackbox=ImageScorer(left_against_right), method=method, search=StepSearch()
    )
    assert bool(found.reachable.all()) == isinstance(method, Joint)
    if isinstance(method, Joint):
        assert (left_against_right(found.end.image).argmax(1) == found.target).all()


def test_without_x_t_there_is_nothing_to_join(make_world) -> None:
    with pytest.raises(ConfigError, match="no x_T"):
        find(make_world(), Joint())
