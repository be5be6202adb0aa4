"""Whether a saliency map lies where it should: pure functions, one figure an image, "n", of maps "n s 1 h w" >= 0.

Every precision here has a chance level, the share of the image that the region covers (`region_share`): it is the
precision of a map that is the same everywhere. At `top_p` it is the chance level of Dice too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange, reduce
from torch import Tensor

from diffcf.errors import ConfigError


def region_share(region: Tensor) -> Tensor:
    """Share of the image inside the region: the chance level."""
    return reduce(region, "n s 1 h w -> n", "mean")


def saliency_precision(saliency: Tensor, region: Tensor, threshold: float = 0.5) -> Tensor:
    """Area of (map and region) / area of the map (paper 001, section 5.1), the map being what lies at or above
    `threshold` times its maximum, a number that the paper does not give; NaN for a map of zeros."""
    top = reduce(saliency, "n s 1 h w -> n 1 1 1 1", "max")
    chosen = ((saliency >= threshold * top) & (top > 0)).to(region)
    area = reduce(chosen, "n s 1 h w -> n", "sum")
    return torch.where(area > 0, reduce(chosen * region, "n s 1 h w -> n", "sum") / area, torch.nan)


def relevance_mass(saliency: Tensor, region: Tensor) -> Tensor:
    """Share of the map's sum inside the region (Arras et al. 2022); no threshold. NaN for a map of zeros."""
    total = reduce(saliency, "n s 1 h w -> n", "sum")
    inside = reduce(saliency * region, "n s 1 h w -> n", "sum")
    return torch.where(total > 0, inside / total, torch.nan)


def pointing(saliency: Tensor, region: Tensor) -> Tensor:
    """1 where the map is highest inside the region (Zhang et al. 2018); of equal maxima the first. NaN for zeros."""
    flat, inside = (rearrange(value, "n s 1 h w -> n (s h w)") for value in (saliency, region))
    hit = inside.gather(1, flat.argmax(1, keepdim=True)).squeeze(1)
    return torch.where(flat.amax(1) > 0, hit, torch.nan)


def top_p(saliency: Tensor, region: Tensor) -> Tensor:
    """The highest pixels of a map, as many as its region has: bool "n s 1 h w" (paper 003, appendix G: the top p
    percentile, p chosen by the number of pixels of the ground truth).

    Of equal values the first are taken, so that it is exactly as many. None for an empty region and for a map of zeros.
    Errors: ConfigError for different shapes.
    """
    _check_shapes(saliency, region)
    flat, inside = (rearrange(value, "n s 1 h w -> n (s h w)") for value in (saliency, region))
    count = reduce((inside > 0).long(), "n pixel -> n 1", "sum")
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    chosen = (rank < count) & (flat.amax(1, keepdim=True) > 0)
    return chosen.view_as(saliency)


def dice(chosen: Tensor, region: Tensor) -> Tensor:
    """2 |chosen and region| / (|chosen| + |region|) of two binary maps, the foreground's: at `top_p` it is the share of
    the region that was found. NaN where either is empty. Errors: ConfigError for different shapes."""
    return _overlap(chosen, region, _dice)


def iou(chosen: Tensor, region: Tensor) -> Tensor:
    """|chosen and region| / |chosen or region| of two binary maps, the foreground's (Jaccard). NaN where either is
    empty. Errors: ConfigError for different shapes."""
    return _overlap(chosen, region, _iou)


def class_averaged_dice(chosen: Tensor, region: Tensor) -> Tensor:
    """Mean of the foreground's and the background's Dice (macro F1): near 0.5 already for a small region that was
    missed, as the figures of paper 003, table 5, are. NaN where `dice` is."""
    return _overlap(chosen, region, lambda a, b: (_dice(a, b) + _dice(~a, ~b)) / 2)


def class_averaged_iou(chosen: Tensor, region: Tensor) -> Tensor:
    """Mean of the foreground's and the background's IoU (macro Jaccard). NaN where `iou` is."""
    return _overlap(chosen, region, lambda a, b: (_iou(a, b) + _iou(~a, ~b)) / 2)


def _overlap(chosen: Tensor, region: Tensor, figure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    _check_shapes(chosen, region)
    first, second = (rearrange(value > 0, "n s 1 h w -> n (s h w)") for value in (chosen, region))
    return torch.where(first.any(1) & second.any(1), figure(first, second), torch.nan)


def _dice(first: Tensor, second: Tensor) -> Tensor:
    """Of bool "n pixel"; two empty ones are the same."""
    total = first.sum(1) + second.sum(1)
    return torch.where(total > 0, 2 * (first & second).sum(1) / total, 1.0)


def _iou(first: Tensor, second: Tensor) -> Tensor:
    union = (first | second).sum(1)
    return torch.where(union > 0, (first & second).sum(1) / union, 1.0)


def _check_shapes(first: Tensor, region: Tensor) -> None:
    if first.shape != region.shape:
        raise ConfigError(
            f"a map of shape {tuple(first.shape)} and a region of shape {tuple(region.shape)}: expected both as (n, "
            "slices, 1, rows, columns)."
        )
