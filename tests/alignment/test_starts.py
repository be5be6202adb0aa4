"""Warm starts: what is kept means the same in every view, is left where it does not serve, and saves steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffcf.alignment.loss import NO_TARGET, AlignmentLoss, Inner, Start
from diffcf.alignment.methods import Batch, CounterfactualAlignment
from diffcf.alignment.starts import Starts, inverse
from diffcf.data.views import view
from diffcf.errors import ConfigError
from diffcf.implicit import Detached, GaussNewton, ProximalSteps
from diffcf.training.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint

ALL = list(range(8))
INNER = Inner(distance_weight=0.3, solver=GaussNewton(2))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_every_view_is_turned_back() -> None:
    image = drawn(1, 2, 1, 4, 4).expand(8, -1, -1, -1, -1)
    assert torch.equal(view(view(image, ALL), [inverse(turn) for turn in ALL]), image)


@pytest.mark.parametrize("then", ALL)
def test_a_change_turns_with_its_view(then: int) -> None:
    starts, change = Starts(turned=True), drawn(1, 2, 1, 4, 4)
    starts.keep([7], [then], view(change, [then]), torch.tensor([1]))
    for now in ALL:
        found = starts.of([7], [now])
        assert found is not None
        assert torch.equal(found.change, view(change, [now]))
        assert found.target.tolist() == [1]


def test_a_code_serves_in_its_own_view_alone() -> None:
    starts, change = Starts(turned=False), drawn(3, 5)
    starts.keep([2, 4, 6], [0, 1, 1], change, torch.tensor([1, 0, 1]))
    found = starts.of([6, 4, 2], [1, 0, 0])
    assert found is not None
    assert torch.equal(found.change, change.flip(0))
    assert found.target.tolist() == [1, NO_TARGET, 1]


def test_samples_that_were_never_searched_have_no_start() -> None:
    starts = Starts(turned=True)
    assert starts.of([1], [0]) is None
    starts.keep([3], [0], drawn(1, 1, 1, 4, 4), torch.tensor([0]))
    assert starts.of([1, 2], [0, 0]) is None
    found = starts.of([1, 3], [2, 0])
    assert found is not None
    assert found.target.tolist() == [NO_TARGET, 0]
    assert not bool(found.change[0].any())
    starts.keep([3], [0], 2 * drawn(1, 1, 1, 4, 4), torch.tensor([1]))  # the last search counts
    again = starts.of([3], [0])
    assert again is not None
    assert torch.equal(again.change, 2 * drawn(1, 1, 1, 4, 4))


def test_what_is_kept_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    starts, other = Starts(turned=True), Starts(turned=True)
    assert starts.tensors() == {}
    starts.keep([9, 5], [6, 3], drawn(2, 1, 1, 4, 4).float(), torch.tensor([1, 0]))
    save_checkpoint(tmp_path, Checkpoint(1, starts.tensors(), {}))
    saved = newest_checkpoint(tmp_path)
    assert saved is not None
    other.restore(saved.tensors)
    one, two = (kept.of([5, 9, 1], [2, 0, 0]) for kept in (starts, other))
    assert one is not None
    assert two is not None
    assert torch.equal(one.change, two.change)
    assert torch.equal(one.target, two.target)
    other.restore({})
    assert other.of([5, 9], [2, 0]) is None


class Evened(nn.Module):
    """A classifier to which an image and its mirror image are the same."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image) + self.network(image.flip(-1))


