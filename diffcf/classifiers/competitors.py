"""What paper 003 (appendix E) compares ACAT with and that reads a map, or makes one: SMIC, HSM and SalClassNet.

The details that appendix E leaves to the cited papers, widths and pooling among them, are the same for SMIC and HSM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.cards import ClassifierCard
from diffcf.classifiers.guides import THREE, Guidance, Guide
from diffcf.classifiers.network import TimmNetwork, build_network, load_weights
from diffcf.classifiers.stages import Backbone
from diffcf.errors import ConfigError

SMIC_DEPTH, HSM_DEPTH = 2, 4  # convolutions of the branch (appendix E)


@dataclass(frozen=True)
class OneMask(Guidance):
    """A guidance by one mask at one stage. width: of the branch that makes it."""

    stage: str = THREE[1]
    width: int = 32

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width {self.width}: expected one channel or more.")

    @property
    def named(self) -> tuple[str, ...]:
        """See `Guidance`."""
        return (self.stage,)


@dataclass(frozen=True)
class SMIC(OneMask):
    """Saliency-modulated image classification (Flores et al. 2019): a branch of two convolutions over the saliency map
    makes one mask, and F * (S + 1) is passed on at one stage."""

    reads_maps: ClassVar[bool] = True

    def guide(self, backbone: Backbone) -> Guide:
        """See `Guidance`."""
        return OneMaskGuide(self.stage, backbone, SMIC_DEPTH, self.width)


@dataclass(frozen=True)
class HSM(OneMask):
    """Hallucinated saliency maps (Figueroa-Flores et al. 2020): SMIC's modulation, but the mask is learnt from the
    image, by a branch of four convolutions."""

    def guide(self, backbone: Backbone) -> Guide:
        """See `Guidance`."""
        return OneMaskGuide(self.stage, backbone, HSM_DEPTH, self.width, of_picture=True)


class OneMaskGuide(Guide):
    """A mask at one stage, by a branch over the saliency map, or `of_picture`. See `SMIC` and `HSM`."""

    def __init__(self, stage: str, backbone: Backbone, depth: int, width: int, *, of_picture: bool = False) -> None:
        super().__init__([stage])
        self.parts, self.of_picture = backbone.parts, of_picture
        self.branch = MaskBranch(depth, width, backbone.shapes[stage][1:])

    def masks(self, picture: Tensor, saliency: Tensor) -> dict[str, Tensor]:
        """See `Guide`."""
        return {self.stages[0]: self.branch(self.parts(picture if self.of_picture else saliency))}


class MaskBranch(nn.Module):
    """Pictures "m 1 h w" -> mask "m 1 *grid" in (0, 1).

    3 x 3 convolutions with ReLU between them; 2 x 2 max-pooling after each as long as the grid is not reached; an
    average over what is left of it, a sigmoid.
    """

    def __init__(self, depth: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        widths = [1, *[width] * (depth - 1), 1]
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))

    def forward(self, picture: Tensor) -> Tensor:
        """See the class."""
        found = picture
        for index, convolution in enumerate(self.convolutions):
            found = convolution(found if index == 0 else found.relu())
            if all(side >= 2 * least for side, least in zip(found.shape[2:], self.grid, strict=True)):
                found = F.max_pool2d(found, 2)
        return F.adaptive_avg_pool2d(found, self.grid).sigmoid()


@dataclass(frozen=True)
class SalClassNet(Guidance):
    """SalClassNet (Murabito et al. 2018) as paper 003 trains it: the map, given rather than learnt, is a second channel
    of the image. The baseline's first convolution is widened; its weights for the map start at 0."""

    reads_maps: ClassVar[bool] = True

    def network(self, card: ClassifierCard) -> TimmNetwork:
        """See `Guidance`."""
        wide, narrow = TimmNetwork(card, channels=2), build_network(card)
        weights = narrow.net.state_dict()
        odd = [name for name, value in wide.net.state_dict().items() if value.shape != weights[name].shape]
        if len(odd) != 1 or wide.net.state_dict()[odd[0]].ndim != 4:
            raise ConfigError(
                f"{card.architecture} does not read its channels by one convolution ({', '.join(odd)}), which is what "
                "SalClassNet widens; use another guidance for it."
            )
        load_weights(wide, widened(weights, wide.net), card.architecture)
        return wide

    def guide(self, backbone: Backbone) -> Guide:
        """See `Guidance`."""
        return ConcatenationGuide()


class ConcatenationGuide(Guide):
    """See `SalClassNet`."""

    def fitted(self, weights: Mapping[str, Tensor], net: nn.Module) -> Mapping[str, Tensor]:
        """See `Guide`: with weights of 0 for the map."""
        return widened(weights, net)

    def picture(self, picture: Tensor, saliency: Tensor) -> Tensor:
        """See `Guide`."""
        return torch.cat([picture, saliency], dim=1)


def widened(weights: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Weights of a network over one channel as those of `net`, the same over two: 0 for the second one."""
    wanted = net.state_dict()

    def fit(name: str, value: Tensor) -> Tensor:
        shape = wanted[name].shape if name in wanted else value.shape
        one_channel = len(shape) == value.ndim == 4 and value.shape == (shape[0], 1, *shape[2:]) and shape[1] == 2
        return torch.cat([value, torch.zeros_like(value)], dim=1) if one_channel else value

    return {name: fit(name, value) for name, value in weights.items()}
