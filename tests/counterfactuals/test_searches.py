"""More of the same class, several answers, a region, and the frames of an optimisation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from diffcf.counterfactuals import (
    AgentScorer,
    ImageScorer,
    Latent,
    Minimal,
    Pixels,
    Shift,
    StepSearch,
    counterfactual,
    diverse,
    prototype,
)
from diffcf.counterfactuals.solvers import ProximalGradient
from diffcf.errors import ConfigError

LATENT = Latent(distance_weight=1e-3, solver=ProximalGradient(steps=60))


def how(world, method, **more):
    # float32, as the pixel generator's card and the previews have it
    return {
        "generator": world.generator,
        "blackbox": ImageScorer(world.blackbox),
        "agent": AgentScorer(world.agent) if method.needs_agent else None,
        "method": method,
        **more,
    }


@pytest.mark.parametrize("method", [Shift(metric="none"), LATENT], ids=["Shift", "Latent"])
def test_a_prototype_is_surer_of_the_same_class(make_world, method) -> None:
    world = make_world()
    found = prototype(world.image, probability=0.97, **how(world, method))
    before = world.blackbox(world.image).softmax(1)
    assert found.target.tolist() == before.argmax(1).tolist()
    assert found.reachable.all()
    after = found.end.probability[torch.arange(4), found.target]
    assert (after >= 0.97).all()
    assert (after >= before.amax(1) - 1e-6).all()


def test_a_prototype_that_is_one_already_stays(make_world) -> None:
    world = make_world()
    found = prototype(world.image, probability=0.5, **how(world, LATENT))
    assert found.end.step.tolist() == [0, 0, 0, 0]
    assert not found.difference.any()


def alike(answers) -> torch.Tensor:
    """Cosines of the directions of three answers, "pairs b"."""
    first, second, third = (found.proposal.direction.flatten(1) for found in answers)
    return torch.stack([F.cosine_similarity(*pair) for pair in ((first, second), (first, third), (second, third))])


@pytest.mark.parametrize("seed", range(3))
def test_answers_differ_and_each_is_one(make_world, seed: int) -> None:
    world = make_world(seed=seed)
    target = 1 - world.blackbox(world.image).argmax(1)
    same = diverse(world.image, target, count=3, **how(world, replace(LATENT, other_weight=0.0)))
    assert (alike(same) > 0.999).all()  # nothing else drives answers apart
    answers = diverse(world.image, target, count=3, **how(world, LATENT))
    assert all(bool(found.reachable.all()) for found in answers)
    # Over seeds 0 to 59 the mean is 0.51 to 0.55, and no two answers to an image are above 0.943.
    assert alike(answers).mean() < 0.6
    assert (alike(answers).abs() < 0.96).all()
    again = counterfactual(world.image, target, **how(world, LATENT))
    torch.testing.assert_close(again.proposal.direction, answers[0].proposal.direction)


def test_what_cannot_differ_says_so(make_world) -> None:
    world = make_world()
    target = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ConfigError, match="Minimal always gives the same answer"):
        diverse(world.image, target, count=2, **how(world, Minimal()))
    with pytest.raises(ConfigError, match="0 answers"):
        diverse(world.image, target, count=0, **how(world, LATENT))


def test_nothing_changes_outside_the_region(make_world) -> None:
    world = make_world()
    roi = torch.zeros(4, 2, 1, 4, 4, dtype=torch.float64)
    roi[..., 1:, :3] = 1
    target = 1 - world.blackbox(world.image).argmax(1)
    found = counterfactual(world.image, target, **how(world, LATENT, roi=roi))
    assert found.difference.any()
    assert not (found.difference * (1 - roi)).any()
    assert found.reachable.all()  # the search knows the region: it makes up for what it may not use
    same = counterfactual(world.image, target, **how(world, LATENT, roi=roi.bool()))
    torch.testing.assert_close(same.difference, found.difference)
    for wrong in (255 * roi, roi * torch.nan):
        with pytest.raises(ConfigError, match="other than 0 and 1"):
            counterfactual(world.image, target, **how(world, LATENT, roi=wrong))
    with pytest.raises(ConfigError, match="needs residual carry"):
        counterfactual(world.image, target, **how(world, LATENT, roi=roi, residual_carry=False))
    with pytest.raises(ConfigError, match="a region of shape"):
        counterfactual(world.image, target, **how(world, LATENT, roi=roi[..., :2]))
    with pytest.raises(ConfigError, match="nothing may change"):
        counterfactual(world.image, target, **how(world, LATENT, roi=0 * roi))


@pytest.mark.parametrize("method", [LATENT, Minimal(rounds=1), Pixels()], ids=["Latent", "Minimal", "Pixels"])
def test_frames_show_the_way_of_the_optimisation(make_world, method) -> None:
    world = make_world()
    world.generator.card = None
    target = 1 - world.blackbox(world.image).argmax(1)
    found = counterfactual(world.image, target, **how(world, method, frames=True))
    assert found.frames is not None
    assert len(found.frames) > 2
    assert torch.equal(found.frames[0], found.ray.reference)
    given = torch.stack([world.blackbox(frame).softmax(1) for frame in found.frames])[:, torch.arange(4), target]
    assert (given[-1] > given[0]).all()
    assert counterfactual(world.image, target, **how(world, method)).frames is None


def test_a_method_without_an_optimisation_has_no_frames(make_world) -> None:
    world = make_world()
    found = counterfactual(world.image, **how(world, Shift(metric="none"), frames=True, search=StepSearch()))
    assert found.frames is None
