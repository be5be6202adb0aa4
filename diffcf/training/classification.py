"""What a black box of one's own is trained with: views that keep a label, and classes of unequal size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from diffcf.cards import Window
from diffcf.data.manifest import ManifestRow
from diffcf.data.views import KINDS, Views, view
from diffcf.errors import ConfigError


@dataclass(frozen=True)
class Augmentation:
    """Views of a scan with the same label.

    views: none, mirror (left-right), square (all eight turns, for a crop without an upright). shift: the largest, in
    pixels, along rows and columns; the edge is repeated. jitter: standard deviation of an offset of the scan, in HU.
    """

    views: Views = "mirror"
    shift: int = 0
    jitter: float = 0.0

    def __call__(self, image: Tensor, window: Window, random: torch.Generator) -> Tensor:
        """Another view of each scan "b s c h w" in [-1, 1] of `window`; the slices of a scan change together."""
        image = view(image, torch.randint(KINDS[self.views], (len(image),), generator=random).tolist())
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


def check_labels(rows: Sequence[ManifestRow], classes: Sequence[str], part: str) -> None:
    """Refuse labelled rows of a part in which a class has no scan, or a label no class (ConfigError)."""
    found = sorted({int(row.label or 0) for row in rows})
    if found != list(range(len(classes))):
        raise ConfigError(f"the {part} part has labels {found}, not one for each of {list(classes)}, from 0.")
