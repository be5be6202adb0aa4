"""Exemplars in a world of places: a black box that reads four of them, and images that have something there."""

from __future__ import annotations

import pytest
import torch
from einops import reduce
from torch import Tensor

from diffcf.counterfactuals import AgentScorer, Exemplar, Exemplars, ImageScorer, StepSearch, counterfactual, diverse
from diffcf.counterfactuals.exemplar import _least, _starts
from diffcf.counterfactuals.methods import Latent
from diffcf.counterfactuals.solvers import Solver
from diffcf.errors import CheckpointError, ConfigError
from diffcf.types import Code, Solution

SIZE = 8


class Places:
    """An image is its own spatial code of one channel."""

    forwards = 0

    def encode(self, image: Tensor) -> Code:
        return Code(image)

    def decode(self, code: Code) -> Tensor:
        return code.semantic


class Reader:
    """P(1) rises with the mean of the four places in the middle; the others are never looked at."""

    scale = torch.ones(1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        m = 12 * reduce(image[..., 3:5, 3:5], "b s c h w -> b", "mean")
        return torch.stack([-m, m], 1) / 2


def images(count: int, middle: float, seed: int) -> Tensor:
    image = 0.02 * torch.randn(count, 1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    image[..., 3:5, 3:5] += middle
    return image


@pytest.fixture
def folder(tmp_path):
    codes = torch.cat([images(20, -0.5, 1), images(20, 0.5, 2)])
    Exemplars.sure(codes, Reader()(codes).softmax(1), most=15).save(tmp_path)
    return tmp_path


def find(method, image, blackbox=None, agent=None, probability=0.75):
    return counterfactual(
        image,
        generator=Places(),
        blackbox=ImageScorer(blackbox or Reader()),
        agent=AgentScorer(agent or Reader()),
        method=method,
        search=StepSearch(probability),
    )


def test_what_is_put_there_comes_from_an_exemplar(folder) -> None:
    image = torch.cat([images(2, -0.5, 7), images(2, 0.5, 8)])
    found = find(Exemplar(folder, share=0, trim=None), image)
    assert found.reachable.all()
    assert found.end.step.tolist() == [1, 1, 1, 1]  # whole: the search does not come back to 0.75
    kept = Exemplars.load(folder).semantic
    for sample in range(4):
        middle = found.end.image[sample, 0, 0, 3:5, 3:5]
        assert float((kept[:, 0, 0, 3:5, 3:5] - middle).abs().amax((1, 2)).min()) < 1e-6
    outside = found.difference.clone()
    outside[..., 1:7, 1:7] = 0
    assert not outside.any()
    inside = found.difference[..., 3:5, 3:5].abs().sum((1, 2, 3, 4)) / found.difference.abs().sum((1, 2, 3, 4))
    assert (inside > 0.7).all()
    gated = find(Exemplar(folder, trim=None), image)
    share = gated.difference[..., 3:5, 3:5].abs().sum((1, 2, 3, 4)) / gated.difference.abs().sum((1, 2, 3, 4))
    assert (share > inside).all()  # the gate stops the exemplars' own noise


def test_where_the_agent_errs_the_black_box_goes_on(folder) -> None:
    """An agent that looks elsewhere: no pasted place helps, and the joint search takes over."""

    class Astray(Reader):
        def __call__(self, image: Tensor) -> Tensor:
            return super().__call__(image.roll(3, dims=-1)) + 0.5 * super().__call__(image)

    found = find(Exemplar(folder), images(2, -0.5, 9), agent=Astray())
    assert found.reachable.all()


def test_a_black_box_without_gradients_may_leave_the_search_short(folder) -> None:
    class Scores(Reader):
        def __call__(self, image: Tensor) -> Tensor:
            return super().__call__(image).detach().clamp(-2, 2)

    image = images(2, -0.5, 9)
    assert find(Exemplar(folder), image, blackbox=Scores()).reachable.all()
    found = find(Exemplar(folder), image, blackbox=Scores(), probability=0.99)  # beyond sigmoid(4)
    assert not found.reachable.any()
    assert found.difference.flatten(1).any(1).all()  # the best of what was pasted


def test_an_end_that_is_worse_than_what_was_pasted_is_not_taken(folder) -> None:
    class Back(Solver):
        """Comes back with the opposite of where it began."""

        def __call__(self, objective, start: Tensor, watch=None) -> Solution:
            nothing = torch.zeros(len(start))
            return Solution(-start, nothing.bool(), nothing.long(), nothing)

    image = images(2, -0.5, 9)
    found = find(Exemplar(folder, Latent(solver=Back()), share=0, trim=None), image, probability=0.9999)
    kept = Exemplars.load(folder).semantic[..., 3:5, 3:5]
    proposed = (image + found.proposal.direction)[:, None, ..., 3:5, 3:5]
    assert float((kept - proposed).abs().amax((2, 3, 4, 5)).amin(1).max()) < 1e-6


def test_where_all_exemplars_are_like_another_answer_the_search_goes_on_without(folder) -> None:
    """All of them are bright where the black box looks, so that their changes point the same way."""
    how = {"generator": Places(), "blackbox": ImageScorer(Reader()), "agent": AgentScorer(Reader())}
    method = Exemplar(folder, share=0, trim=None, alike=0.2)
    answers = diverse(images(2, -0.5, 7), torch.tensor([1, 1]), count=2, method=method, search=StepSearch(0.75), **how)
    kept = Exemplars.load(folder).semantic[..., 3:5, 3:5]

    def gap(found) -> float:
        """Between what stands in the middle and the nearest exemplar."""
        return float((kept - found.end.image[:, None, ..., 3:5, 3:5]).abs().amax((2, 3, 4, 5)).min())

    assert gap(answers[0]) < 1e-6 < gap(answers[1])


@pytest.mark.parametrize(("places", "side"), [(16, 5), (8, 3), (8, 4), (3, 5), (4, 4)])
def test_windows_lie_over_all_places(places, side) -> None:
    starts = _starts(places, side)
    assert {at for start in starts for at in range(start, min(start + side, places))} == set(range(places))
    assert starts[-1] + side <= max(places, side)


def test_what_does_not_convince_is_ranked_by_how_nearly() -> None:
    given = torch.tensor([0.50, 0.56, 0.55, 0.80, 0.90, 0.51])
    change = torch.tensor([1.0, 9.0, 2.0, 300.0, 200.0, 3.0])
    rank = _least(change, given, 0.75)
    assert rank.argsort().tolist() == [4, 3, 1, 2, 5, 0]


def test_only_the_sure_are_kept_and_classes_stay_balanced() -> None:
    probability = torch.tensor([[0.9, 0.1]] * 30 + [[0.5, 0.5]] * 30 + [[0.1, 0.9]] * 4)
    kept = Exemplars.sure(torch.arange(64.0)[:, None], probability, most=10)
    assert (kept.probability.amax(1) >= 0.8).all()
    assert kept.probability.argmax(1).bincount().tolist() == [10, 4]


def test_what_is_missing_or_does_not_fit_is_named(folder, tmp_path) -> None:
    image = images(1, -0.5, 7)
    with pytest.raises(CheckpointError, match=r"no exemplars.safetensors .* train/exemplars.py"):
        find(Exemplar(tmp_path / "elsewhere"), image)
    Exemplars(torch.zeros(3, 1, 2, SIZE, SIZE), torch.eye(2)[[0, 1, 1]]).save(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    Exemplars(torch.zeros(3, 1, 2, SIZE, SIZE), torch.eye(2)[[0, 1, 1]]).save(other)
    with pytest.raises(CheckpointError, match="another generator"):
        find(Exemplar(other), image)
    lone = tmp_path / "lone"
    lone.mkdir()
    Exemplars(torch.zeros(3, 1, 1, SIZE, SIZE), torch.eye(2)[[0, 0, 0]]).save(lone)
    with pytest.raises(ConfigError, match="no exemplar of class 1"):
        find(Exemplar(lone), image)
