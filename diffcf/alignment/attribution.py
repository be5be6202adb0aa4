"""Which attributes caused a label: the conditional counterfactual causal effect (paper 001, section 4.3).

For a case with binary attributes a and label y, and a subset S of attributes, paper 001 takes over from Zhao et al.
(2023) CCCE(S) = E(Y_{A_S=1} - Y_{A_S=0} | A = a, Y = y), where the attributes outside of S keep their values.

Assumptions: no confounding (every Y_a is independent of A), no attribute causes another one, Y_a <= Y_a' wherever
a <= a' (monotonicity), and P(Y = y | A = a) > 0. Under them, with P(S = v) short for P(Y=1 | A_S = v, A_-S = a_-S):

- y = 1. Y_{A_S=1} >= Y_a = 1, so the first term is 1. Y_{A_S=0} = 1 implies Y_a = 1, so the second is
  P(Y_{A_S=0} = 1, Y_a = 1 | a) / P(Y_a = 1 | a) = P(S = 0) / P(Y=1 | a), without confounding.
  CCCE(S) = 1 - P(Y=1 | A_S=0, a_-S) / P(Y=1 | a).
- y = 0. Y_{A_S=0} <= Y_a = 0, so the second term is 0. Y_{A_S=1} = 0 implies Y_a = 0, so the first is
  CCCE(S) = 1 - P(Y=0 | A_S=1, a_-S) / P(Y=0 | a).

The paper prints the second line's S = 1 for either y, which for y = 1 would give scores of at most 0. In both cases
the score is the probability that the label would have flipped had the attributes in S spoken against it. It never falls
for supersets, so "the subset with the highest score" is read as the smallest of those that nearly reach it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from einops import rearrange, repeat
from scipy.stats import hypergeom, norm

from diffcf.errors import ConfigError

ProbabilityModel = Callable[[np.ndarray], np.ndarray]  # attributes "m p" of 0 and 1 -> P(Y=1 | a) "m"
MOST_ATTRIBUTES = 16  # of a table: 2 ** 16 cells
DIGITS = 9  # to which scores are compared, so that rounding decides no tie


@dataclass(frozen=True, eq=False)
class LogisticModel:
    """P(Y=1 | a) = 1 / (1 + exp(-(intercept + weights . a))); weights "p"."""

    intercept: float
    weights: np.ndarray

    @classmethod
    def fit(cls, attributes: np.ndarray, labels: np.ndarray, penalty: float = 0.1) -> LogisticModel:
        """Maximum likelihood with penalty / 2 * |weights|^2, which keeps them finite where classes can be separated.

        attributes: "n p", labels: "n", of 0 and 1. Newton's method; the intercept is not penalised.

        Errors: ConfigError for anything but 0 and 1, labels of one class only, and a penalty that is not positive.
        """
        attributes, labels = binary_cases(attributes, labels)
        if penalty <= 0 or len(np.unique(labels)) < 2:
            raise ConfigError(
                f"penalty {penalty:g}, labels {sorted(set(labels.tolist()))}: expected a penalty above 0, and both 0 "
                "and 1 among the labels."
            )
        design = np.column_stack([np.ones(len(labels)), attributes])
        ridge = np.full(design.shape[1], float(penalty))
        ridge[0] = 0.0

        def cost(at: np.ndarray) -> float:
            score = design @ at
            return float(np.sum(np.logaddexp(0, score) - labels * score) + ridge @ at**2 / 2)

        weights = np.zeros(design.shape[1])
        for _ in range(100):
            p = _logistic(design @ weights)
            gradient = design.T @ (p - labels) + ridge * weights
            curvature = (design * (p * (1 - p))[:, None]).T @ design + np.diag(ridge)
            step = np.linalg.solve(curvature, gradient)
            while cost(weights - step) > cost(weights) and np.abs(step).max() > 1e-10:
                step = step / 2
            weights = weights - step
            if np.abs(step).max() <= 1e-10:
                break
        return cls(float(weights[0]), weights[1:])

    def __call__(self, attributes: np.ndarray) -> np.ndarray:
        """P(Y=1 | a) "m" of attributes "m p"."""
        return _logistic(self.intercept + np.asarray(attributes, dtype=np.float64) @ self.weights)


@dataclass(frozen=True, eq=False)
class TableModel:
    """P(Y=1 | a) as a table over the cells of attributes, smoothed towards a logistic model.

    P = (positives + strength * prior(a)) / (cases + strength): the logistic model counts as `strength` cases in every
    cell. Most cells are thin, and a prior that is the same in all of them (a beta prior) would pull thin cells to one
    value: it would make P fall where an attribute leads from a full cell to an empty one, and empty cells would differ
    in nothing. The logistic model orders them as the attributes' common effects do; where there are many cases, the
    table has the last word and may tell interactions.

    cases, positives: "2^p", by cell; attribute j is bit j of the cell's number.
    """

    cases: np.ndarray
    positives: np.ndarray
    prior: LogisticModel
    strength: float

    @classmethod
    def fit(
        cls, attributes: np.ndarray, labels: np.ndarray, strength: float = 10.0, penalty: float = 0.1
    ) -> TableModel:
        """Count the cells and fit the prior. attributes: "n p", labels: "n", of 0 and 1.

        Errors: as `LogisticModel.fit`; ConfigError for more than 16 attributes and a strength that is not positive.
        """
        attributes, labels = binary_cases(attributes, labels)
        if attributes.shape[1] > MOST_ATTRIBUTES or strength <= 0:
            raise ConfigError(
                f"{attributes.shape[1]} attributes, strength {strength:g}: expected at most {MOST_ATTRIBUTES} "
                "attributes (or take the logistic model), and a strength above 0."
            )
        cell, count = cells_of(attributes), 2 ** attributes.shape[1]
        prior = LogisticModel.fit(attributes, labels, penalty)
        positives = np.bincount(cell, weights=labels, minlength=count)
        return cls(np.bincount(cell, minlength=count).astype(np.float64), positives, prior, float(strength))

    def __call__(self, attributes: np.ndarray) -> np.ndarray:
        """P(Y=1 | a) "m" of attributes "m p"."""
        cell = cells_of(attributes)
        return (self.positives[cell] + self.strength * self.prior(attributes)) / (self.cases[cell] + self.strength)


@dataclass(frozen=True, eq=False)
class Attribution:
    """What was found for every case.

    causal: bool "n p", the chosen subset, r of paper 001. score: "n", its CCCE. highest: "n", of any subset.
    """

    causal: np.ndarray
    score: np.ndarray
    highest: np.ndarray


@dataclass(frozen=True)
class Monotonicity:
    """Does P(Y=1 | a) rise with one attribute? Over the cells of the others that hold cases with it and without.

    effect: P with it minus P without, the mean over cells with Mantel-Haenszel weights. z: Cochran's statistic of no
    effect in any cell. cells: compared. falls: cells in which P is lower with it. violated: those among them in which
    it is so beyond sampling error (Fisher's exact test). worst: the greatest fall among the violated cells, 0 where
    there are none. against: it lowers P beyond sampling error over all cells, so that it is to be flipped.
    """

    attribute: int
    effect: float
    z: float
    cells: int
    falls: int
    violated: int
    worst: float
    against: bool


def subsets(count: int, most: int = 3) -> np.ndarray:
    """All subsets of `count` attributes with at most `most`, bool "k p": the empty one first, then by size and order.

    Errors: ConfigError where count or most is below 1.
    """
    if count < 1 or most < 1:
        raise ConfigError(f"subsets of at most {most} of {count} attributes: expected at least 1 of both.")
    chosen = [one for size in range(min(most, count) + 1) for one in itertools.combinations(range(count), size)]
    return np.array([[j in one for j in range(count)] for one in chosen])


def ccce(model: ProbabilityModel, attributes: np.ndarray, labels: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """CCCE "n k" of every case and subset (paper 001, section 4.3, as derived at the top of this file).

    model: P(Y=1 | a). attributes: "n p", labels: "n", of 0 and 1. sets: bool "k p". It is 0 for the empty set; a score
    below 0 says that the model is not monotone there.

    Errors: ConfigError for anything but 0 and 1, and where the model gives a label that was seen no probability.
    """
    attributes, labels = binary_cases(attributes, labels)
    against = repeat(1 - labels, "n -> n k p", k=len(sets), p=attributes.shape[1])
    changed = np.where(sets[None], against, attributes[:, None, :])

    def of_label(p: np.ndarray, label: np.ndarray) -> np.ndarray:
        return np.where(label == 1, p, 1 - p)

    seen = of_label(model(attributes), labels)
    if not (seen > 0).all():
        raise ConfigError(
            f"{int((~(seen > 0)).sum())} case(s) have a label that the probability model rules out; smooth it more."
        )
    kept = rearrange(model(rearrange(changed, "n k p -> (n k) p")), "(n k) -> n k", k=len(sets))
    return 1 - of_label(kept, labels[:, None]) / seen[:, None]


def smallest(scores: np.ndarray, sets: np.ndarray, tolerance: float = 0.1) -> np.ndarray:
    """Of every case the index "n" of the smallest subset whose score is within `tolerance` of the highest.

    0.1 is about the standard error of a probability that is read from 25 cases.

    scores: "n k", sets: bool "k p". Among several of a size the one with the highest score, then the first. The empty
    set is chosen where no score is above `tolerance`: no attribute is a cause then.

    Errors: ConfigError for a tolerance below 0.
    """
    if tolerance < 0:
        raise ConfigError(f"tolerance {tolerance:g}: expected at least 0.")
    rounded = np.round(scores, DIGITS)
    near = rounded >= rounded.max(1, keepdims=True) - tolerance
    size = np.where(near, sets.sum(1)[None], sets.shape[1] + 1)
    best = np.where(size == size.min(1, keepdims=True), rounded, -np.inf)
    return best.argmax(1)


def gains(scores: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """By how much every score is above all those of smaller subsets, at least 0; "n k", 0 for the empty set.

    Where Y_a = 1 wherever P(Y=1 | a) is above one number that is the case's own and independent of A, this is the
    probability that the subset is a smallest one that flips the label, given the case's attributes and label. No rule
    that knows no more than these can hit a smallest sufficient subset more often than the highest gain says.
    """
    size = sets.sum(1)
    below = np.stack([scores[:, size < own].max(1, initial=0.0) for own in size], axis=1)
    return np.where(size[None] > 0, np.maximum(scores - below, 0.0), 0.0)


def likeliest(scores: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Of every case the index "n" of the subset that is most probably a smallest one to flip the label.

    scores: "n k", sets: bool "k p". It has the highest `gains`; ties go to the smaller, then to the first.
    """
    return np.round(gains(scores, sets), DIGITS).argmax(1)


def attribute(
    model: ProbabilityModel,
    attributes: np.ndarray,
    labels: np.ndarray,
    *,
    most: int = 3,
    tolerance: float = 0.1,
    rule: Literal["smallest", "likeliest"] = "smallest",
) -> Attribution:
    """The attributes that caused each label: the smallest subset that nearly reaches the highest CCCE.

    model: P(Y=1 | a). attributes: "n p", labels: "n", of 0 and 1. most: attributes of a subset, as in paper 001.
    tolerance: see `smallest`. rule: `smallest`, which mostly suffices but may be larger than this case needed, or
    `likeliest`, which hits a smallest sufficient subset most often.

    Errors: as `ccce`, `subsets` and `smallest`.
    """
    sets = subsets(np.asarray(attributes).shape[1], most)
    scores = ccce(model, attributes, labels, sets)
    best = likeliest(scores, sets) if rule == "likeliest" else smallest(scores, sets, tolerance)
    return Attribution(sets[best], scores[np.arange(len(best)), best], scores.max(1))


def monotonicity(attributes: np.ndarray, labels: np.ndarray, alpha: float = 0.05) -> list[Monotonicity]:
    """Whether the label's probability rises with each attribute, in every cell of the others.

    attributes: "n p", labels: "n", of 0 and 1. alpha: probability of any false alarm among all cells (and among all
    attributes for `against`) where P rises everywhere or stays: levels are divided by the number of tests (Bonferroni).

    Errors: ConfigError for anything but 0 and 1, and alpha outside (0, 1).
    """
    attributes, labels = binary_cases(attributes, labels)
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha {alpha:g}: expected a number between 0 and 1.")
    count = attributes.shape[1]
    counts = [_by_cell(np.delete(attributes, j, axis=1), attributes[:, j], labels) for j in range(count)]
    tests = max(sum(len(one[0]) for one in counts), 1)
    found = []
    for j, (n1, n0, k1, k0) in enumerate(counts):
        n, k = n1 + n0, k1 + k0
        fall = k0 / n0 - k1 / n1
        weight = n1 * n0 / n
        chance = hypergeom.cdf(k1, n, k, n1)  # as few positives with it as there are, were they the same as without
        violated = (fall > 0) & (chance <= alpha / tests)
        spread = np.sum(n1 * n0 * k * (n - k) / (n**2 * np.maximum(n - 1, 1)))
        z = float(np.sum(k1 - n1 * k / n) / np.sqrt(spread)) if spread > 0 else 0.0
        found.append(
            Monotonicity(
                attribute=j,
                effect=float(-(weight @ fall) / weight.sum()) if len(n) else 0.0,
                z=z,
                cells=len(n),
                falls=int((fall > 0).sum()),
                violated=int(violated.sum()),
                worst=float(fall[violated].max(initial=0.0)),
                against=bool(norm.cdf(z) <= alpha / count),
            )
        )
    return found


def flip(attributes: np.ndarray, against: Sequence[bool] | np.ndarray) -> np.ndarray:
    """Attributes "n p" of 0 and 1 with those turned round that run against the label; against: bool "p"."""
    return np.where(np.asarray(against, dtype=bool), 1 - np.asarray(attributes), attributes)


def effects(model: ProbabilityModel, count: int) -> np.ndarray:
    """P(Y=1) with each attribute minus without it, in every cell of the others: "p c". Below 0 it is not monotone."""
    cells = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    p = model(cells)
    return np.stack([p[cells[:, j] == 1] - p[cells[:, j] == 0] for j in range(count)])


def cells_of(attributes: np.ndarray) -> np.ndarray:
    """The number "n" of the cell that attributes "n p" of 0 and 1 lie in: attribute j is bit j."""
    attributes = np.asarray(attributes).astype(np.int64)
    return attributes @ (1 << np.arange(attributes.shape[1]))


def binary_cases(attributes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attributes "n p" and labels "n" as int64. Errors: ConfigError where they do not fit or are not all 0 or 1."""
    attributes, labels = np.asarray(attributes), np.asarray(labels)
    if attributes.ndim != 2 or labels.shape != attributes.shape[:1] or not attributes.size:
        raise ConfigError(f"attributes {attributes.shape}, labels {labels.shape}: expected 'n p' and 'n', not empty.")
    for name, values in (("attributes", attributes), ("labels", labels)):
        if not np.isin(values, (0, 1)).all():
            strange = values[~np.isin(values, (0, 1))].ravel()
            raise ConfigError(
                f"{len(strange)} of the {name} are not 0 or 1 (the first: {strange[0]}); leave out cases that are not "
                "rated and make binary what has grades."
            )
    return attributes.astype(np.int64), labels.astype(np.int64)


def _by_cell(others: np.ndarray, own: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cases with and without an attribute, and their positives, by cell of the others; cells that have both only."""
    _, place = np.unique(cells_of(others), return_inverse=True)
    n1, n0, k1, k0 = (np.bincount(place, weights=what) for what in (own, 1 - own, own * labels, (1 - own) * labels))
    both = (n1 > 0) & (n0 > 0)
    return n1[both], n0[both], k1[both], k0[both]


def _logistic(score: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(score / 2))
