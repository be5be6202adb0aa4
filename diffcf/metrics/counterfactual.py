"""How good a counterfactual is: pure functions, one figure an image; images are "n s c h w" in [-1, 1].

`change` is counterfactual less factual (or the matching reference), "n s c h w".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from diffcf.errors import ConfigError

VISIBLE = 0.1  # of [-1, 1]: 5% of the window's width


class MeanOf(MeanMetric):
    """The mean of a pure function of this module over all images, as a torchmetrics metric.

    function: gives one figure an image, "n"; NaN does not count. `update` takes what the function takes.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__(nan_strategy="ignore")
        self.function = function

    def update(self, *arguments: Any, **options: Any) -> None:
        """Add the function's figures of these images."""
        super().update(self.function(*arguments, **options))


def validity(probability: Tensor, target: Tensor, asked: float | None = None) -> Tensor:
    """1 where the classifier takes the counterfactual for the target, or gives it the asked probability; "n k" -> "n".

    With another classifier's probabilities this is `transfer`, with those of a purified image `survival`.
    """
    given = probability.gather(1, rearrange(target, "n -> n 1")).squeeze(1)
    return (probability.argmax(1) == target if asked is None else given >= asked).to(probability)


def proximity_l1(change: Tensor) -> Tensor:
    """Mean |change| over the pixels, "n" (Wachter et al. 2017, without their scaling)."""
    return reduce(change.abs(), "n s c h w -> n", "mean")


def proximity_l2(change: Tensor) -> Tensor:
    """Root of the mean squared change over the pixels, "n"."""
    return reduce(change.square(), "n s c h w -> n", "mean").sqrt()


def sparsity(change: Tensor, visible: float = VISIBLE) -> Tensor:
    """Share of the pixels that change visibly, "n"; smaller is sparser."""
    return reduce((change.abs() > visible).float(), "n s c h w -> n", "mean")


def cause_precision(change: Tensor, cause: Tensor) -> Tensor:
    """sum of |change| inside the cause / sum of |change|, "n"; NaN where nothing changes.

    cause: "n s 1 h w" of 0 and 1.
    """
    total = reduce(change.abs(), "n s c h w -> n", "sum")
    inside = reduce(change.abs() * cause, "n s c h w -> n", "sum")
    return torch.where(total > 0, inside / total, torch.nan)


def cause_recall(change: Tensor, cause: Tensor, visible: float = VISIBLE) -> Tensor:
    """Share of the cause's pixels that change visibly, "n"; NaN without a cause.

    A cause need not change as a whole: of a + that becomes a -, only the upright arms do. It is read beside the
    precision, which a change of one pixel inside the cause satisfies.
    """
    moved = reduce((change.abs() > visible).float(), "n s c h w -> n s 1 h w", "max")
    area = reduce(cause, "n s 1 h w -> n", "sum")
    return torch.where(area > 0, reduce(moved * cause, "n s 1 h w -> n", "sum") / area, torch.nan)


def cout(
    factual: Tensor,
    counterfactual: Tensor,
    probability: Callable[[Tensor], Tensor],
    label: Tensor,
    target: Tensor,
    steps: int = 20,
) -> Tensor:
    """Counterfactual transition metric (Khorram and Fuxin 2022), "n" in [-1, 1].

    Pixels of the counterfactual are put into the factual image, those that change most first, in `steps` equal shares;
    COUT is the area under the target's probability less that under the label's (trapezoids over the share put in).
    probability: images "m s c h w" -> "m k".
    """
    count = len(factual)
    moved = reduce((counterfactual - factual).abs(), "n s c h w -> n s 1 h w", "max")
    flat = rearrange(moved, "n s 1 h w -> n (s h w)")
    rank = flat.argsort(1, descending=True).argsort(1).to(flat) / flat.shape[1]
    rank = rearrange(rank, "n (s h w) -> n s 1 h w", s=moved.shape[1], h=moved.shape[3])
    curves = []
    for step in range(steps + 1):
        mixed = torch.where(rank < step / steps, counterfactual, factual)
        given = probability(mixed)
        curves.append(given[torch.arange(count), target] - given[torch.arange(count), label])
    return torch.trapezoid(torch.stack(curves), dx=1 / steps, dim=0)


def identity(factual_features: Tensor, counterfactual_features: Tensor) -> Tensor:
    """Cosine similarity of features "n f" in an encoder of neither generator nor black box, "n".

    The S3 of Jeanneret et al. 2023, whose encoder is a self-supervised network.
    """
    return F.cosine_similarity(factual_features, counterfactual_features, dim=1)


def diversity(changes: Sequence[Tensor]) -> Tensor:
    """Mean over pairs of answers of 1 - cosine of their changes, "n": 0 for the same change, 1 for unrelated ones.

    changes: of several counterfactuals of the same images, each "n s c h w" (after Mothilal et al. 2020, whose distance
    is not relative). NaN where an answer does not change anything. Errors: ConfigError for fewer than two.
    """
    if len(changes) < 2:
        raise ConfigError(f"{len(changes)} answer(s); diversity is of two or more.")
    flat = [change.flatten(1) for change in changes]
    pairs = [
        torch.where(
            (one.abs().sum(1) > 0) & (other.abs().sum(1) > 0), 1 - F.cosine_similarity(one, other, dim=1), torch.nan
        )
        for place, one in enumerate(flat)
        for other in flat[place + 1 :]
    ]
    return torch.stack(pairs).mean(0)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation of two maps an image, "n ..." -> "n"; equal values share their mean rank.

    For the randomisation check (Adebayo et al. 2018) its absolute value is taken; NaN where a map is constant.
    """
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(maps.flatten(1).cpu().numpy(), axis=1)) for maps in (one, other)]
    left, right = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    scale = left.norm(dim=1) * right.norm(dim=1)
    return torch.where(scale > 0, (left * right).sum(1) / scale, torch.nan).to(one)
