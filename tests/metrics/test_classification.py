"""Classification figures against scikit-learn, torchmetrics and cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torchmetrics.functional.classification import multiclass_calibration_error

from diffcf.errors import ConfigError
from diffcf.metrics.classification import (
    accuracy,
    auc,
    auprc,
    balanced_accuracy,
    bootstrap_interval,
    expected_calibration_error,
    f1,
    figures_of,
    sensitivity,
    specificity,
)

CASES = [(seed, levels) for seed in range(6) for levels in (3, 12, None)]  # few levels: many ties


def drawn(seed: int, levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.random(67) < 0.3
    scores = random.normal(size=67) + truth
    return (scores if levels is None else np.round(scores * levels / 4) / levels), truth


@pytest.mark.parametrize(("seed", "levels"), CASES)
def test_scores_equal_scikit_learn(seed: int, levels: int | None) -> None:
    scores, truth = drawn(seed, levels)
    assert auc(scores, truth) == pytest.approx(reference.roc_auc_score(truth, scores), abs=1e-12)
    assert auprc(scores, truth) == pytest.approx(reference.average_precision_score(truth, scores), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_decisions_equal_scikit_learn(seed: int) -> None:
    scores, truth = drawn(seed, None)
    said = scores > 0.4
    assert accuracy(said, truth) == pytest.approx(reference.accuracy_score(truth, said))
    assert balanced_accuracy(said, truth) == pytest.approx(reference.balanced_accuracy_score(truth, said))
    assert sensitivity(said, truth) == pytest.approx(reference.recall_score(truth, said))
    assert specificity(said, truth) == pytest.approx(reference.recall_score(truth, said, pos_label=False))
    assert f1(said, truth) == pytest.approx(reference.f1_score(truth, said))
    many, other = np.random.default_rng(seed).integers(4, size=(2, 50))
    assert accuracy(many, other) == pytest.approx(reference.accuracy_score(other, many))
    assert balanced_accuracy(many, other) == pytest.approx(reference.balanced_accuracy_score(other, many))


def test_by_hand() -> None:
    truth = [0, 0, 1, 1]
    assert auc([0.1, 0.4, 0.35, 0.8], truth) == 0.75
    assert auc([1, 1, 1, 1], truth) == 0.5
    assert auprc([1, 1, 1, 1], truth) == 0.5
    assert auprc([0.1, 0.2, 0.3, 0.4], truth) == 1.0
    assert f1([1, 0, 1, 0], truth) == 0.5


@pytest.mark.parametrize("figure", [auc, auprc, sensitivity, f1])
def test_undefined_without_positive_cases(figure) -> None:
    assert math.isnan(figure(np.zeros(4), np.zeros(4, dtype=bool)))


@pytest.mark.parametrize("figure", [auc, specificity, balanced_accuracy])
def test_undefined_without_negative_cases(figure) -> None:
    assert math.isnan(figure(np.ones(4), np.ones(4, dtype=bool)))


@pytest.mark.parametrize("figure", [auc, auprc, accuracy, balanced_accuracy, sensitivity, specificity, f1])
def test_nothing_is_undefined_and_unequal_lengths_are_refused(figure) -> None:
    assert math.isnan(figure(np.zeros(0), np.zeros(0, dtype=bool)))
    with pytest.raises(ConfigError, match="same length"):
        figure(np.zeros(3), np.zeros(4))


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="finite"):
        auc([0.1, float("nan")], [0, 1])


@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_equals_torchmetrics(bins: int) -> None:
    probability = torch.randn(300, 3).mul(2).double().softmax(1)
    truth = torch.randint(3, (300,))
    expected = multiclass_calibration_error(probability, truth, num_classes=3, n_bins=bins)
    found = expected_calibration_error(probability.numpy(), truth.numpy(), bins)
    assert found == pytest.approx(float(expected), abs=1e-6)
    assert expected_calibration_error([[1.0, 0.0], [0.0, 1.0]], [0, 0]) == 0.5


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(lambda index: values[index].mean(), groups=range(400), resamples=4000, level=0.9)
    half = 1.6449 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_groups_are_drawn_whole() -> None:
    groups = ["a"] * 3 + ["b"] * 2 + ["c"]
    seen = []

    def statistic(index: np.ndarray) -> float:
        seen.append(np.bincount(index, minlength=6))
        return 0.0

    assert bootstrap_interval(statistic, groups=groups, resamples=50) == (0.0, 0.0)
    for count in seen:
        a, b, c = count[0], count[3], count[5]
        assert count.tolist() == [a] * 3 + [b] * 2 + [c]
        assert a + b + c == 3
    assert len({tuple(count) for count in seen}) > 3


def test_cases_of_one_patient_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(1).normal(size=40), 10)

    def width(groups: list[int]) -> float:
        low, high = bootstrap_interval(lambda index: values[index].mean(), groups=groups, resamples=500)
        return high - low

    assert width([case // 10 for case in range(400)]) > 2 * width(list(range(400)))


def test_nan_resamples_are_skipped_and_seeds_repeat() -> None:
    truth = np.array([True] + [False] * 5)
    scores = np.arange(6.0)[::-1]

    def once(seed: int) -> tuple[float, float]:
        return bootstrap_interval(lambda i: auc(scores[i], truth[i]), groups=range(6), resamples=60, seed=seed)

    assert once(0) == (1.0, 1.0)
    noisy = np.random.default_rng(0).normal(size=30)
    intervals = [
        bootstrap_interval(lambda index: noisy[index].mean(), groups=range(30), resamples=50, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert intervals[0] == intervals[1] != intervals[2]
    assert np.isnan(bootstrap_interval(lambda index: float("nan"), groups=[1, 2], resamples=5)).all()


@pytest.mark.parametrize("wrong", [{"groups": []}, {"resamples": 0}, {"level": 1.0}])
def test_settings_without_meaning_are_refused(wrong) -> None:
    with pytest.raises(ConfigError, match="expected at least one"):
        bootstrap_interval(lambda index: 0.0, **{"groups": [1], **wrong})


def test_any_class_but_the_first_against_the_first() -> None:
    probability = np.array([[0.7, 0.1, 0.2], [0.2, 0.7, 0.1], [0.3, 0.1, 0.6], [0.6, 0.3, 0.1], [0.4, 0.5, 0.1]])
    truth = np.array([0, 1, 1, 2, 0])
    found = figures_of(probability, truth, None)
    assert found["auc"] == pytest.approx(reference.roc_auc_score(truth > 0, 1 - probability[:, 0]))
    assert (found["sensitivity"], found["specificity"]) == (pytest.approx(2 / 3), 0.5)
    assert found["accuracy"] == figures_of(probability, truth)["accuracy"] == pytest.approx(0.4)
    two = probability[:, :2] / probability[:, :2].sum(1, keepdims=True)
    for key, value in figures_of(two, truth > 0, None).items():
        assert value == pytest.approx(figures_of(two, truth > 0)[key]), key
