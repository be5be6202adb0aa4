"""ACAT (paper 003, sections 3.1, 4.2): masks from a saliency branch at several stages, fused before the classifier."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import reduce
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.cards import ClassifierCard
from diffcf.classifiers.guides import THREE, Guidance, Guide, SpatialMask, check_stages
from diffcf.classifiers.network import build_network, probe
from diffcf.classifiers.stages import Backbone, watched
from diffcf.errors import ConfigError

TINY = 1e-12


@dataclass(frozen=True)
class Attention(Guidance):
    """ACAT: the saliency map goes through a branch of its own, and at each stage its features become a mask.

    S = sigmoid(3 x 3 convolution of the largest channel), G = F + F * S (Eq. 1). The masks, averaged to the grid of the
    `fused` stage, are weighed by a 1 x 1 convolution, and the fused mask is applied there. The paper leaves open
    whether this one has the skip connection and how it starts: here it is applied like the others, and starts as the
    mean of the masks.

    stages: early, middle and late ones (of a ResNet layer1, layer2, layer3); fewer are the paper's ablations. fused:
    the last convolution before the classifier (layer4); null: no fusion. branch: start of the saliency branch in
    `start_from`, the weights of the "baseline", as of all else, or "fresh" ones. slice_attention: slices are weighed by
    `SliceAttention` rather than averaged. slice_hidden: its hidden units.
    """

    reads_maps: ClassVar[bool] = True

    stages: tuple[str, ...] = THREE
    fused: str | None = "layers.6"
    branch: Literal["baseline", "fresh"] = "baseline"
    slice_attention: bool = True
    slice_hidden: int = 64

    def __post_init__(self) -> None:
        check_stages(self.stages)
        if self.fused in self.stages or self.slice_hidden < 1:
            raise ConfigError(
                f"fused {self.fused!r}, slice_hidden {self.slice_hidden}: expected a stage that is not one of "
                f"{', '.join(self.stages)}, or null, and one hidden unit or more."
            )

    @property
    def named(self) -> tuple[str, ...]:
        """See `Guidance`."""
        return (*self.stages, *(() if self.fused is None else (self.fused,)))

    def guide(self, backbone: Backbone) -> Guide:
        """See `Guidance`."""
        return AttentionGuide(self, backbone)


class AttentionGuide(Guide):
    """See `Attention`."""

    def __init__(self, setting: Attention, backbone: Backbone) -> None:
        super().__init__(setting.named)
        self.setting = setting
        self.branch = SaliencyBranch(backbone.card, tuple(setting.stages))
        self.attention = nn.ModuleList(SpatialMask() for _ in setting.stages)
        self.fusion: nn.Conv2d | None = None
        if setting.fused is not None:
            self.grid = backbone.shapes[setting.fused][1:]
            self.fusion = nn.Conv2d(len(setting.stages), 1, 1)
            nn.init.constant_(self.fusion.weight, 1 / len(setting.stages))
            nn.init.zeros_(self.fusion.bias)  # type: ignore[arg-type]
        self.slices = SliceAttention(backbone.features, setting.slice_hidden) if setting.slice_attention else None

    def start_from(self, net: nn.Module) -> None:
        """See `Guide`: the branch, where its settings say so."""
        if self.setting.branch == "baseline":
            given = net.state_dict()
            self.branch.net.load_state_dict({name: given[name] for name in self.branch.net.state_dict()})

    def masks(self, picture: Tensor, saliency: Tensor) -> dict[str, Tensor]:
        """See `Guide`: of every stage, and the fused one."""
        seen = self.branch(saliency)
        masks = {name: mask(seen[name]) for name, mask in zip(self.setting.stages, self.attention, strict=True)}
        if self.fusion is not None and self.setting.fused is not None:
            pooled = [F.adaptive_avg_pool2d(mask, self.grid) for mask in masks.values()]
            masks[self.setting.fused] = self.fusion(torch.cat(pooled, dim=1))
        return masks

    def join(self, features: Tensor) -> Tensor:
        """See `Guide`."""
        return super().join(features) if self.slices is None else self.slices(features)


class SliceAttention(nn.Module):
    """Features "b s f" -> their weighted mean "b f" over slices.

    A slice's weight in (0, 1) is the sigmoid of a perceptron over its own features: one hidden layer, leaky ReLU,
    dropout 0.1 (section 4.2). Divided by the weights' sum; all weigh the same at the start, so that a baseline that
    averages its slices is where it begins.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.perceptron = nn.Sequential(nn.Linear(features, hidden), nn.LeakyReLU(), nn.Dropout(0.1), last)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        weights = self.perceptron(features).sigmoid()
        total = reduce(weights, "b s 1 -> b 1", "sum").clamp(min=TINY)
        return reduce(weights * features, "b s f -> b f", "sum") / total


class _Seen(Exception):
    """All stages have run: the rest of the branch would be thrown away."""


class SaliencyBranch(nn.Module):
    """The baseline's architecture over saliency maps "n 1 h w", with weights of its own -> features by stage.

    It ends at its last stage: what comes after it (the classification layer always) is taken out.
    """

    def __init__(self, card: ClassifierCard, stages: tuple[str, ...]) -> None:
        super().__init__()
        self.stages = stages
        self.net = build_network(card).net
        self._take_out_the_rest(probe(2, 1, card.preparation.size))

    def forward(self, saliency: Tensor) -> dict[str, Tensor]:
        """See the class."""
        seen: dict[str, Tensor] = {}

        def keep(name: str, features: Any) -> None:
            seen[name] = features
            if len(seen) == len(self.stages):
                raise _Seen

        with suppress(_Seen), watched(self.net, self.stages, keep):
            self.net(saliency)
        return seen

    def _take_out_the_rest(self, example: Tensor) -> None:
        """Remove the modules none of whose weights reach a stage; single weights that do not are frozen."""
        self.net.eval()  # a try of it must not move batch statistics
        with torch.enable_grad():
            weights = [weight for weight in self.net.parameters() if weight.requires_grad]
            total = sum(features.sum() for features in self(example).values())
            slopes = torch.autograd.grad(total, weights, allow_unused=True)  # type: ignore[arg-type]
        self.net.train()
        unused = {id(weight) for weight, slope in zip(weights, slopes, strict=True) if slope is None}
        removed: list[str] = []
        for name, module in list(self.net.named_modules()):
            own = list(module.parameters())
            if not name or not own or any(name.startswith(f"{gone}.") for gone in removed):
                continue
            if all(id(weight) in unused for weight in own):
                self.net.set_submodule(name, nn.Identity())
                removed.append(name)
        for weight in self.net.parameters():
            if id(weight) in unused:
                weight.requires_grad_(False)
