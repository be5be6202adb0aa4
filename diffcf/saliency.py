"""Saliency of a classifier: image "b s c h w" -> map "b s 1 h w", at least 0; one small class a method.

`target` is the class that is explained, int "b"; None explains the log-odds of the class that is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.counterfactuals.direction import class_score
from diffcf.errors import ConfigError


class SaliencyMethod(Protocol):
    """A map of what decided."""

    def __call__(self, classifier: nn.Module, image: Tensor, target: Tensor | None = None) -> Tensor:
        """Images "b s c h w" -> maps "b s 1 h w"."""
        ...


def explained(logits: Tensor, target: Tensor | None) -> Tensor:
    """The number whose reasons are asked for, "b": the log-odds of the target."""
    return class_score(logits, logits.argmax(1) if target is None else target, "log_odds")


@dataclass(frozen=True)
class InputGradient:
    """|d log-odds / d x|, the largest over the channels (Simonyan et al. 2014)."""

    def __call__(self, classifier: nn.Module, image: Tensor, target: Tensor | None = None) -> Tensor:
        """See `SaliencyMethod`."""
        with torch.enable_grad():
            leaf = image.detach().requires_grad_()
            (slope,) = torch.autograd.grad(explained(classifier(leaf), target).sum(), leaf)
        return reduce(slope.abs(), "b s c h w -> b s 1 h w", "max")


@dataclass(frozen=True)
class HiResCAM:
    """relu of the sum over channels of activation * gradient (Draelos and Carin 2020), upsampled bilinearly.

    layer: name of the module whose output is read, as `named_modules` has it. Where the classifier averages its last
    maps and reads them linearly, HiResCAM there is the exact part of every place in the logit; earlier ones are finer.

    Errors: ConfigError for a name that is not there, and for several slices in one picture's channels.
    """

    layer: str

    def __call__(self, classifier: nn.Module, image: Tensor, target: Tensor | None = None) -> Tensor:
        """See `SaliencyMethod`."""
        modules = dict(classifier.named_modules())
        if self.layer not in modules:
            raise ConfigError(
                f"the classifier has no layer {self.layer!r}; there are {', '.join(list(modules)[1:20])}."
            )
        seen: list[Tensor] = []

        def keep(module: nn.Module, given: Any, output: Any) -> None:
            seen.append(output)

        handle = modules[self.layer].register_forward_hook(keep)
        try:
            with torch.enable_grad():
                leaf = image.detach().requires_grad_()
                logits = classifier(leaf)
                (slope,) = torch.autograd.grad(explained(logits, target).sum(), seen[0])
        finally:
            handle.remove()
        weighed = reduce(seen[0].detach() * slope, "n f y x -> n 1 y x", "sum").clamp(min=0)
        large = F.interpolate(weighed, image.shape[-2:], mode="bilinear", align_corners=False)
        if len(large) == len(image):
            return rearrange(large, "b 1 h w -> b 1 1 h w").expand(-1, image.shape[1], -1, -1, -1)
        return rearrange(large, "(b s) 1 h w -> b s 1 h w", b=len(image))


@torch.no_grad()
def half_resolution_layer(classifier: nn.Module, image: Tensor) -> str:
    """The last module whose maps have half the image's side, by name: the layer for `HiResCAM` where nobody has chosen
    one, fine enough to lie inside a lesion and deep enough to know one. The same rule for every architecture.

    Errors: ConfigError where there is none.
    """
    found: list[str] = []
    side = image.shape[-1] // 2
    handles = []
    for name, module in classifier.named_modules():

        def note(module: nn.Module, given: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] == side:
                found.append(name)

        handles.append(module.register_forward_hook(note))
    try:
        classifier(image)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ConfigError(f"no layer of the classifier has maps of {side} pixels a side; name a layer for HiResCAM.")
    return found[-1]


@dataclass(frozen=True)
class Occlusion:
    """How far the log-odds fall where a square is hidden behind the image's mean (Zeiler and Fergus 2014); rises are 0.

    side, stride: of the square, in pixels. Costs (side of the image / stride)^2 evaluations.
    """

    side: int = 8
    stride: int = 4

    @torch.no_grad()
    def __call__(self, classifier: nn.Module, image: Tensor, target: Tensor | None = None) -> Tensor:
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
