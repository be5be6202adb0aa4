"""The whole search in a world with closed forms: step, image, scores, residual carry, path and counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from diffcf.counterfactuals import AgentScorer, ImageScorer, Shift, StepSearch, counterfactual, path, rising_share
from diffcf.errors import ConfigError

EXACT = StepSearch(0.8, evaluations=60, tolerance=0.0, resolution=1e-7)
GRADIENT = Shift(metric="none")


def find(world, target=None, search=EXACT, method=GRADIENT, **options):
    return counterfactual(
        world.image,
        target,
        generator=world.generator,
        agent=AgentScorer(world.agent),
        blackbox=ImageScorer(world.blackbox),
        method=method,
        search=search,
        **options,
    )


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("score", ["logit", "log_odds"])
def test_step_and_image_have_a_closed_form(make_world, carry: bool, score) -> None:
    world = make_world()
    target = torch.tensor([1, 0, 1, 0])
    found = find(world, target, method=dataclasses.replace(GRADIENT, score=score), residual_carry=carry)
    sign = torch.where(target == 1, 1.0, -1.0).double()
    asked = torch.tensor(0.8, dtype=torch.float64).logit()
    exact = ((asked - sign * world.margin(world.image)) / world.slope()).clamp(min=0)
    torch.testing.assert_close(found.end.step, exact, rtol=1e-6, atol=1e-9)
    # The shift is along the black box's own weight, the same in every slice.
    weight = world.blackbox.weight.reshape(4, 4)
    change = (sign * exact)[:, None, None] * weight / weight.norm() / 2**0.5
    torch.testing.assert_close(found.difference[:, :, 0], change[:, None].expand(4, 2, 4, 4), rtol=1e-5, atol=1e-8)
    assert found.reachable.all()
    given = found.end.probability[torch.arange(4), target]
    torch.testing.assert_close(given, torch.full_like(given, 0.8), rtol=1e-5, atol=0)
    torch.testing.assert_close(world.blackbox(found.end.image).softmax(1), found.end.probability)
    torch.testing.assert_close(found.solution.value, found.code.semantic)


def test_no_target_means_the_other_class(make_world) -> None:
    world = make_world()
    found = find(world)
    assert found.target.tolist() == (1 - world.blackbox(world.image).argmax(1)).tolist()
    assert (found.end.probability.argmax(1) == found.target).all()


def test_the_runner_up_of_many() -> None:
    from diffcf.counterfactuals import other_class

    assert other_class(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1]])).tolist() == [1, 1]


def test_residual_carry_keeps_what_the_decoder_forgets(make_world) -> None:
    world = make_world(lost=6)
    plain, carried = find(world), find(world, residual_carry=True)
    assert (plain.ray.reconstruction - world.image).abs().mean() > 0.02
    assert torch.equal(carried.start.image, world.image)  # a null edit is the factual image, bit for bit
    assert torch.equal(carried.ray.reference, world.image)
    nothing = carried.ray.at(torch.arange(4), torch.zeros(4, dtype=torch.float64))
    assert torch.equal(nothing.image, world.image)
    assert torch.equal(plain.ray.reference, plain.ray.reconstruction)
    # The same edit of the code changes both images by the same amount.
    step = torch.full((4,), 0.3, dtype=torch.float64)
    changes = [found.ray.at(torch.arange(4), step).image - found.ray.reference for found in (plain, carried)]
    torch.testing.assert_close(*changes)


def test_images_stay_inside_the_window(make_world) -> None:
    world = make_world(gain=0.5)  # a weak black box: large steps
    world.image = (world.image * 9).clamp(-1, 1)
    found = find(world, search=StepSearch(0.9, longest=100))
    assert found.end.image.abs().max() <= 1
    assert found.end.step.max() > 5


def test_a_target_out_of_reach_is_named_so(make_world) -> None:
    world = make_world()
    world.blackbox.forward = lambda image: torch.tensor([[3.0, 0.0]], dtype=image.dtype).expand(len(image), 2)
    found = find(world, torch.ones(4, dtype=torch.long), StepSearch())
    assert not found.reachable.any()
    assert (found.end.step == 0).all()
    way = path(found, points=5)
    assert way.step[0].tolist() == [0, 0, 0, 0]
    assert way.step[-1].tolist() == [1, 1, 1, 1]


def test_a_target_that_is_no_class(make_world) -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        find(make_world(), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ConfigError, match="4 class indices"):
        find(make_world(), torch.tensor([0, 1]))


@pytest.mark.parametrize("points", [3, 6, 9])
@pytest.mark.parametrize("carry", [False, True])
def test_the_path_runs_from_one_class_to_the_other(make_world, points: int, carry: bool) -> None:
    world = make_world(lost=2)
    found = find(world, residual_carry=carry)
    way = path(found, points)
    assert way.image.shape == (points, 4, 2, 1, 4, 4)
    assert (way.step.diff(dim=0) > 0).all()
    assert ((way.step == 0).sum(0) == 1).all()
    assert torch.equal(way.image[-1], found.end.image)
    at_start = way.image.transpose(0, 1)[(way.step == 0).T]
    assert torch.equal(at_start, found.start.image)
    opposite = way.probability[0, torch.arange(4), 1 - found.target]
    assert (opposite >= 0.8).all()
    undecided = found.start.probability.amax(1) < 0.8
    assert (way.step[0] < 0).tolist() == undecided.tolist()
    target = way.probability[:, torch.arange(4), found.target]
    assert (rising_share(target) == 1).all()
    # Every score on the path is the black box's of that image, and the margin is linear in the step.
    for point in way:
        torch.testing.assert_close(world.blackbox(point.image).softmax(1), point.probability)
        torch.testing.assert_close(world.agent(point.semantic).softmax(1), point.agent_probability)
    slopes = target.logit().diff(dim=0) / way.step.diff(dim=0)
    torch.testing.assert_close(slopes, torch.full_like(slopes, world.slope()), rtol=1e-6, atol=1e-6)


def test_a_path_needs_three_points(make_world) -> None:
    with pytest.raises(ConfigError, match="at least 3"):
        path(find(make_world()), 2)


def test_every_evaluation_is_counted(make_world) -> None:
    world = make_world()
    found = find(world, search=StepSearch())
    effort = found.ray.effort
    assert effort.generator_forwards.tolist() == (5 * (2 + found.found.evaluations)).tolist()  # encode, base, search
    assert effort.blackbox_forwards.tolist() == (2 + found.found.evaluations).tolist()
    assert int(effort.blackbox_forwards.sum()) == world.blackbox.calls
    path(found)
    assert int(effort.blackbox_forwards.sum()) == world.blackbox.calls
    assert (effort.generator_forwards == 5 * effort.blackbox_forwards).all()


def test_batches_change_nothing(make_world) -> None:
    world = make_world(batch=5)
    whole, single = find(world, search=StepSearch()), find(world, search=StepSearch(), batch=1)
    torch.testing.assert_close(whole.end.image, single.end.image, rtol=0, atol=1e-12)
    assert whole.ray.effort.generator_forwards.tolist() == single.ray.effort.generator_forwards.tolist()
    for sample in range(5):
        world.image, alone = whole.ray.factual[sample : sample + 1], None
        alone = find(world, search=StepSearch())
        torch.testing.assert_close(alone.end.image[0], whole.end.image[sample], rtol=0, atol=1e-12)


def test_nothing_asks_for_gradients(make_world) -> None:
    found = find(make_world(), search=StepSearch())
    assert not any(value.requires_grad for value in (*found.end.fields(), found.ray.direction))


@dataclasses.dataclass(frozen=True)
class Previewing(Shift):
    """The same line, searched on previews."""

    residual_carry = True

    def propose(self, ray, target, search):
        return dataclasses.replace(super().propose(ray, target, search), cheap=ray.glimpse_at, previewed=True)


def give_previews(world, kept: float = 0.9, spatial: bool = True):
    """One evaluation that shows `kept` of the image; `decode` costs five."""

    def preview(code):
        image = kept * world.generator.decode(code)
        world.generator.forwards -= world.generator.steps - 1
        return image

    world.generator.preview, world.generator.previews, world.generator.spatial = preview, True, spatial
    return world


def test_inner_frames_are_previews_between_full_ends(make_world) -> None:
    world = give_previews(make_world(lost=2))
    found = find(world, method=Previewing(metric="none"))
    assert found.previewed
    seen, full = path(found), path(found, full=True)
    assert torch.equal(seen.step, full.step)
    known = (seen.step == 0) | (seen.step == seen.step[0]) | (seen.step == seen.step[-1])
    assert torch.equal(seen.image[known], full.image[known])
    assert torch.equal(seen.probability[known], full.probability[known])
    # Between them 0.9 of the change, on the same scan: what the preview lacks of the scan is not seen.
    changes = [way.image - found.ray.factual for way in (seen, full)]
    torch.testing.assert_close(changes[0][~known], 0.9 * changes[1][~known])
    for point in seen:
        torch.testing.assert_close(world.blackbox(point.image).softmax(1), point.probability)
    assert (rising_share(seen.probability[:, torch.arange(4), found.target]) == 1).all()


def test_a_preview_of_the_path_is_one_evaluation(make_world) -> None:
    world = give_previews(make_world())
    world.image = world.image * 4  # decided: the path begins at the start
    spent = {}
    for full in (False, True):
        found = find(world, method=Previewing(metric="none"), search=StepSearch(0.75))
        assert (found.start.probability.amax(1) > 0.75).all()
        before = found.ray.effort.generator_forwards.clone()
        path(found, 9, full=full)
        spent[full] = (found.ray.effort.generator_forwards - before).tolist()
        assert int(found.ray.effort.blackbox_forwards.sum()) == world.blackbox.calls
        world.blackbox.calls = 0
    assert spent == {False: [7] * 4, True: [7 * 5] * 4}


def test_where_previews_do_not_reach_nothing_is_decoded_on_the_way_back(make_world) -> None:
    world = give_previews(make_world(gain=0.1), kept=1.0)  # nothing within reach on the other side
    found = find(world, method=Previewing(metric="none"), search=StepSearch(0.8, longest=1e4))
    before = found.ray.effort.generator_forwards.clone()
    way = path(found, 5)
    spent = found.ray.effort.generator_forwards - before
    assert (way.step[0] == 0).all()
    forwards = found.ray.effort.generator_forwards.clone()
    full = path(found, 5, full=True)
    assert torch.equal(way.step, full.step)
    torch.testing.assert_close(way.image, full.image)
    assert (found.ray.effort.generator_forwards - forwards - spent >= 5).all()


@pytest.mark.parametrize("why", ["no previews", "a global code", "no residual carry", "a method without"])
def test_otherwise_the_path_is_decoded_in_full(make_world, why: str) -> None:
    world = make_world() if why == "no previews" else give_previews(make_world(), spatial=why != "a global code")
    method = dataclasses.replace(GRADIENT) if why == "a method without" else Previewing(metric="none")
    found = find(world, method=method, residual_carry=why != "no residual carry")
    assert not found.previewed
    for one, other in zip(path(found).fields(), path(found, full=True).fields(), strict=True):
        assert torch.equal(one, other)


def test_a_counterfactual_that_never_left_the_start_shows_a_full_end(make_world) -> None:
    world = give_previews(make_world())
    world.blackbox.forward = lambda image: torch.tensor([[3.0, 0.0]], dtype=image.dtype).expand(len(image), 2)
    found = find(world, torch.ones(4, dtype=torch.long), StepSearch(), method=Previewing(metric="none"))
    seen, full = path(found, 5), path(found, 5, full=True)
    assert torch.equal(seen.image[-1], full.image[-1])
    assert not torch.equal(seen.image[-2], full.image[-2])
