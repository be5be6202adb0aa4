"""The seven-layer multi-task network of paper 003 (appendix B), as an architecture of timm: `diffcf_mtl7`.

Two tasks: is there a lesion, and if so, on which side. Their joint distribution over four classes is returned, so that
everything that reads logits can read it, and the plain cross-entropy is the sum of both tasks' cross-entropies.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, reduce
from timm.models import register_model
from torch import Tensor, nn

from diffcf.classifiers.cnn7 import CNN7
from diffcf.errors import ConfigError

CLASSES = 4  # no lesion, left, right, both


def halves(picture: Tensor) -> Tensor:
    """Pictures "n c h w" -> "(n side) c h half": the left half as it is, the right one mirrored.

    Of an odd width both hold the middle column.
    """
    half = (picture.shape[-1] + 1) // 2
    sides = torch.stack([picture[..., :half], picture[..., -half:].flip(-1)], dim=1)
    return rearrange(sides, "n side c h w -> (n side) c h w")


def joint(lesion: Tensor, side: Tensor) -> Tensor:
    """Logits of both tasks, "n 2" (no, yes) and "n 3" (left, right, both) -> log-probabilities "n 4": log p(no), and
    log p(yes) + log p(side | yes).

    -log p of a label is the cross-entropy of the first task, and for scans with a lesion that of the second one too.
    """
    no, yes = lesion.log_softmax(1).split(1, dim=1)
    return torch.cat([no, yes + side.log_softmax(1)], dim=1)


class JointHead(nn.Module):
    """Two linear heads over the same features, "n f" -> `joint` log-probabilities "n 4"."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lesion, self.side = nn.Linear(features, 2), nn.Linear(features, CLASSES - 1)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return joint(self.lesion(features), self.side(features))


class MultiTask7(nn.Module):
    """Seven convolutions over half pictures, the features of both sides beside each other, two heads.

    One network sees the left half and the mirrored right one, so that it learns a lesion's looks once for both sides.
    The convolutions are those of `CNN7`, GroupNorm and SiLU included: counterfactuals differentiate the network in its
    input, a few scans at a time, where batch statistics and kinks stand in the way.

    in_chans: channels in. num_classes: 4, `joint`'s. width: of the first two layers; a multiple of 4.
    """

    parts = staticmethod(halves)  # what the convolutions see of a picture, for what has to match their maps

    def __init__(self, in_chans: int = 1, num_classes: int = CLASSES, width: int = 16) -> None:
        super().__init__()
        if num_classes != CLASSES:
            raise ConfigError(f"{num_classes} classes: diffcf_mtl7 tells four: no lesion, left, right, both.")
        network = CNN7(in_chans, width=width)
        self.num_classes = num_classes
        self.layers = network.layers
        self.head = JointHead(2 * network.head.in_features)

    def get_classifier(self) -> JointHead:
        """The last module, as timm's architectures give it."""
        return self.head

    def forward_features(self, picture: Tensor) -> Tensor:
        """Picture "n c h w" -> maps of its halves "(n side) f h/8 w/16"."""
        return self.layers(halves(picture))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps -> log-probabilities "n 4", or what the heads read, "n (side f)"."""
        features = rearrange(reduce(maps, "m f y x -> m f", "mean"), "(n side) f -> n (side f)", side=2)
        return features if pre_logits else self.head(features)

    def forward(self, picture: Tensor) -> Tensor:
        """Log-probabilities "n 4"."""
        return self.forward_head(self.forward_features(picture))


@register_model
def diffcf_mtl7(pretrained: bool = False, **options: Any) -> MultiTask7:
    """See `MultiTask7`; there are no pretrained weights, and nothing that timm says of where they lie is used."""
    if pretrained:
        raise ConfigError("diffcf_mtl7 has no pretrained weights.")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(name, None)
    return MultiTask7(**options)
