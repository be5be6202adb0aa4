"""Classifiers and generators whose reasons are known."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.cards import GeneratorCard, Preparation
from diffcf.generators.pixels import PixelGenerator
from diffcf.types import Code

SIDE = 16
PATCH = (slice(4, 8), slice(8, 12))  # rows and columns that decide


class Patch(nn.Module):
    """Logits (-m, m) / 2 with m = gain * (mean of the patch over all slices - level); counts what is asked."""

    def __init__(self, gain: float = 12.0, level: float = -0.2) -> None:
        super().__init__()
        self.gain, self.level = gain, level
        self.forwards = self.backwards = 0

    def forward(self, image: Tensor) -> Tensor:
        self.forwards += len(image)
        if image.requires_grad:
            image.register_hook(self.count)
        inside = reduce(image[..., PATCH[0], PATCH[1]], "b s c h w -> b", "mean")
        margin = self.gain * (inside - self.level)
        return torch.stack([-margin, margin], 1) / 2

    def count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Convolutions(nn.Module):
    """Two convolutions slice by slice, the mean over places and slices, a linear head; with modes that matter."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 6, 3, 1, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, classes)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.last(F.relu(self.norm(self.first(rearrange(image, "b s c h w -> (b s) c h w")))))
        read = reduce(maps, "(b s) f y x -> b f", "mean", b=len(image))
        return self.head(self.drop(read))


class Blocks(nn.Module):
    """A spatial code: every 2 x 2 block of pixels is a place with four channels, exactly invertible."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0

    def encode(self, image: Tensor) -> Code:
        return Code(rearrange(image, "b s 1 (y i) (x j) -> b s (i j) y x", i=2, j=2))

    def decode(self, code: Code) -> Tensor:
        self.forwards += len(code.semantic)
        return rearrange(code.semantic, "b s (i j) y x -> b s 1 (y i) (x j)", i=2, j=2)


@pytest.fixture
def scans() -> Tensor:
    """Three scans of two slices, grey with little noise."""
    return 0.2 * torch.randn(3, 2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def patch() -> Patch:
    return Patch()


@pytest.fixture
def convolutions() -> Convolutions:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Convolutions()


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


@pytest.fixture
def pixels() -> PixelGenerator:
    return PixelGenerator(GeneratorCard(Preparation(size=SIDE, slices=2)))


@pytest.fixture
def share():
    """The share of maps "b s 1 h w" that lies in the patch, "b"."""

    def inside(maps: Tensor) -> Tensor:
        part = reduce(maps[..., PATCH[0], PATCH[1]], "b s 1 h w -> b", "sum")
        return part / reduce(maps, "b s 1 h w -> b", "sum")

    return inside
