"""Metrics of counterfactuals against figures worked out by hand and independent references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from diffcf.errors import ConfigError
from diffcf.metrics import counterfactual as m


def test_distances_and_sparsity_by_hand() -> None:
    change = torch.zeros(2, 1, 1, 4, 4)
    change[0, 0, 0, 0, :2] = torch.tensor([0.4, -0.8])
    torch.testing.assert_close(m.proximity_l1(change), torch.tensor([1.2 / 16, 0]))
    torch.testing.assert_close(m.proximity_l2(change), torch.tensor([math.sqrt(0.8 / 16), 0]))
    torch.testing.assert_close(m.sparsity(change), torch.tensor([2 / 16, 0]))


def test_precision_and_recall_of_a_cause() -> None:
    change = torch.zeros(3, 1, 1, 4, 4)
    change[0, 0, 0, 0, :2] = torch.tensor([0.4, -0.8])
    change[1, 0, 0, 3, 3] = 0.5
    cause = torch.zeros(3, 1, 1, 4, 4)
    cause[..., 0, 1:3] = 1
    precision, recall = m.cause_precision(change, cause), m.cause_recall(change, cause)
    torch.testing.assert_close(precision[:2], torch.tensor([0.8 / 1.2, 0]))
    torch.testing.assert_close(recall, torch.tensor([0.5, 0, 0]))
    assert precision[2].isnan()  # nothing changed
    assert m.cause_recall(change, 0 * cause).isnan().all()


def test_validity_asks_for_the_class_or_for_a_probability() -> None:
    probability = torch.tensor([[0.6, 0.4], [0.2, 0.8]])
    target = torch.tensor([0, 1])
    assert m.validity(probability, target).tolist() == [1, 1]
    assert m.validity(probability, target, 0.75).tolist() == [0, 1]


def test_cout_of_a_change_that_turns_at_once_and_of_one_that_never_does() -> None:
    """A black box that looks at one pixel: it turns with the first share put in, or not at all."""
    factual, edited = torch.zeros(2, 1, 1, 5, 4), torch.zeros(2, 1, 1, 5, 4)
    edited[:, 0, 0, 0, 0] = torch.tensor([1.0, 0.0])
    edited[:, 0, 0, 4, 3] = torch.tensor([0.1, 0.5])

    def probability(image: torch.Tensor) -> torch.Tensor:
        p = image[:, 0, 0, 0, 0]
        return torch.stack([1 - p, p], 1)

    label, target = torch.tensor([0, 0]), torch.tensor([1, 1])
    found = m.cout(factual, edited, probability, label, target, steps=20)
    # One pixel of twenty a step: -1 at the start, 1 from the first step on; trapezoid: 19 steps of 1 and one of 0.
    torch.testing.assert_close(found, torch.tensor([0.95, -1.0]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=6, max_size=12))
def test_rank_correlation_is_spearmans(values: list[int]) -> None:
    one = torch.tensor([values], dtype=torch.float64)
    other = torch.tensor([list(np.roll(values, 2) + np.arange(len(values)) % 3)], dtype=torch.float64)
    ours = float(m.rank_correlation(one, other))
    if len(set(values)) == 1 or len(set(other[0].tolist())) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(float(spearmanr(one[0], other[0]).statistic), abs=1e-9)


def test_diversity_of_equal_and_of_unrelated_answers() -> None:
    one = torch.zeros(1, 1, 1, 3, 3)
    one[..., 0, 0] = 1
    other = torch.zeros_like(one)
    other[..., 2, 2] = 2
    torch.testing.assert_close(m.diversity([one, 3 * one]), torch.zeros(1))
    torch.testing.assert_close(m.diversity([one, other]), torch.ones(1))
    torch.testing.assert_close(m.diversity([one, one, other]), torch.tensor([2 / 3]))
    assert m.diversity([one, 0 * one]).isnan().all()
    with pytest.raises(ConfigError, match="two or more"):
        m.diversity([one])


def test_identity_is_the_cosine() -> None:
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(m.identity(features, 2 * features), torch.ones(5))
    torch.testing.assert_close(m.identity(features, -features), -torch.ones(5))


def test_as_a_torchmetrics_metric_over_batches() -> None:
    metric = m.MeanOf(m.proximity_l1)
    changes = torch.rand(10, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for part in changes.split(3):
        metric.update(part)
    torch.testing.assert_close(metric.compute(), m.proximity_l1(changes).mean())
    metric.reset()
    metric.update(changes[:2])
    torch.testing.assert_close(metric.compute(), m.proximity_l1(changes[:2]).mean())
