"""An interpretable convolutional network (Zhang, Wu and Zhu 2018), as an architecture of timm: `diffcf_icnn`."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from timm.models import register_model
from torch import Tensor

from diffcf.classifiers.cnn7 import CNN7
from diffcf.errors import ConfigError

DECAY = 4.0  # β of the paper: how fast a template falls from its peak, over the side of the map


def templates(side: int) -> Tensor:
    """T_μ of every place μ of a map, "(y x) side side": max(1 - 4 |place - μ|_1 / side, -1), the paper's without τ."""
    places = rearrange(
        torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")), "a y x -> (y x) a"
    )
    distance = (rearrange(places, "m a -> m 1 a") - rearrange(places, "p a -> 1 p a")).abs().sum(2)
    return rearrange((1 - DECAY * distance / side).clamp(min=-1), "m (y x) -> m y x", y=side)


class ICNN(CNN7):
    """`CNN7` whose last maps keep only what lies around their peak: relu(x * T_μ), μ the place where x is largest.

    Arguments as `CNN7`'s; the map of a filter is to show one part of one class, which `TemplateLoss` of
    `diffcf.alignment.icnn` asks of it. `raw` gives the maps before they are masked.
    """

    def raw(self, picture: Tensor) -> Tensor:
        """Picture "b c h w" -> maps "b f y x", at least 0."""
        return self.layers(self.seen(picture)).relu()

    def masked(self, maps: Tensor) -> Tensor:
        """Maps of `raw` with what is far from their peaks taken out."""
        side = maps.shape[-1]
        peak = rearrange(maps, "b f y x -> b f (y x)").argmax(2)
        return (maps * templates(side).to(maps)[peak]).relu()

    def forward_features(self, picture: Tensor) -> Tensor:
        """Picture "b c h w" -> masked maps."""
        return self.masked(self.raw(picture))


@register_model
def diffcf_icnn(pretrained: bool = False, **options: Any) -> ICNN:
    """See `ICNN`; there are no pretrained weights, and nothing that timm says of where they lie is used."""
    if pretrained:
        raise ConfigError("diffcf_icnn has no pretrained weights.")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    return ICNN(**options)
