"""A classifier small enough to know, and images with a region."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

SIZE = 12


class Small(nn.Module):
    """Images "b s c h w" -> logits "b k"; smooth."""

    def __init__(self, classes: int = 2, norm: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6) if norm else nn.GroupNorm(2, 6), nn.SiLU(),
            nn.Conv2d(6, 8, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(72, classes),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image[:, 0])


@pytest.fixture
def small():
    def make(classes: int = 2, norm: bool = False, seed: int = 0) -> Small:
        torch.manual_seed(seed)
        return Small(classes, norm).double()

    return make


@pytest.fixture
def scene() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, regions of six samples."""
    drawn = torch.Generator().manual_seed(1)
    image = torch.rand(6, 1, 1, SIZE, SIZE, generator=drawn, dtype=torch.float64) * 1.6 - 0.8
    region = torch.zeros(6, 1, 1, SIZE, SIZE, dtype=torch.float64)
    region[..., 3:8, 4:9] = 1
    return image, torch.tensor([0, 1, 0, 1, 1, 0]), region
