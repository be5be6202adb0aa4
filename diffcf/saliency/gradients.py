"""Saliency from the classifier's gradient in the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import reduce
from torch import Tensor, nn

from diffcf.saliency.protocol import SaliencyMethod, class_of, explained, slope


@dataclass(frozen=True)
class InputGradient(SaliencyMethod):
    """|d log-odds / d x|, the largest over the channels (Simonyan et al. 2014)."""

    def find(self, classifier: nn.Module, image: Tensor, target: Tensor | None, generator: Any) -> Tensor:
        """See `SaliencyMethod`."""
        return reduce(_slope_at(classifier, image, target).abs(), "b s c h w -> b s 1 h w", "max")


@dataclass(frozen=True)
class IntegratedGradients(SaliencyMethod):
    """|(x - x0) * the mean of d log-odds / d x on the line from x0 to x| (Sundararajan et al. 2017), over the channels.

    The signed attributions sum to log-odds(x) - log-odds(x0). The mean is taken at Gauss-Legendre nodes, which is far
    closer to the integral than as many equal steps.

    steps: nodes, one forward and backward pass each. baseline: the value of x0; -1 is black.
    """

    steps: int = 20
    baseline: float = -1.0

    def find(self, classifier: nn.Module, image: Tensor, target: Tensor | None, generator: Any) -> Tensor:
        """See `SaliencyMethod`."""
        target = class_of(classifier, image, target)
        return reduce(self.attributions(classifier, image, target).abs(), "b s c h w -> b s 1 h w", "sum")

    @torch.no_grad()
    def attributions(self, classifier: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        """The signed part of every pixel in the log-odds of the target int "b", "b s c h w"."""
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        way = image - self.baseline
        mean = torch.zeros_like(image)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            mean += weight / 2 * _slope_at(classifier, self.baseline + (1 + node) / 2 * way, target)
        return way * mean


def _slope_at(classifier: nn.Module, image: Tensor, target: Tensor | None) -> Tensor:
    with torch.enable_grad():
        leaf = image.detach().requires_grad_()
        return slope(explained(classifier(leaf), target), leaf)
