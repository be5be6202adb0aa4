"""The search for a step, against functions whose crossing is known."""

from __future__ import annotations

import pytest
import torch

from diffcf.counterfactuals import StepSearch, find_step
from diffcf.errors import ConfigError

SLOPES = torch.tensor([0.05, 0.3, 1.0, 7.0], dtype=torch.float64)
OFFSETS = torch.tensor([-1.0, -3.0, -0.1, -5.0], dtype=torch.float64)


def sigmoid_line(index, step):
    return torch.sigmoid(OFFSETS[index] + SLOPES[index] * step)


@pytest.mark.parametrize("probability", [0.4, 0.75, 0.95])
@pytest.mark.parametrize("first", [0.05, 1.0, 20.0])
def test_the_crossing_of_a_rising_function(probability: float, first: float) -> None:
    search = StepSearch(probability, evaluations=60, tolerance=0, resolution=1e-6, longest=1000)
    start = torch.sigmoid(OFFSETS)
    found = find_step(sigmoid_line, start, torch.full_like(start, first), search)
    logit = torch.tensor(probability, dtype=torch.float64).logit()
    exact = ((logit - OFFSETS) / SLOPES).clamp(min=0)
    assert found.reached.all()
    assert found.converged.all()
    torch.testing.assert_close(found.step, exact, rtol=2e-6, atol=0)
    assert (found.step >= exact).all()  # the asked probability is reached, not nearly reached
    assert (found.probability >= probability).all()
    assert (found.bracket <= 1.1e-6 * found.step).all()


def test_each_sample_is_evaluated_until_its_own_search_ends() -> None:
    asked = []

    def counted(index, step):
        asked.extend(index.tolist())
        return sigmoid_line(index, step)

    start = torch.sigmoid(OFFSETS)
    found = find_step(counted, start, torch.ones_like(start), StepSearch(0.4, evaluations=30, longest=1000))
    assert [asked.count(i) for i in range(4)] == found.evaluations.tolist()
    assert found.evaluations[2] == 0  # sigmoid(-0.1) is past 0.4 already
    assert found.step[2] == 0
    assert found.round[2] == -1
    assert len(set(found.evaluations.tolist())) > 2


def test_tolerance_ends_the_search_early() -> None:
    start = torch.sigmoid(OFFSETS)
    loose = find_step(sigmoid_line, start, torch.ones_like(start), StepSearch(tolerance=0.1, longest=1000))
    tight = find_step(sigmoid_line, start, torch.ones_like(start), StepSearch(tolerance=1e-3, longest=1000))
    assert ((loose.probability - 0.75) <= 0.1)[loose.converged].all()
    assert loose.evaluations.sum() < tight.evaluations.sum()


@pytest.mark.parametrize("probability", [0.75, 0.95, 0.98, 0.99, 0.999])
def test_the_default_tolerance_is_one_of_the_step(probability: float) -> None:
    """Near 1 a score hardly rises, so that one that is 0.02 too high would be far too far."""
    exact = torch.tensor(probability).logit() / 4.4
    start, first = torch.tensor([0.5]), torch.tensor([0.98 * float(exact)])
    found = find_step(lambda _, step: torch.sigmoid(4.4 * step), start, first, StepSearch(probability))
    assert bool(found.converged)
    assert 1 <= float(found.step / exact) < 1.08


def test_what_solvers_aim_at_lies_beyond_what_is_asked() -> None:
    assert StepSearch().beyond(0.9) == pytest.approx(0.9)
    assert StepSearch(0.5).beyond(0.9) == pytest.approx(0.9)
    assert StepSearch(0.9).beyond(0.9) == pytest.approx(27 / 28)  # odds of 9 to 1, and 3 times those
    assert StepSearch(0.9).beyond(0.6) == pytest.approx(0.9)


def test_an_answer_that_stands_is_not_come_back_from() -> None:
    """Where it falls short, what is found further on is as small as any."""
    start, first = torch.sigmoid(OFFSETS), torch.full((4,), 1.0, dtype=torch.float64)
    found = find_step(sigmoid_line, start, first, StepSearch(0.5, longest=1000, evaluations=40), stands=True)
    exact = -OFFSETS / SLOPES
    assert found.converged.all()
    assert found.step[[2, 3]].tolist() == [1, 1]
    assert ((found.step / exact)[:2] < 1.1).all()


