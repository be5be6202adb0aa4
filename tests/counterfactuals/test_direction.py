"""The direction of a shift: finite differences, the metric, and what a raw logit can miss."""

from __future__ import annotations

import pytest
import torch

from diffcf.counterfactuals import AgentScorer, class_score, shift_direction, spread_covariance
from diffcf.counterfactuals.direction import shifted
from diffcf.types import Code

WEIGHT = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def linear(semantic: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bsd,kd->bk", semantic, WEIGHT)


@pytest.fixture
def code() -> Code:
    return Code(torch.randn(5, 2, 6, dtype=torch.float64))


@pytest.fixture
def target() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 1, 0])


def test_the_raw_logit_is_the_papers(code: Code, target: torch.Tensor) -> None:
    direction = shift_direction(AgentScorer(linear), code, target, score="logit")
    rows = WEIGHT[target]
    expected = (rows / rows.norm(dim=1, keepdim=True))[:, None].expand(5, 2, 6) / 2**0.5
    torch.testing.assert_close(direction, expected)


@pytest.mark.parametrize("score", ["logit", "log_odds"])
@pytest.mark.parametrize("spread", [None, torch.tensor([0.1, 1.0, 2.0, 5.0, 0.3, 0.0], dtype=torch.float64)])
def test_no_other_direction_of_the_same_length_rises_faster(code, target, score, spread) -> None:
    covariance = None if spread is None else spread_covariance(spread)
    best = shift_direction(AgentScorer(linear), code, target, score=score, covariance=covariance)
    unit = torch.ones(6, dtype=torch.float64) if spread is None else spread
    inverse = torch.where(unit > 0, 1 / unit, 0.0)
    length = (best * inverse).square().sum((1, 2)).sqrt()
    torch.testing.assert_close(length, torch.ones(5, dtype=torch.float64))  # one spread of the codes
    assert (best[..., unit == 0] == 0).all()

    def risen(direction):
        return class_score(linear(shifted(code, direction, torch.full((5,), 1e-4)).semantic), target, score)

    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        other = torch.randn(best.shape, generator=random, dtype=torch.float64) * unit
        other = other / (other * inverse).square().sum((1, 2)).sqrt()[:, None, None]
        assert (risen(best) > risen(other)).all()


def test_log_odds_is_the_logit_of_the_softmax(target: torch.Tensor) -> None:
    logits = torch.randn(5, 3, dtype=torch.float64)
    chosen = logits.softmax(1).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(class_score(logits, target, "log_odds"), chosen.logit())
    torch.testing.assert_close(class_score(logits, target, "logit"), logits.gather(1, target[:, None]).squeeze(1))


def test_a_common_part_of_all_logits_moves_the_raw_logit_alone(code: Code) -> None:
    common = torch.zeros(6, dtype=torch.float64)
    common[0] = 10.0

    def agent(semantic):
        return torch.stack([semantic @ common, semantic @ common + semantic[..., 1]], -1).sum(1)

    target = torch.ones(5, dtype=torch.long)
    probability = agent(code.semantic).softmax(1)[:, 1]
    gains = {}
    for score in ("logit", "log_odds"):
        direction = shift_direction(AgentScorer(agent), code, target, score=score)
        there = agent(shifted(code, direction, torch.ones(5)).semantic).softmax(1)[:, 1]
        gains[score] = there.logit() - probability.logit()
    assert (gains["logit"] < 0.2).all()
    torch.testing.assert_close(gains["log_odds"], torch.full((5,), 2**0.5, dtype=torch.float64))


def test_an_agent_that_hears_nothing_gives_no_direction(code: Code, target: torch.Tensor) -> None:
    deaf = AgentScorer(lambda semantic: torch.zeros(len(semantic), 3, dtype=semantic.dtype))
    assert (shift_direction(deaf, code, target) == 0).all()
    still = AgentScorer(lambda semantic: 0 * semantic.sum((1, 2))[:, None] + torch.ones(3))
    assert (shift_direction(still, code, target) == 0).all()


def test_a_spatial_code_and_a_step_a_sample(target: torch.Tensor) -> None:
    code = Code(torch.randn(2, 1, 3, 4, 4), torch.randn(2, 1, 1, 1, 8, 8))
    agent = AgentScorer(lambda semantic: semantic.mean((1, 3, 4)))
    spread = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    direction = shift_direction(agent, code, target[:2], score="logit", covariance=spread_covariance(spread))
    moved = shifted(code, direction, torch.tensor([2.0, -1.0]))
    assert moved.stochastic is code.stochastic
    distance = ((moved.semantic - code.semantic) / spread).square().sum((1, 2, 3, 4)).sqrt()
    torch.testing.assert_close(distance, torch.tensor([2.0, 1.0]))
    assert (moved.semantic[0, 0, 0] > code.semantic[0, 0, 0]).all()
    assert (moved.semantic[1, 0, 1] < code.semantic[1, 0, 1]).all()
