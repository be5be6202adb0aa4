"""Whether a saliency map lies where it should: pure functions, one figure an image, "n", of maps "n s 1 h w" >= 0.

Every precision here has a chance level, the share of the image that the region covers (`region_share`): it is the
precision of a map that is the same everywhere.
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor


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
