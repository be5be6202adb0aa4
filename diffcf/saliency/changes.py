"""From the change of a counterfactual to a map: what of it counts, and how finely it is known."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from diffcf.errors import ConfigError
from diffcf.saliency.protocol import explained, normalised, slope


def check_changes(slopes: int, smooth: float) -> None:
    """Errors: ConfigError for settings below 0."""
    if slopes < 0 or smooth < 0:
        raise ConfigError(f"slopes {slopes}, smooth {smooth}: expected 0 or more of each.")


def mean_slope(classifier: nn.Module, start: Tensor, change: Tensor, target: Tensor, points: int) -> Tensor:
    """The mean gradient of the target's log-odds on the way from `start` to `start + change`, "n s c h w".

    target: int "n". points: of Gauss-Legendre's rule.
    """
    at, weights = np.polynomial.legendre.leggauss(points)  # on [-1, 1], whose length is 2
    total = torch.zeros_like(change)
    for point, weight in zip((at + 1) / 2, weights / 2, strict=True):
        with torch.enable_grad():
            leaf = (start + float(point) * change).detach().requires_grad_()
            total += float(weight) * slope(explained(classifier(leaf), target), leaf)
    return total


def mean_of_changes(change: Tensor, scans: int, smooth: float = 0.0) -> Tensor:
    """Changes "(k b) s c h w" of k searches over b scans -> the mean of their maps, each `normalised`, "b s 1 h w"."""
    each = normalised(smoothed(reduce(change.abs(), "n s c h w -> n s 1 h w", "mean"), smooth))
    return reduce(each, "(k b) s 1 h w -> b s 1 h w", "mean", b=scans)


def smoothed(saliency: Tensor, deviation: float) -> Tensor:
    """Maps "b s 1 h w" under a Gaussian of that many pixels, cut off at three of it and mirrored at the edges."""
    reach = min(round(3 * deviation), saliency.shape[-1] - 1, saliency.shape[-2] - 1)
    if reach < 1:
        return saliency
    flat = rearrange(saliency, "b s 1 h w -> (b s) 1 h w")
    return rearrange(
        gaussian_blur(flat, [2 * reach + 1] * 2, [deviation] * 2), "(b s) 1 h w -> b s 1 h w", b=len(saliency)
    )
