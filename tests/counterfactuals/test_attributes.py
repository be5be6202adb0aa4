"""The search over amounts against its closed form: a linear world in which one attribute is the cheapest."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffcf.cards import AttributeAgentCard, AttributesCard
from diffcf.classifiers.attribute_agent import AttributeAgent
from diffcf.counterfactuals import Attributes, ImageScorer, StepSearch, counterfactual, method_named, path
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.attributes import AttributeDirections

NAMES = ["size", "light", "round"]
GAINS = (1.5, 3.0, 2.0)  # rise of the margin for one spread more
SEARCH = StepSearch(tolerance=1e-4, resolution=1e-4, evaluations=40)


@pytest.fixture
def planted(make_world, tmp_path):
    """A world and a folder of directions, each of which raises the margin by its gain and is orthogonal to the rest."""

    def make(high: float = 3.0, batch: int = 4):
        world = make_world(batch=batch, slices=1)
        weight = world.blackbox.weight @ world.generator.basis
        aside = torch.linalg.qr(torch.stack([weight, *torch.eye(16, dtype=weight.dtype)[:3]]).T).Q[:, 1:4].T
        rows = [gain * weight / weight.square().sum() + 0.2 * other for gain, other in zip(GAINS, aside, strict=True)]
        directions = torch.stack(rows)[:, None]
        card = AttributesCard(NAMES, [0.0] * 3, [1.0] * 3, [-high] * 3, [high] * 3, "")
        reader = torch.linalg.pinv(directions[:, 0].double()).T[:, None]
        folder = tmp_path / f"attributes-{high}"
        AttributeDirections(card, directions, reader, torch.zeros_like(directions[0])).save(folder)
        return world, folder

    return make


def search(world, method: Attributes, target: Tensor, **how):
    return counterfactual(
        world.image,
        target,
        generator=world.generator,
        blackbox=ImageScorer(world.blackbox),
        method=method,
        search=SEARCH,
        **how,
    )


@pytest.mark.parametrize(("frozen", "chosen"), [((), 1), (("light",), 2), (("light", "round"), 0)])
def test_only_the_cheapest_attribute_that_is_free_changes_and_by_the_right_amount(planted, frozen, chosen) -> None:
    world, folder = planted()
    target = 1 - world.blackbox(world.image).argmax(1)
    method = Attributes(folder, frozen, distance_weight=0.05)
    found = search(world, method, target)
    assert found.reachable.all()
    names = [name for name in NAMES if name not in frozen]
    column, gain = names.index(NAMES[chosen]), GAINS[chosen]
    # argmin relu(asked - m - gain a)^2 / 2 + w |a|: gain (asked - m - gain a) = w.
    sign = (2 * target - 1).double()
    margin = world.margin(world.image) * sign
    amount = (log(0.9 / 0.1) - margin - 0.05 / gain) / gain
    proposed = found.proposal.direction
    torch.testing.assert_close(proposed[:, column], sign * amount, atol=5e-3, rtol=5e-3)
    others = torch.cat([proposed[:, :column], proposed[:, column + 1 :]], 1)
    assert not others.any()  # exact zeros
    # And from there back to where the black box gives exactly what was asked.
    change = (found.end.semantic - found.ray.code.semantic)[:, column] * sign
    torch.testing.assert_close(change, (log(3.0) - margin) / gain, atol=1e-2, rtol=1e-2)


@pytest.fixture
def of_size(tmp_path):
    """A folder with an agent to which nothing matters but the size: its log-odds rise by 1 a spread."""

    def make(blackbox_hash: str = "", names: list[str] = NAMES) -> Path:
        weight = torch.zeros(10, 2)
        weight[1] = torch.tensor([-0.5, 0.5])
        card = AttributeAgentCard(names, [0.0] * 3, [1.0] * 3, ["no", "yes"], blackbox_hash)
        AttributeAgent(card, weight).save(tmp_path / "agent")
        return tmp_path / "agent"

    return make


def test_an_answer_that_the_agent_of_attributes_does_not_share_is_none(planted, of_size) -> None:
    world, folder = planted(high=8.0)
    target = 1 - world.blackbox(world.image).argmax(1)
    method = Attributes(folder, agent=of_size(), distance_weight=0.05)
    found = search(world, method, target)
    assert found.reachable.all()
    # From the black box's own log-odds on, only the size moves the agent: by 1 a spread, the black box by 1.5.
    sign = (2 * target - 1).double()
    margin = world.margin(world.image) * sign
    change = found.end.semantic - found.ray.code.semantic
    torch.testing.assert_close(change[:, 0] * sign, log(3.0) - margin, atol=1e-2, rtol=1e-2)
    assert not change[:, 1:].any()
    scored = found.end.probability.gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(scored.logit(), 1.5 * log(3.0) - 0.5 * margin, atol=2e-2, rtol=2e-2)
    assert found.agreed is not None
    torch.testing.assert_close(found.agreed, torch.full_like(found.agreed, 0.75), atol=1e-3, rtol=0)
    alone = search(world, Attributes(folder, ("size",), method.agent, 0.05), target)
    assert not alone.reachable.any()  # whatever the black box says
    assert alone.agreed is not None
    torch.testing.assert_close(alone.agreed, margin.sigmoid(), atol=1e-3, rtol=0)
    assert search(world, Attributes(folder), target).agreed is None


def test_a_prototype_asks_the_agent_of_attributes_as_well(planted, of_size) -> None:
    world, folder = planted(high=8.0)
    target = world.blackbox(world.image).argmax(1)
    asked = replace(SEARCH, probability=0.99)
    found = counterfactual(
        world.image, target, generator=world.generator, blackbox=ImageScorer(world.blackbox),
        method=Attributes(folder, agent=of_size(), distance_weight=0.01), search=asked,
    )  # fmt: skip
    margin = world.margin(world.image) * (2 * target - 1).double()
    change = (found.end.semantic - found.ray.code.semantic)[:, 0].abs()
    assert found.reachable.all()
    torch.testing.assert_close(change, (log(99.0) - margin).clamp(min=0), atol=2e-2, rtol=2e-2)


def test_an_agent_of_another_black_box_or_of_other_attributes_is_refused(planted, of_size) -> None:
    _, folder = planted()
    method = Attributes(folder, agent=of_size("mine"))
    method.check(["no", "yes"], "", "mine")
    method.check(["no", "yes"], None, None)
    with pytest.raises(CheckpointError, match="imitates black box mine with the classes no, yes"):
        method.check(["no", "yes"], "", "another")
    with pytest.raises(CheckpointError, match="imitates black box mine"):
        method.check(["yes", "no"], "", "mine")
    with pytest.raises(CheckpointError, match="fitted over generator , but this one is another"):
        method.check(["no", "yes"], "another", "mine")
    of_size("mine", NAMES[::-1])
    with pytest.raises(CheckpointError, match="reads round, light, size in other units or another order"):
        method.check(["no", "yes"], "", "mine")


def test_amounts_stay_within_the_range_that_was_seen(planted) -> None:
    world, folder = planted(high=0.15)
    target = 1 - world.blackbox(world.image).argmax(1)
    found = search(world, Attributes(folder, distance_weight=0.01), target)
    reached = found.end.semantic  # what the line search ends at, too: it does not go on where the range ends
    assert not found.reachable.all()
    limit = found.ray.code.semantic.abs().clamp(min=0.15)
    assert (reached.abs() <= limit + 1e-6).all()
    assert (found.proposal.direction != 0).sum(1).min() > 1  # the cheapest one alone does not reach it


@pytest.mark.parametrize("probability", [0.9, 0.95, 0.99])
def test_high_scores_are_reached_within_what_the_solver_found(planted, probability: float) -> None:
    world, folder = planted(high=6.0)
    target = 1 - world.blackbox(world.image).argmax(1)
    found = counterfactual(
        world.image, target, generator=world.generator, blackbox=ImageScorer(world.blackbox),
        method=Attributes(folder), search=replace(SEARCH, probability=probability),
    )  # fmt: skip
    assert found.reachable.all()
    assert (found.end.step <= 1).all()


def test_the_path_does_not_leave_the_range_on_its_way_back(planted) -> None:
    world, folder = planted(high=0.6)
    found = search(world, Attributes(folder, distance_weight=0.01), world.blackbox(world.image).argmax(1))
    way = path(found, 9)
    assert (way.step < 0).any()
    limit = found.ray.code.semantic.abs().clamp(min=0.6)
    assert (way.semantic.abs() <= limit + 1e-6).all()


def test_a_black_box_that_does_not_see_small_changes_is_still_found_out(planted) -> None:
    """Half a mark is no mark: without a gradient at the scan itself the search starts from values far away."""
    world, folder = planted(batch=2)
    directions = AttributeDirections.load(folder).directions

    def blind(image: Tensor) -> Tensor:
        code = world.generator.encode(image).semantic
        far = (code - world.generator.encode(world.image).semantic[:1]) @ directions[1, 0]
        seen = (far / directions[1, 0].square().sum() - 2).clamp(min=0)[:, 0]
        return torch.stack([1 - 6 * seen, 6 * seen - 1], 1)

    world.image = world.image[:1]
    found = counterfactual(
        world.image, torch.ones(1, dtype=torch.long), generator=world.generator, blackbox=ImageScorer(blind),
        method=Attributes(folder), search=SEARCH,
    )  # fmt: skip
    assert found.reachable.all()
    assert int(found.proposal.direction.abs().argmax()) == 1


def test_the_settings_say_what_is_wrong_with_them(planted, tmp_path) -> None:
    world, folder = planted()
    with pytest.raises(ConfigError, match="colour do not exist; there are size, light, round"):
        search(world, Attributes(folder, ("colour",)), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ConfigError, match="all attributes are frozen"):
        search(world, Attributes(folder, tuple(NAMES)), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"train/attributes\.py"):
        method_named("attributes")
    with pytest.raises(ConfigError, match="for --method attributes, not 'latent'"):
        method_named("latent", attributes=folder)
    with pytest.raises(ConfigError, match="for --method attributes, not 'latent'"):
        method_named("latent", frozen=["light"])
    with pytest.raises(ConfigError, match="for --method attributes, not 'latent'"):
        method_named("latent", attribute_agent=folder)
    assert method_named("attributes", attributes=folder, frozen=["light"]) == Attributes(folder, ("light",))
    agent = folder / "agent"
    assert method_named("attributes", attributes=folder, attribute_agent=agent) == Attributes(folder, agent=agent)
