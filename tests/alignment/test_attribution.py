"""CCCE against structural models, closed forms and scikit-learn; what it finds of a phantom's known causes."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcf.alignment.attribution import (
    LogisticModel,
    TableModel,
    attribute,
    ccce,
    effects,
    flip,
    gains,
    likeliest,
    monotonicity,
    smallest,
    subsets,
)
from diffcf.data.phantom.labels import MALIGNANCY
from diffcf.data.phantom.nodule import DRAWN, nodule_draw
from diffcf.errors import ConfigError


def logistic(weights, intercept: float) -> LogisticModel:
    return LogisticModel(intercept, np.asarray(weights, dtype=float))


def cases(count: int, p: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (count, p))


def test_subsets_are_all_small_ones() -> None:
    assert subsets(2, 3).tolist() == [[False, False], [True, False], [False, True], [True, True]]
    assert len(subsets(6)) == 1 + 6 + 15 + 20
    with pytest.raises(ConfigError, match="at least 1"):
        subsets(0)


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(0, 3), min_size=3, max_size=3),
    intercept=st.floats(-3, 1),
    a=st.lists(st.integers(0, 1), min_size=3, max_size=3),
    label=st.integers(0, 1),
)
def test_ccce_is_the_effect_in_the_structural_model(weights, intercept: float, a: list[int], label: int) -> None:
    """E(Y_{S=1} - Y_{S=0} | a, y) by its definition, over a fine grid of the noise u, where Y_a = 1 if u < P(a)."""
    model = logistic(weights, intercept)
    u = (np.arange(40_000) + 0.5) / 40_000
    seen = (u < model(np.array([a]))) == bool(label)
    sets = subsets(3)
    [scores] = ccce(model, np.array([a]), np.array([label]), sets)
    for chosen, score in zip(sets, scores, strict=True):
        both = [np.where(chosen, value, a)[None] for value in (1, 0)]
        with_it, without = ((u < model(one)).astype(float) for one in both)
        if seen.sum() > 4000:
            assert score == pytest.approx((with_it - without)[seen].mean() if chosen.any() else 0, abs=2e-3)


def test_the_formula_as_printed_would_not_do_for_the_positive_class() -> None:
    """With A_S = 1 for y = 1, what speaks for the label would count for nothing and what does not for less."""
    model, a = logistic([2.0, 1.0], -1.0), np.array([[0, 1]])
    p = {cell: float(model(np.array([cell]))[0]) for cell in ((0, 0), (0, 1), (1, 1))}
    absent, present = ccce(model, a, np.array([1]), subsets(2)[1:3])[0]
    assert present == pytest.approx(1 - p[0, 0] / p[0, 1])
    assert absent == 0
    assert 1 - p[1, 1] / p[0, 1] < -0.5  # as printed, for S = {0}


@settings(max_examples=25, deadline=None)
@given(weights=st.lists(st.floats(0, 4), min_size=4, max_size=4), intercept=st.floats(-4, 4), seed=st.integers(0, 99))
def test_more_attributes_never_lower_the_score(weights, intercept: float, seed: int) -> None:
    a, labels = cases(20, 4, seed), cases(20, 1, seed + 1)[:, 0]
    sets = subsets(4)
    scores = ccce(logistic(weights, intercept), a, labels, sets)
    assert scores.min() >= -1e-12
    assert scores.max() <= 1
    for i, j in itertools.permutations(range(len(sets)), 2):
        if (sets[i] <= sets[j]).all():
            assert (scores[:, i] <= scores[:, j] + 1e-12).all()


def test_the_smallest_set_near_the_highest_score_is_chosen() -> None:
    sets = subsets(3)  # {}, 0, 1, 2, 01, 02, 12, 012
    scores = np.array([
        [0, 0.10, 0.50, 0.30, 0.88, 0.40, 0.86, 0.90],  # both pairs nearly reach 0.9: the higher
        [0, 0.50, 0.50, 0.10, 0.50, 0.50, 0.50, 0.50],  # a tie: the first
        [0, 0.01, 0.02, 0.00, 0.03, 0.01, 0.02, 0.03],  # nothing is a cause
    ])  # fmt: skip
    assert smallest(scores, sets, 0.05).tolist() == [4, 1, 0]
    assert smallest(scores, sets, 0.0).tolist() == [7, 1, 4]
    with pytest.raises(ConfigError, match="at least 0"):
        smallest(scores, sets, -0.1)


def test_attributes_that_do_nothing_are_never_chosen() -> None:
    a = cases(200, 5)
    labels = a[:, 1] | a[:, 3]
    found = attribute(logistic([0, 30, 0, 30, 0], -15), a, labels)
    assert not found.causal[:, [0, 2, 4]].any()
    both = (a[:, 1] & a[:, 3]).astype(bool)
    assert (found.causal[both][:, [1, 3]]).all()  # either suffices for a label of 1, so both have to go
    neither = labels == 0
    assert (found.causal[neither].sum(1) == 1).all()
    assert found.score.min() > 0.99
    assert (found.highest >= found.score).all()


def test_gains_are_the_probabilities_of_being_a_smallest_set_that_flips() -> None:
    model, rng = logistic([2.0, 1.0, 1.5, 0.5], -2.0), np.random.default_rng(0)
    sets = subsets(4)
    for a, label in (([1, 1, 1, 0], 1), ([0, 1, 0, 0], 0)):
        a = np.array([a])
        scores = ccce(model, a, np.array([label]), sets)
        u = rng.random(60_000)
        u = u[(u < model(a)) == bool(label)]
        flips = (u[:, None] < model(np.where(sets, 1 - label, a))) != bool(label)
        size = np.where(flips, sets.sum(1), 9)
        often = (flips & (size == size.min(1, keepdims=True))).mean(0)
        np.testing.assert_allclose(gains(scores, sets)[0], often, atol=0.02)
        assert likeliest(scores, sets)[0] == gains(scores, sets)[0].argmax()


def test_the_logistic_model_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    a = cases(300, 4)
    labels = (np.random.default_rng(1).random(300) < logistic([1, -2, 0.5, 0], 0.3)(a)).astype(int)
    for penalty in (1.0, 0.01):
        fitted = LogisticModel.fit(a, labels, penalty)
        other = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=1000).fit(a, labels)
        np.testing.assert_allclose(fitted.weights, other.coef_[0], atol=1e-5)
        assert fitted.intercept == pytest.approx(other.intercept_[0], abs=1e-5)


def test_separable_labels_keep_finite_weights() -> None:
    a = cases(100, 3)
    fitted = LogisticModel.fit(a, a[:, 1], 1e-6)
    assert np.isfinite(fitted.weights).all()
    assert ((fitted(a) > 0.5) == a[:, 1]).all()


def test_the_table_is_that_of_counts_and_prior() -> None:
    a = np.array([[0, 0]] * 4 + [[1, 0]] * 6 + [[0, 1]] * 2)
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 0])
    table = TableModel.fit(a, labels, strength=5.0)
    cells = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    prior = LogisticModel.fit(a, labels)(cells)
    expected = (np.array([1, 5, 1, 0]) + 5 * prior) / (np.array([4, 6, 2, 0]) + 5)
    np.testing.assert_allclose(table(cells), expected)
    np.testing.assert_allclose(effects(table, 2)[0], [expected[1] - expected[0], expected[3] - expected[2]])


def test_the_table_learns_an_interaction_that_the_logistic_model_cannot() -> None:
    a = cases(4000, 2)
    truth = np.array([[0.2, 0.2], [0.2, 0.9]])[a[:, 0], a[:, 1]]
    labels = (np.random.default_rng(1).random(4000) < truth).astype(int)
    table = TableModel.fit(a, labels)
    assert np.abs(table(a) - truth).max() < 0.04
    assert np.abs(table.prior(a) - truth).max() > 0.06


def test_an_attribute_that_runs_against_the_label_is_reported_and_flipped() -> None:
    a = cases(4000, 4)
    model = logistic([1.5, -1.5, 0.0, 1.0], -0.5)
    labels = (np.random.default_rng(1).random(4000) < model(a)).astype(int)
    found = monotonicity(a, labels)
    assert [one.against for one in found] == [False, True, False, False]
    assert [one.cells for one in found] == [8] * 4
    true = effects(model, 4)
    assert found[1].violated == 8
    assert found[1].worst == pytest.approx(-true[1].min(), abs=0.12)
    for one, exact in zip(found, true.mean(1), strict=True):
        assert one.effect == pytest.approx(exact, abs=0.04)
    assert found[0].violated == found[2].violated == found[3].violated == 0
    turned = flip(a, [one.against for one in found])
    assert (turned[:, 1] == 1 - a[:, 1]).all()
    again = monotonicity(turned, labels)
    assert not any(one.against or one.violated for one in again)
    assert again[1].effect == pytest.approx(-found[1].effect)


def test_monotone_labels_rarely_raise_an_alarm() -> None:
    """Nothing has an effect: at level 0.05 at most about one in twenty of the sets may report a violation."""
    alarms = 0
    for seed in range(100):
        found = monotonicity(cases(300, 3, seed), cases(300, 1, 1000 + seed)[:, 0])
        alarms += any(one.violated for one in found)
    assert alarms <= 10


def test_one_cell_of_an_interaction_is_found() -> None:
    a = cases(4000, 3)
    p = np.where((a[:, 1] == 1) & (a[:, 2] == 1), 0.8 - 0.5 * a[:, 0], 0.2 + 0.5 * a[:, 0])
    found = monotonicity(a, (np.random.default_rng(1).random(4000) < p).astype(int))
    assert (found[0].violated, found[0].falls, found[0].against) == (1, 1, False)
    assert found[0].worst == pytest.approx(0.5, abs=0.1)


def test_what_is_not_binary_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave out cases that are not rated"):
        LogisticModel.fit(np.array([[0, np.nan], [1, 0]]), np.array([0, 1]))
    with pytest.raises(ConfigError, match="labels are not 0 or 1"):
        TableModel.fit(np.eye(2), np.array([0, 2]))
    with pytest.raises(ConfigError, match="both 0 and 1"):
        LogisticModel.fit(np.eye(2), np.array([1, 1]))
    with pytest.raises(ConfigError, match="rules out"):
        ccce(lambda a: np.zeros(len(a)), np.eye(2), np.array([0, 1]), subsets(2))


# What the phantom's structural model says, with each case's own noise held fixed.
CAUSES = tuple(MALIGNANCY.terms)


def two_levels(seed: int) -> tuple[list[int], float]:
    """A nodule's attributes, 1 where they lie on the malignant side of their middle, and its label's noise."""
    drawn, noise = nodule_draw(seed)
    side = [(drawn[name] > DRAWN[name][0]) == (MALIGNANCY.terms[name][0] > 0) for name in CAUSES]
    return [int(one) for one in side], noise


def malignancy_logit(sides, sharpness: float) -> float:
    """Every attribute at the end of its range; the stated table, its logit times `sharpness`."""
    values = {}
    for name, side in zip(CAUSES, sides, strict=True):
        *_, low, high = DRAWN[name]
        values[name] = high if bool(side) == (MALIGNANCY.terms[name][0] > 0) else low
    return sharpness * MALIGNANCY.logit(values)


def malignant(sides, noise: float, sharpness: float) -> int:
    return int(noise < 1 / (1 + np.exp(-malignancy_logit(sides, sharpness))))


def smallest_sufficient(sides: list[int], noise: float, label: int, sharpness: float) -> list[tuple[int, ...]]:
    """The smallest sets of at most three attributes that flip this case's label when they speak against it."""
    for size in (1, 2, 3):
        flipping = []
        for chosen in itertools.combinations(range(len(sides)), size):
            turned = [1 - label if j in chosen else side for j, side in enumerate(sides)]
            if malignant(turned, noise, sharpness) != label:
                flipping.append(chosen)
        if flipping:
            return flipping
    return []


