"""How good decisions and scores are: pure functions on arrays, one number each, NaN where a figure is undefined.

`truth` and `said` of the two-class figures are boolean "n" (or 0 and 1), True = the class the figure is about; `scores`
are real "n", higher = more likely True. Ties between scores are handled exactly, not in the order they come in.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from diffcf.errors import ConfigError

NAN = float("nan")


def auc(scores: Any, truth: Any) -> float:
    """Area under the ROC curve: the chance that a positive case scores higher than a negative one, ties count half.

    Undefined without both. Errors: ConfigError for arrays of different length and scores that are not finite.
    """
    values, positive = _scored(scores, truth)
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return NAN
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.cumsum(sizes) - (sizes - 1) / 2  # the mean rank of each group of equal scores, from 1
    return float((rank[place][positive].sum() - count * (count + 1) / 2) / (count * others))


def auprc(scores: Any, truth: Any) -> float:
    """Area under the precision-recall curve as average precision, sum over thresholds of (R_n - R_(n-1)) P_n.

    Equal scores share a threshold. Undefined without a positive case. Errors: as `auc`.
    """
    values, positive = _scored(scores, truth)
    if not positive.any():
        return NAN
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)
    found = np.cumsum(positive[order])[ends]
    recall = found / found[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * found / (ends + 1)))


def accuracy(said: Any, truth: Any) -> float:
    """Share of equal classes; `said` and `truth` are class indices "n"."""
    said, truth = _pair(said, truth)
    return float(np.mean(said == truth)) if len(truth) else NAN


def balanced_accuracy(said: Any, truth: Any) -> float:
    """Mean over the classes of `truth` of the share of their cases that were recognised; class indices "n".

    Undefined where `truth` holds fewer than two classes.
    """
    said, truth = _pair(said, truth)
    classes = np.unique(truth)
    if len(classes) < 2:
        return NAN
    return float(np.mean([np.mean(said[truth == one] == one) for one in classes]))


def sensitivity(said: Any, truth: Any) -> float:
    """TP / (TP + FN); undefined without a positive case."""
    said, truth = _pair(said, truth, boolean=True)
    return float(np.mean(said[truth])) if truth.any() else NAN


def specificity(said: Any, truth: Any) -> float:
    """TN / (TN + FP); undefined without a negative case."""
    said, truth = _pair(said, truth, boolean=True)
    return float(np.mean(~said[~truth])) if not truth.all() else NAN


def f1(said: Any, truth: Any) -> float:
    """2 TP / (2 TP + FP + FN); undefined where there is no positive case and none was said."""
    said, truth = _pair(said, truth, boolean=True)
    total = int(said.sum() + truth.sum())
    return float(2 * np.sum(said & truth) / total) if total else NAN


def expected_calibration_error(probability: Any, truth: Any, bins: int = 15) -> float:
    """Mean |confidence - accuracy| over equal bins of confidence, weighted by the cases in each (Guo et al. 2017).

    probability: "n k", rows sum to 1; the confidence is the largest. truth: class indices "n".
    Errors: ConfigError for shapes that do not fit.
    """
    probability, truth = np.asarray(probability, dtype=np.float64), np.asarray(truth)
    if probability.ndim != 2 or truth.shape != probability.shape[:1] or bins < 1:
        raise ConfigError(f"probabilities {probability.shape}, truth {truth.shape}: expected (n, k) and (n).")
    if not len(truth):
        return NAN
    confidence, right = probability.max(1), probability.argmax(1) == truth
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # a bin owns its upper edge
    gaps = [abs(float(np.sum(confidence[place == one]) - np.sum(right[place == one]))) for one in range(bins)]
    return sum(gaps) / len(truth)


def figures_of(probability: Any, truth: Any, positive: int | None = -1) -> dict[str, float]:
    """Every figure of a classifier on cases of known class.

    probability: "n k". truth: class indices "n". positive: the class that the two-class figures are about, against the
    others; None: any but the first, against the first. `sum` is sensitivity plus specificity; `saturated` the share of
    cases with a probability above 0.99.
    """
    probability, truth = np.asarray(probability, dtype=np.float64), np.asarray(truth)
    predicted = probability.argmax(1)
    if positive is None:
        scores, said, is_positive = 1 - probability[:, 0], predicted > 0, truth > 0
    else:
        positive %= probability.shape[1]
        scores, said, is_positive = probability[:, positive], predicted == positive, truth == positive
    sens, spec = sensitivity(said, is_positive), specificity(said, is_positive)
    return {
        "auc": auc(scores, is_positive),
        "auprc": auprc(scores, is_positive),
        "accuracy": accuracy(predicted, truth),
        "balanced_accuracy": balanced_accuracy(predicted, truth),
        "sensitivity": sens,
        "specificity": spec,
        "sum": sens + spec,
        "calibration_error": expected_calibration_error(probability, truth),
        "saturated": float(np.mean(probability.max(1) > 0.99)),
    }


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    *,
    groups: Sequence[Hashable],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval (low, high) of a statistic over resampled groups, such as patients.

    statistic: of the cases at an index array "m"; a case drawn twice stands in it twice. groups: whose each of the n
    cases is; as many groups are drawn, with replacement, as there are, each with all of its cases. Resamples where the
    statistic is NaN are skipped; (NaN, NaN) where it always is.

    Errors: ConfigError for no cases, fewer than one resample, or a level outside (0, 1).
    """
    if not len(groups) or resamples < 1 or not 0 < level < 1:
        raise ConfigError(
            f"{len(groups)} cases, {resamples} resamples, level {level}: expected at least one of each, and a level "
            "between 0 and 1."
        )
    owners: dict[Hashable, list[int]] = {}
    for case, group in enumerate(groups):
        owners.setdefault(group, []).append(case)
    members = [np.array(cases) for cases in owners.values()]
    random = np.random.default_rng(seed)
    drawn = (random.integers(len(members), size=len(members)) for _ in range(resamples))
    values = np.array([statistic(np.concatenate([members[group] for group in draw])) for draw in drawn])
    values = values[~np.isnan(values)]
    if not len(values):
        return NAN, NAN
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _scored(scores: Any, truth: Any) -> tuple[np.ndarray, np.ndarray]:
    values, positive = _pair(scores, truth)
    if not np.isfinite(values).all():
        raise ConfigError("scores must be finite; the model that gave them returned NaN or infinity.")
    return values, positive.astype(bool)


def _pair(said: Any, truth: Any, boolean: bool = False) -> tuple[np.ndarray, np.ndarray]:
    said, truth = np.asarray(said), np.asarray(truth)
    if said.ndim != 1 or said.shape != truth.shape:
        raise ConfigError(f"arrays of shape {said.shape} and {truth.shape}: expected two of the same length.")
    return (said.astype(bool), truth.astype(bool)) if boolean else (said, truth)
