"""What guides a classifier: where and how its features change, by a saliency map or by the features themselves.

A `Guidance` is the settings, which a config names, and makes a `Guide`, the module that is trained. Here are those that
read no map, what paper 003 (appendix E, section 4.7) compares ACAT with; `attention.py` and `competitors.py` have those
that do. The default stages are those of the seven-layer networks, `diffcf_cnn7` and `diffcf_mtl7`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.cards import ClassifierCard
from diffcf.classifiers.network import TimmNetwork, build_network
from diffcf.classifiers.stages import Backbone
from diffcf.errors import ConfigError

THREE = ("layers.0", "layers.2", "layers.4")  # paper 003, section 4.2: after the first, third and fifth convolution


class Guide(nn.Module):
    """What happens on the way through the network; as it stands, nothing.

    Pictures "n 1 h w" are slices as the network reads them, saliency "n 1 h w" their maps in [0, 1]; of a network that
    looks at parts of a picture, masks and features are "m ...", part by part (`Backbone.parts`).
    stages: those whose maps it changes.
    """

    def __init__(self, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.stages = tuple(stages)

    def fitted(self, weights: Mapping[str, Tensor], net: nn.Module) -> Mapping[str, Tensor]:
        """A baseline's weights as those of the guided network `net`."""
        return weights

    def start_from(self, net: nn.Module) -> None:
        """Start as a network that holds a baseline's weights, where the guide has anything in common with it."""

    def picture(self, picture: Tensor, saliency: Tensor) -> Tensor:
        """What the network reads, "n c h w"."""
        return picture

    def masks(self, picture: Tensor, saliency: Tensor) -> dict[str, Tensor]:
        """Masks "m 1 h w" by stage, of those that do not depend on the network's features."""
        return {}

    def modulate(self, stage: str, features: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """What a stage passes on instead of its maps "m f h w"."""
        return modulated(features, masks[stage])

    def join(self, features: Tensor) -> Tensor:
        """The features of all slices, "b s f", as one: "b f"."""
        return reduce(features, "b s f -> b f", "mean")


class Guidance(ABC):
    """Settings of a guide. A config names subclasses: {class_path, init_args}.

    reads_maps: whether the guide reads saliency maps at all.
    """

    reads_maps: ClassVar[bool] = False

    @property
    def named(self) -> tuple[str, ...]:
        """The stages that the settings name."""
        return ()

    def network(self, card: ClassifierCard) -> TimmNetwork:
        """The network that is guided, untrained."""
        return build_network(card)

    @abstractmethod
    def guide(self, backbone: Backbone) -> Guide:
        """Called once, with what `named` is in that network."""


def modulated(features: Tensor, mask: Tensor) -> Tensor:
    """G = F + F * S (Eq. 1 of paper 003 with its skip connection): features "m f h w", mask "m 1 h w".

    Its gradient in the network's weights is (S + 1) times that of F (Eq. 2).
    """
    return features + features * mask


def check_stages(stages: Sequence[str]) -> None:
    """Refuse none, and the same one twice (ConfigError)."""
    if isinstance(stages, str) or not stages or len(set(stages)) < len(stages):
        raise ConfigError(f"stages {stages!r}: expected a list of one or more different names.")


class SpatialMask(nn.Module):
    """Features "m f h w" -> mask "m 1 h w": the largest channel, a 3 x 3 convolution, a sigmoid (section 3.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return self.convolution(reduce(features, "m f h w -> m 1 h w", "max")).sigmoid()


@dataclass(frozen=True)
class Unguided(Guidance):
    """The same network, trained on: what any other guidance has to be better than. Also for a vision transformer, which
    is a card's architecture like any other."""

    def guide(self, backbone: Backbone) -> Guide:
        """See `Guidance`."""
        return Guide()


@dataclass(frozen=True)
class Staged(Guidance):
    """A guidance at several stages, all that it names."""

    stages: tuple[str, ...] = THREE

    def __post_init__(self) -> None:
        check_stages(self.stages)

    @property
    def named(self) -> tuple[str, ...]:
        """See `Guidance`."""
        return tuple(self.stages)


@dataclass(frozen=True)
class Dropout(Staged):
    """Features are dropped at random where ACAT has its masks (section 4.7): is ACAT more than a regularisation?

    p: share that is dropped, in training only; the rest is divided by 1 - p.
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p < 1:
            raise ConfigError(f"p {self.p}: expected a share above 0 and below 1.")

    def guide(self, backbone: Backbone) -> Guide:
        """See `Guidance`."""
        return DropoutGuide(self)


class DropoutGuide(Guide):
    """See `Dropout`."""

    def __init__(self, setting: Dropout) -> None:
        super().__init__(setting.named)
        self.dropout = nn.Dropout(setting.p)

    def modulate(self, stage: str, features: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """See `Guide`."""
        return self.dropout(features)


@dataclass(frozen=True)
class SpatialAttention(Staged):
    """SpAtt of paper 003: ACAT's masks, but of the image's own features at each stage; nothing is fused."""

    def guide(self, backbone: Backbone) -> Guide:
        """See `Guidance`."""
        return SpatialAttentionGuide(self)


class SpatialAttentionGuide(Guide):
    """See `SpatialAttention`."""

    def __init__(self, setting: SpatialAttention) -> None:
        super().__init__(setting.named)
        self.attention = nn.ModuleList(SpatialMask() for _ in self.stages)

    def modulate(self, stage: str, features: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """See `Guide`."""
        return modulated(features, self.attention[self.stages.index(stage)](features))


@dataclass(frozen=True)
class SelfAttention(Staged):
    """SeAtt of paper 003: the self-attention of SAGAN (Zhang et al. 2019, Eq. 1-4) after each stage.

    In the paper after the third and fifth convolution of the multi-task network and the third and fourth block of a
    ResNet. Costs memory with the square of a stage's places.
    """

    stages: tuple[str, ...] = THREE[1:]

    def guide(self, backbone: Backbone) -> Guide:
        """See `Guidance`."""
        return SelfAttentionGuide([(stage, backbone.shapes[stage][0]) for stage in self.stages])


class SelfAttentionGuide(Guide):
    """See `SelfAttention`; stages with the channels of their maps."""

    def __init__(self, stages: Sequence[tuple[str, int]]) -> None:
        super().__init__([stage for stage, _ in stages])
        self.attention = nn.ModuleList(SelfAttentionLayer(channels) for _, channels in stages)

    def modulate(self, stage: str, features: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """See `Guide`."""
        return self.attention[self.stages.index(stage)](features)


class SelfAttentionLayer(nn.Module):
    """y = gamma * o + x over maps "m f h w": o_j = v(sum_i b_ji h(x_i)), b_j = softmax over i of f(x_i) . g(x_j).

    f, g and h are 1 x 1 convolutions to an eighth of the channels, v one back to all. gamma starts at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.f, self.g, self.h = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.v = nn.Conv2d(inner, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        key, query, value = (rearrange(part(features), "m c y x -> m (y x) c") for part in (self.f, self.g, self.h))
        gathered = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return features + self.gamma * self.v(rearrange(gathered, "m (y x) c -> m c y x", y=features.shape[2]))