def causes_found(sharpness: float, rule: Literal["smallest", "likeliest"]) -> tuple[float, float, float]:
    """Shares of 600 nodules, fitted on 2000 others: a smallest sufficient set is found; what is found suffices; and
    the most that any rule could find that knows attributes, label and the true table (but not the noise)."""
    drawn = [two_levels(seed) for seed in range(3_000_000, 3_002_600)]
    a = np.array([sides for sides, _ in drawn])
    labels = np.array([malignant(sides, noise, sharpness) for sides, noise in drawn])
    model = TableModel.fit(a[:2000], labels[:2000])
    result = attribute(model, a[2000:], labels[2000:], rule=rule)
    hits, flips = [], []
    for (sides, noise), label, causal in zip(drawn[2000:], labels[2000:], result.causal, strict=True):
        truth = smallest_sufficient(sides, noise, int(label), sharpness)
        if truth:
            hits.append(tuple(np.flatnonzero(causal).tolist()) in truth)
            flips.append(malignant(np.where(causal, 1 - label, sides), noise, sharpness) != label)
    assert len(hits) > 550
    lowest = malignancy_logit([0] * 6, sharpness)
    weights = [malignancy_logit([int(j == k) for k in range(6)], sharpness) - lowest for j in range(6)]
    sets = subsets(6)
    scores = ccce(logistic(weights, lowest), a[2000:], labels[2000:], sets)
    most = gains(scores, sets).max(1) / scores.max(1)  # of cases in which some set suffices
    return float(np.mean(hits)), float(np.mean(flips)), float(np.average(most, weights=scores.max(1)))


def test_where_attributes_decide_the_smallest_causes_are_found() -> None:
    """Odds ten times as sharp as the phantom's: nine in ten cases and more, by either rule."""
    for rule in ("smallest", "likeliest"):
        found, suffices, most = causes_found(10.0, rule)
        assert found >= 0.9, (rule, found, most)
        assert suffices >= 0.98, (rule, suffices)


def test_where_noise_decides_what_is_found_suffices() -> None:
    """The phantom's own odds: how small a set would have done depends on noise that attributes do not tell. The rule
    of the paper finds sets that suffice; the likeliest ones are hit as often as anybody could who knew the table."""
    found, suffices, most = causes_found(1.0, "smallest")
    assert suffices >= 0.95
    assert 0.6 <= found <= most + 0.03
    assert most < 0.9
    likely, less, _ = causes_found(1.0, "likeliest")
    assert likely >= most - 0.04
    assert less < suffices