@pytest.mark.parametrize("solver", [GaussNewton(2), ProximalSteps(20, 0.2)])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_warm_search_is_nearer_to_rest_after_the_same_steps(solver, turn: int, small, scene) -> None:
    image, _, region = scene
    loss = AlignmentLoss(Evened(small()), dataclasses.replace(INNER, solver=solver))
    starts, keys = Starts(turned=True), list(range(len(image)))
    earlier = loss(image, region)
    starts.keep(keys, [0] * len(keys), earlier.change, earlier.target)
    with torch.no_grad():  # the classifier has been trained a little since
        for weight in loss.classifier.parameters():
            weight += 2e-3 * torch.randn(weight.shape, dtype=weight.dtype)
    turns = [turn] * len(keys)
    seen, outside = view(image, turns), view(region, turns)
    left = {}
    begun = {"cold": None, "warm": starts.of(keys, turns), "unturned": Start(earlier.change, earlier.target)}
    for name, start in begun.items():
        found = loss(seen, outside, start=start)
        found.penalty.sum().backward()
        assert found.report.stationarity is not None
        left[name] = found.report.stationarity
        assert name == "unturned" or bool((found.warm == (name == "warm")).all())
    assert bool((left["warm"] < left["cold"]).all())
    assert float(left["warm"].mean()) < 0.5 * float(left["cold"].mean())
    if turn:  # a change as it was found, in the other view, does not serve
        assert float(left["unturned"].mean()) > 2 * float(left["warm"].mean())


def test_a_start_that_does_not_serve_is_left(small, scene) -> None:
    image, _, region = scene
    loss = AlignmentLoss(small(), dataclasses.replace(INNER, adjoint=Detached()))
    cold = loss(image, region)
    for unfit in (
        Start(cold.change, 1 - cold.target),  # of the other class
        Start(cold.change, torch.full_like(cold.target, NO_TARGET)),
        Start(-cold.change, cold.target),  # where T is higher than at u_0
        Start(torch.zeros_like(cold.change), cold.target),
    ):
        found = loss(image, region, start=unfit)
        assert not bool(found.warm.any())
        assert torch.equal(found.change, cold.change)
    target = torch.where(torch.arange(len(image)) < 3, cold.target, 1 - cold.target)
    mixed = loss(image, region, start=Start(cold.change, target))
    assert mixed.warm.tolist() == [True] * 3 + [False] * 3
    assert torch.equal(mixed.change[3:], cold.change[3:])


def test_a_start_lies_inside_the_bounds(scene) -> None:
    image, _, region = scene

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1)
            return torch.stack([-total, total - 1000], 1)  # never held for class 1

    loss = AlignmentLoss(Sum(), Inner(distance_weight=1e-9, adjoint=Detached(), solver=GaussNewton(1)))
    target = torch.ones(len(image), dtype=torch.long)
    opened = loss.space.at(image)
    problem = loss.problem(opened.image, opened.start, target)
    begun = loss.begin(problem, opened, target, Start(torch.full_like(image, 5.0), target))
    assert torch.equal(begun, torch.ones_like(image))
    assert bool(loss(image, region, target, Start(torch.full_like(image, 5.0), target)).warm.all())


def test_a_method_keeps_its_starts_if_it_is_asked_to(small, scene) -> None:
    image, label, region = scene
    method = CounterfactualAlignment(inner=INNER, share=0.5, wait=0.0, warm=True)
    terms = method.terms(small())
    assert terms.starts is not None
    assert terms.starts.turned
    batch = Batch(image, label, region, keys=[10, 11, 12, 13, 14, 15], turns=[0, 1, 0, 0, 0, 0])
    first = terms(batch, 1.0)
    assert float(terms.seen["warm"]) == 0
    assert sorted(terms.starts.tensors()["key"].tolist()) == [10, 11, 12]  # the share that was searched
    terms(batch, 1.0)
    assert float(terms.seen["warm"]) == 1
    others = dataclasses.replace(batch, keys=[1, 2, 3, 4, 5, 6])
    assert torch.equal(terms(others, 1.0), first)
    plain = dataclasses.replace(method, warm=False).terms(small())
    assert plain.starts is None
    plain(batch, 1.0)
    assert torch.equal(plain(batch, 1.0), first)  # begins at u_0 every time
    assert "warm" not in plain.seen
    with pytest.raises(ConfigError, match="give the loss keys and turns"):
        terms(Batch(image, label, region), 1.0)