def test_a_sample_may_have_an_end_of_its_own() -> None:
    longest = torch.tensor([15.0, 1000, 0, 1000], dtype=torch.float64)
    start = torch.sigmoid(OFFSETS)
    found = find_step(sigmoid_line, start, torch.ones_like(start), StepSearch(0.6, longest=500), longest=longest)
    assert found.reached.tolist() == [False, True, False, True]
    assert float(found.step[0]) == 15
    assert (float(found.step[2]), int(found.evaluations[2])) == (0, 0)


def test_what_cannot_be_reached_is_said_and_the_best_point_kept() -> None:
    def hill(index, step):  # highest at step 5, never 0.75; the second falls from the start
        return torch.where(index == 0, 0.6 - 0.02 * (step - 5).abs(), 0.3 - 0.01 * step)

    found = find_step(hill, torch.tensor([0.2, 0.3]), torch.ones(2), StepSearch(longest=16))
    assert not found.reached.any()
    assert not found.converged.any()
    assert found.step.tolist() == pytest.approx([5.0, 0.0], abs=0.5)
    assert found.probability.tolist() == pytest.approx([0.6, 0.3], abs=0.01)
    assert found.evaluations[0] > 5  # 1, 2, 4, 8, 16, and then beside 4
    assert torch.isinf(found.bracket).all()


@pytest.mark.parametrize("first", [0.3, 1.375, 6.0])
def test_a_peak_between_doubled_steps_is_found(first: float) -> None:
    def hill(index, step):  # above 0.75 from 1.9 to 2.5 only
        return 0.8 - 0.5 * (step - 2.2).square()

    found = find_step(hill, torch.tensor([0.1]), torch.tensor([first]), StepSearch(evaluations=14))
    assert found.reached.all()
    assert 1.88 <= float(found.step) <= 2.52
    assert float(found.probability) >= 0.75


def test_a_budget_that_runs_out_keeps_what_it_has() -> None:
    start = torch.sigmoid(OFFSETS)
    found = find_step(sigmoid_line, start, torch.full_like(start, 16.0), StepSearch(evaluations=2, tolerance=0))
    assert found.evaluations.tolist() == [2, 2, 2, 2]
    assert found.reached.tolist() == [False, True, True, True]
    assert not found.converged.any()
    assert torch.isfinite(found.bracket).tolist() == [False, True, True, True]


def test_a_score_that_is_not_a_number_is_never_reached() -> None:
    found = find_step(lambda index, step: torch.full_like(step, torch.nan), torch.zeros(2), torch.ones(2), StepSearch())
    assert not found.reached.any()
    assert found.step.tolist() == [0, 0]


@pytest.mark.parametrize(
    "wrong", [{"probability": 0.0}, {"probability": 1.0}, {"evaluations": 0}, {"longest": 0.0}, {"tolerance": -1.0}]
)
def test_settings_that_cannot_be_meant(wrong) -> None:
    with pytest.raises(ConfigError, match="expected"):
        StepSearch(**wrong)


def test_only_the_chosen_are_searched() -> None:
    start = torch.sigmoid(OFFSETS)
    among = torch.tensor([True, False, True, False])
    asked: list[int] = []

    def line(index, step):
        asked.extend(index.tolist())
        return sigmoid_line(index, step)

    found, alone = (
        find_step(line, start, torch.ones(4).to(start), StepSearch(), among),
        find_step(sigmoid_line, start, torch.ones(4).to(start), StepSearch()),
    )
    assert set(asked) == set((among & (start < 0.75)).nonzero().squeeze(1).tolist())
    assert found.step.tolist() == torch.where(among, alone.step, 0).tolist()
    assert found.evaluations.tolist() == torch.where(among, alone.evaluations, 0).tolist()
    assert found.reached.tolist() == torch.where(among, alone.reached, start >= 0.75).tolist()
