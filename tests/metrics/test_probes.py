"""Cycles with a known loss, and the probe against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from diffcf.errors import ConfigError
from diffcf.metrics.classification import auc
from diffcf.metrics.probes import composition, linear_probe


def test_each_cycle_loses_what_it_loses() -> None:
    image = torch.zeros(2, 3, 1, 8, 8)
    found = composition(image, lambda x: x + torch.tensor([0.1, 0.2])[:, None, None, None, None], 3)
    expected = [[10 * np.log10(4 / (k * step) ** 2) for step in (0.1, 0.2)] for k in (1, 2, 3)]
    torch.testing.assert_close(found, torch.tensor(expected).float())
    assert torch.isinf(composition(image, lambda x: x, 2)).all()
    with pytest.raises(ConfigError, match="at least one"):
        composition(image, lambda x: x, 0)


@pytest.mark.parametrize(("features", "ridge"), [(6, 0.1), (6, 2.0), (150, 1.0)])
def test_the_probe_is_scikit_learn_s(features: int, ridge: float) -> None:
    torch.manual_seed(features)
    train, test = torch.randn(80, features) * 3 + 1, torch.randn(30, features) * 3 + 1
    labels = (train[:, 0] + torch.randn(80) > 1).long()
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=features / (ridge * 80), tol=1e-10, max_iter=10_000)  # C is on the sum of the losses
    model.fit(scaler.transform(train), labels)
    expected = model.decision_function(scaler.transform(test))
    np.testing.assert_allclose(linear_probe(train, labels, test, ridge), expected, rtol=1e-4, atol=1e-4)


def test_what_is_in_a_code_is_found_and_what_is_not_is_not() -> None:
    labels = torch.arange(400) % 2
    code = torch.randn(400, 60)
    code[:, 7] += 3 * labels
    told = linear_probe(code[:200], labels[:200], code[200:], ridge=10)
    assert auc(told.numpy(), labels[200:].numpy()) > 0.85
    noise = torch.randn(400, 60)
    noise[:, 3] = 1.0  # a channel that never varies
    told = linear_probe(noise[:200], labels[:200], noise[200:])
    assert 0.35 < auc(told.numpy(), labels[200:].numpy()) < 0.65


def test_a_probe_that_cannot_be_trained_is_refused() -> None:
    for labels, ridge in ((torch.zeros(6), 1.0), (torch.arange(6) % 2, 0.0), (torch.arange(5) % 2, 1.0)):
        with pytest.raises(ConfigError, match="ridge"):
            linear_probe(torch.randn(6, 3), labels, torch.randn(2, 3), ridge)
