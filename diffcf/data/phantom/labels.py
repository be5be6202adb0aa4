"""From attributes to labels: the stated tables, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from diffcf.errors import ConfigError


@dataclass(frozen=True)
class Logistic:
    """P(positive) = 1 / (1 + exp(-(intercept + sum of weight * (attribute - centre)))).

    terms: attribute -> (weight, centre).
    """

    intercept: float
    terms: Mapping[str, tuple[float, float]]

    def logit(self, attributes: Mapping[str, float]) -> float:
        """The logarithm of the odds."""
        return self.intercept + sum(
            weight * (attributes[name] - centre) for name, (weight, centre) in self.terms.items()
        )

    def probability(self, attributes: Mapping[str, float]) -> float:
        """Of the positive class, in [0, 1]."""
        return 0.5 * (1.0 + math.tanh(0.5 * self.logit(attributes)))


# A nodule is malignant. Ratings run from 1 to 5 as in LIDC, the diameter is in mm. The signs are those that
# radiologists go by: spiculated, lobulated, poorly defined and large speak for malignancy.
MALIGNANCY = Logistic(
    0.0,
    {
        "spiculation": (1.5, 2.6),
        "lobulation": (1.0, 2.6),
        "margin": (-0.6, 3.6),
        "sphericity": (-0.5, 3.6),
        "texture": (0.3, 4.0),
        "diameter": (0.3, 10.0),
    },
)

# A patient with fibrosis dies within a year; `extent` is the share of the lungs that is fibrotic. Even odds at a fifth
# of the lungs; from a share of 0.147 to one of 0.253 the probability rises from 0.04 to 0.96.
DEATH = Logistic(0.0, {"extent": (60.0, 0.2)})

# Size of a brain lesion and the share of scenes with it; grade 0 is no lesion.
LESION_GRADES = {0: 0.5, 1: 0.125, 2: 0.125, 3: 0.125, 4: 0.125}


def check_share(share: float | None) -> None:
    """Refuse a share of positives that cannot be made."""
    if share is not None and not 0.01 <= share <= 0.99:
        raise ConfigError(f"imbalance {share}: expected a share of positives from 0.01 to 0.99.")


def solve_increasing(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where an increasing function reaches a target, by bisection to about 1e-6 of the interval."""
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < target else (low, middle)
    return (low + high) / 2


def quantiles(count: int) -> np.ndarray:
    """The middles of `count` equal parts of [0, 1]."""
    return (np.arange(count) + 0.5) / count
