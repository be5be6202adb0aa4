"""Saliency by hiding parts of the image; needs no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from diffcf.errors import ConfigError
from diffcf.saliency.protocol import SaliencyMethod, explained


@dataclass(frozen=True)
class Occlusion(SaliencyMethod):
    """How far the log-odds fall where a square is hidden behind the image's mean (Zeiler and Fergus 2014); rises are 0.

    side, stride: of the square, in pixels. Costs ((side of the image + side - stride) / stride)^2 evaluations, and one.

    Errors: ConfigError for a stride beyond the side, which would leave places that are never hidden.
    """

    side: int = 8
    stride: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.side:
            raise ConfigError(f"stride {self.stride}, side {self.side}: expected a stride from 1 to the side.")

    def find(self, classifier: nn.Module, image: Tensor, target: Tensor | None, generator: Any) -> Tensor:
        """See `SaliencyMethod`."""
        logits = classifier(image)
        target = logits.argmax(1) if target is None else target
        whole = explained(logits, target)
        mean = reduce(image, "b s c h w -> b 1 1 1 1", "mean")
        total = torch.zeros_like(image[:, :, :1])
        count = torch.zeros_like(total)
        height, width = image.shape[-2:]
        for y in range(-self.side + self.stride, height, self.stride):
            for x in range(-self.side + self.stride, width, self.stride):
                place = (..., slice(max(y, 0), y + self.side), slice(max(x, 0), x + self.side))
                hidden = image.clone()
                hidden[place] = mean.expand_as(hidden[place])
                fall = (whole - explained(classifier(hidden), target)).clamp(min=0)
                total[place] += rearrange(fall, "b -> b 1 1 1 1")
                count[place] += 1
        return total / count.clamp(min=1)
