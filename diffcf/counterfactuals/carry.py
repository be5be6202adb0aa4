"""Residual carry: how a decoded change is put onto the factual image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from diffcf.errors import ConfigError

SOFTNESS = 0.25  # of the threshold: how gradually the gate opens


@dataclass(frozen=True)
class Gate:
    """Lets a change through where it is strong and stops what a decoder smears around it.

    A pixel's strength a is the larger of the mean of |change| over its 3 x 3 neighbours and half its own |change|; the
    change is multiplied by sigmoid((a - threshold) / (threshold / 4)), less its value at a = 0, so that what is strong
    stays as it was decoded, with soft borders, and nothing stays nothing.

    threshold: in units of [-1, 1]; 0 lets everything through.
    """

    threshold: float = 0.08

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"a gate's threshold of {self.threshold}: expected 0 to 1, in units of [-1, 1].")

    def __call__(self, change: Tensor) -> Tensor:
        """Change "b s c h w" -> what is carried of it."""
        if self.threshold == 0:
            return change
        slices = change.shape[1]
        flat = rearrange(change.abs(), "b s c h w -> (b s) c h w")
        near = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        strength = rearrange(torch.maximum(near, flat / 2), "(b s) c h w -> b s c h w", s=slices)
        width = SOFTNESS * self.threshold
        closed = torch.sigmoid(torch.tensor(-self.threshold / width))
        return change * (torch.sigmoid((strength - self.threshold) / width) - closed).clamp(min=0) / (1 - closed)
