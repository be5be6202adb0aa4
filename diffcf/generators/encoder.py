"""The semantic encoder: a small residual network from an image to a global vector or a spatial map."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and SiLU around a skip connection; "b i h w" -> "b o h w"."""

    def __init__(self, inputs: int, outputs: int, groups: int = 8) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Residual update of "b i h w"."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h


class SemanticEncoder(nn.Module):
    """E_phi of paper 004, section 2.1: image "b c h w" -> z, "b d" (global) or "b d h/f w/f" (spatial).

    patch: the pixel-unshuffle in front. channels: width of each level; every level but the first halves the grid.
    A global code reads a flattened coarse map rather than a pooled one, since pooling forgets where things are.
    """

    def __init__(
        self, image_size: int, image_channels: int, patch: int, channels: Sequence[int], dim: int, *, spatial: bool
    ) -> None:
        super().__init__()
        self.patch = patch
        self.spatial = spatial
        self.stem = nn.Conv2d(image_channels * patch**2, channels[0], 3, padding=1)
        blocks: list[nn.Module] = [ResidualBlock(channels[0], channels[0])]
        for before, after in itertools.pairwise(channels):
            blocks += [nn.Conv2d(before, after, 3, stride=2, padding=1), ResidualBlock(after, after)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(8, channels[-1])
        grid = image_size // patch // 2 ** (len(channels) - 1)
        if spatial:
            self.head: nn.Module = nn.Conv2d(channels[-1], dim, 1)
        else:
            squeezed = max(dim * 4 // grid**2, 8)
            self.head = nn.Sequential(
                nn.Conv2d(channels[-1], squeezed, 1), nn.Flatten(), nn.Linear(squeezed * grid**2, dim)
            )

    def forward(self, image: Tensor) -> Tensor:
        """Image "b c h w" in [-1, 1] -> semantic code."""
        x = rearrange(image, "b c (h p) (w q) -> b (c p q) h w", p=self.patch, q=self.patch)
        return self.head(F.silu(self.norm(self.blocks(self.stem(x)))))
