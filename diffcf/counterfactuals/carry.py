"""Residual carry: how a decoded change is put onto the factual image."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from diffcf.errors import ConfigError

SOFTNESS = 0.1  # of the limit: how gradually the gate opens


@dataclass(frozen=True)
class Gate:
    """Lets a change through where it is strong and stops what a decoder smears around it.

    A pixel's strength a is the larger of its own |change| and its mean over 3 x 3 neighbours, and t is `share` of the
    largest strength in the scan. The change is multiplied by sigmoid((a - t) / (t / 10)), less its value at
    a = 0: what is strong stays as it was decoded, with soft borders, and nothing stays nothing. The gate of k times a
    change is k times the gate of it.

    share: 0 lets everything through.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"a gate's share of {self.share}: expected 0 to 1, of the strongest change.")

    def __call__(self, change: Tensor) -> Tensor:
        """Change "b s c h w" -> what is carried of it."""
        return change if self.share == 0 else change * self.opened(change)

    def opened(self, change: Tensor) -> Tensor:
        """How far the gate is open at every pixel of a change "b s c h w", from 0 to 1."""
        if self.share == 0:
            return torch.ones_like(change)
        slices = change.shape[1]
        flat = rearrange(change.abs(), "b s c h w -> (b s) c h w")
        near = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        strength = rearrange(torch.maximum(near, flat), "(b s) c h w -> b s c h w", s=slices)
        tiny = torch.finfo(change.dtype).tiny
        limit = self.share * reduce(strength, "b s c h w -> b 1 1 1 1", "max").clamp(min=tiny)
        closed = 1 / (1 + exp(1 / SOFTNESS))
        opened = torch.sigmoid((strength / limit - 1) / SOFTNESS)
        return (opened - closed).clamp(min=0) / (1 - closed)
