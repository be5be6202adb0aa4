"""What a black box of one's own is trained with: views that keep a label, classes of unequal size, a learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from diffcf.cards import Window
from diffcf.errors import ConfigError


@dataclass(frozen=True)
class Augmentation:
    """Views of a scan with the same label.

    flips: none, mirror (left-right), square (all eight turns, for a crop without an upright). shift: the largest, in
    pixels, along rows and columns; the edge is repeated. jitter: standard deviation of an offset of the scan, in HU.
    """

    flips: Literal["none", "mirror", "square"] = "mirror"
    shift: int = 0
    jitter: float = 0.0

    def __call__(self, image: Tensor, window: Window, random: torch.Generator) -> Tensor:
        """Another view of each scan "b s c h w" in [-1, 1] of `window`; the slices of a scan change together."""

        def coin() -> Tensor:
            return rearrange(torch.rand(len(image), generator=random) < 0.5, "b -> b 1 1 1 1")

        if self.flips != "none":
            image = torch.where(coin(), image.flip(-1), image)
        if self.flips == "square":
            image = torch.where(coin(), image.flip(-2), image)
            image = torch.where(coin(), rearrange(image, "b s c h w -> b s c w h"), image)
        if self.shift:
            room, (height, width) = self.shift, image.shape[-2:]
            padded = F.pad(rearrange(image, "b s c h w -> b (s c) h w"), (room,) * 4, mode="replicate")
            corners = torch.randint(2 * room + 1, (len(image), 2), generator=random).tolist()
            moved = [one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, corners, strict=True)]
            image = rearrange(torch.stack(moved), "b (s c) h w -> b s c h w", c=image.shape[2])
        if self.jitter:
            offset = torch.randn(len(image), generator=random) * (self.jitter / (window.width / 2))
            image = (image + rearrange(offset, "b -> b 1 1 1 1")).clamp(-1, 1)
        return image


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Inverse frequencies "k" of labels "n", scaled such that their mean over the labels is 1.

    A class that does not occur gets the weight of one that occurs once.
    """
    return len(labels) / (classes * torch.bincount(labels, minlength=classes).clamp_min(1))


def epoch_batches(
    labels: Tensor, batch: int, key: int, *, weights: Tensor | None = None, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """Positions of the scans of each step of an epoch: this process's equal share of every whole batch.

    The order follows from `key` alone. weights: of the classes "k"; scans are then drawn anew by them instead of all
    once. A remainder waits for another epoch's order.

    Errors: ConfigError where the batch does not divide among the processes.
    """
    batch = min(batch, len(labels))
    if batch % world:
        raise ConfigError(f"a batch of {batch} does not divide among {world} processes; change batch.")
    random = torch.Generator().manual_seed(key)
    if weights is None:
        order = torch.randperm(len(labels), generator=random)
    else:
        order = torch.multinomial(weights[labels], len(labels), replacement=True, generator=random)
    for whole in order[: len(labels) - len(labels) % batch].split(batch):
        yield whole[rank::world]


def warm_cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at step 0, 1, ..., steps - 1: up over `warmup` steps, and down to 0 along a cosine."""
    return min(1.0, (step + 1) / max(1.0, warmup)) * (1 + math.cos(math.pi * step / steps)) / 2
