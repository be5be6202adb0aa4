"""The seven-layer network of paper 001 (appendix B), as an architecture of timm: `diffcf_cnn7`.

The paper draws it and names no normalisation. Here it is GroupNorm and SiLU: alignment differentiates the network twice
and looks at one sample at a time, which batch statistics and kinks stand in the way of. `norm` gives the other forms.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from einops import einsum, rearrange
from timm.models import register_model
from torch import Tensor, nn

from diffcf.errors import ConfigError

WIDTHS = (1, 1, 2, 2, 4, 4, 4)  # times `width`
STRIDES = (1, 2, 1, 2, 1, 2, 1)
SLOPE = 0.01  # of leaky ReLU below zero
Norm = Literal["group", "batch", "none"]
PACE = 10.0  # of the learnt places against the other weights: under Adam all weights move equally fast


class CNN7(nn.Module):
    """Seven 3 x 3 convolutions, three of them halving the grid; an average over places; a linear layer.

    in_chans: channels in. num_classes: logits. width: of the first two layers; a multiple of 4. box: side in pixels of
    a central square outside of which the network sees nothing: the oracle of paper 001, for fields with the lesion in
    their middle. A square, since the contour itself would tell the lesion's size. 0 is none. places: side of the last
    maps, an eighth of the image's; each place then has a weight of its own in the average, the same for all images, so
    that a network over crops can learn to look at their middle. 0: all places weigh the same, whatever their number.
    norm: "group" with SiLU; "batch" or "none" (biases, He's initialisation) with leaky ReLU.
    """

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 2,
        width: int = 16,
        box: int = 0,
        places: int = 0,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        if width < 4 or width % 4 or box < 0 or places < 0 or norm not in get_args(Norm):
            raise ConfigError(
                f"width {width}, box {box}, places {places}, norm {norm!r}: expected a multiple of 4, pixels, a side, "
                f"and one of {', '.join(get_args(Norm))}."
            )
        self.num_classes, self.box = num_classes, box
        layers, before = [], in_chans
        for factor, stride in zip(WIDTHS, STRIDES, strict=True):
            after = factor * width
            layers.append(_layer(before, after, stride, norm))
            before = after
        self.layers = nn.Sequential(*layers)
        self.places = nn.Parameter(torch.zeros(places, places)) if places else None
        self.head = nn.Linear(before, num_classes)

    def get_classifier(self) -> nn.Linear:
        """The last layer, as timm's architectures give it."""
        return self.head

    def seen(self, picture: Tensor) -> Tensor:
        """The part of pictures "b c h w" that the network looks at: all, or what lies in the box."""
        if not self.box:
            return picture
        height, width = picture.shape[-2:]
        inside = torch.zeros(height, width, dtype=picture.dtype, device=picture.device)
        top, left = (height - self.box) // 2, (width - self.box) // 2
        inside[max(top, 0) : top + self.box, max(left, 0) : left + self.box] = 1
        return picture * inside

    def forward_features(self, picture: Tensor) -> Tensor:
        """Picture "b c h w" -> maps "b f h/8 w/8"."""
        return self.layers(self.seen(picture))

    def pooled(self, maps: Tensor) -> Tensor:
        """Maps -> what the last layer reads "b f", their average over places."""
        if self.places is None:
            return maps.mean((2, 3))
        if maps.shape[2:] != self.places.shape:
            raise ConfigError(
                f"maps of {tuple(maps.shape[2:])} for places {len(self.places)}: give an eighth of the size."
            )
        weights = rearrange((PACE * self.places).flatten().softmax(0), "(y x) -> y x", y=len(self.places))
        return einsum(maps, weights, "b f y x, y x -> b f")

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps -> logits "b k", or what the last layer reads."""
        features = self.pooled(maps)
        return features if pre_logits else self.head(features)

    def forward(self, picture: Tensor) -> Tensor:
        """Logits "b k"."""
        return self.forward_head(self.forward_features(picture))


def _layer(before: int, after: int, stride: int, norm: Norm) -> nn.Sequential:
    """A convolution, its norm and its activation; nn.Sequential's first module is the convolution."""
    convolution = nn.Conv2d(before, after, 3, stride, 1, bias=norm == "none")
    if norm == "group":
        return nn.Sequential(convolution, nn.GroupNorm(4, after), nn.SiLU())
    if norm == "batch":
        return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.LeakyReLU(SLOPE))
    nn.init.kaiming_normal_(convolution.weight, SLOPE)
    return nn.Sequential(convolution, nn.LeakyReLU(SLOPE))


@register_model
def diffcf_cnn7(pretrained: bool = False, **options: Any) -> CNN7:
    """See `CNN7`; there are no pretrained weights, and nothing that timm says of where they lie is used."""
    if pretrained:
        raise ConfigError("diffcf_cnn7 has no pretrained weights.")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    return CNN7(**options)
