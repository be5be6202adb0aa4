"""A small BagNet (Brendel and Bethge 2019), as an architecture of timm: `diffcf_bagnet`."""

from __future__ import annotations

from typing import Any

from timm.layers.norm import LayerNorm2d
from timm.models import register_model
from torch import Tensor, nn

from diffcf.errors import ConfigError


class BagNet(nn.Module):
    """Every place of the image votes for the classes by itself, seen through a window of 17 pixels; the mean decides.

    Four 3 x 3 convolutions, two of them halving the grid, with 1 x 1 convolutions between them, as BagNets thin out
    ResNets. The norms are over the channels of a place, whose statistics see no other. The linear layer of one place
    commutes with the mean over places, so that the logits are those of the mean. in_chans, num_classes: as in timm.
    width: of the first layer, doubled at each halving; at least 2.
    """

    def __init__(self, in_chans: int = 1, num_classes: int = 2, width: int = 16) -> None:
        super().__init__()
        if width < 2:
            raise ConfigError(f"width {width}: expected at least 2, which a norm over channels needs.")
        self.num_classes = num_classes
        layers, before = [], in_chans
        for after, kernel, stride in (
            (width, 3, 1), (width, 1, 1), (2 * width, 3, 2), (2 * width, 1, 1),
            (4 * width, 3, 2), (4 * width, 1, 1), (4 * width, 3, 1),
        ):  # fmt: skip
            convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
            layers.append(nn.Sequential(convolution, LayerNorm2d(after), nn.SiLU()))
            before = after
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes)

    def get_classifier(self) -> nn.Linear:
        """The last layer, as timm's architectures give it."""
        return self.head

    def forward_features(self, picture: Tensor) -> Tensor:
        """Picture "b c h w" -> maps "b f h/4 w/4"."""
        return self.layers(picture)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps -> logits "b k", or what the last layer reads."""
        features = maps.mean((2, 3))
        return features if pre_logits else self.head(features)

    def forward(self, picture: Tensor) -> Tensor:
        """Logits "b k"."""
        return self.forward_head(self.forward_features(picture))


@register_model
def diffcf_bagnet(pretrained: bool = False, **options: Any) -> BagNet:
    """See `BagNet`; there are no pretrained weights, and nothing that timm says of where they lie is used."""
    if pretrained:
        raise ConfigError("diffcf_bagnet has no pretrained weights.")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    return BagNet(**options)
