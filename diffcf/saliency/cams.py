"""Saliency from the maps inside a classifier: class activation maps of one of its layers, upsampled bilinearly.

A layer is named as `named_modules` has it. Without a name it is the last one whose output has rows and columns, the
paper's "last convolutional layer".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.errors import ConfigError
from diffcf.saliency.protocol import SaliencyMethod, explained, normalised, slope


@dataclass(frozen=True)
class GradientCAM(SaliencyMethod):
    """relu of the sum over channels of weight * activation; a new one is a frozen dataclass with `weights`.

    layer: whose output is read; None is the last one that has rows and columns.

    Errors: ConfigError for a name that is not there, and for a layer that is no map of every scan or slice.
    """

    layer: str | None = None

    @abstractmethod
    def weights(self, maps: Tensor, slopes: Tensor) -> Tensor:
        """Activations and the gradients of the log-odds in them, "n f y x" both -> weights that broadcast to them."""

    def find(self, classifier: nn.Module, image: Tensor, target: Tensor | None, generator: Any) -> Tensor:
        """See `SaliencyMethod`."""
        with torch.enable_grad(), outputs(classifier, self.layer) as seen:
            logits = classifier(image.detach().requires_grad_())
            maps = _chosen(seen, self.layer, image)
            slopes = slope(explained(logits, target), maps)
        maps = maps.detach()
        weighed = reduce(self.weights(maps, slopes) * maps, "n f y x -> n 1 y x", "sum").clamp(min=0)
        return _of_scans(_enlarged(weighed, image), image)


@dataclass(frozen=True)
class HiResCAM(GradientCAM):
    """The weight of every place is the gradient there (Draelos and Carin 2020).

    Where the classifier averages its last maps and reads them linearly, HiResCAM there is the exact part of every place
    in the logit; earlier layers are finer (`half_resolution_layer`).
    """

    def weights(self, maps: Tensor, slopes: Tensor) -> Tensor:
        """See `GradientCAM`."""
        return slopes


@dataclass(frozen=True)
class GradCAM(GradientCAM):
    """The weight of a channel is its mean gradient over all places (Selvaraju et al. 2017, Eq. 1-2)."""

    def weights(self, maps: Tensor, slopes: Tensor) -> Tensor:
        """See `GradientCAM`."""
        return reduce(slopes, "n f y x -> n f 1 1", "mean")


@dataclass(frozen=True)
class GradCAMPlusPlus(GradientCAM):
    """The weight of a channel is its rising gradients g, each with the share g^2 / (2 g^2 + g^3 * sum of the channel).

    Chattopadhyay et al. 2018, Eq. 10 and 19, for the exponential of the score; its own factor, the same for all
    channels of a scan, is left out.
    """

    def weights(self, maps: Tensor, slopes: Tensor) -> Tensor:
        """See `GradientCAM`."""
        square = slopes.square()
        below = 2 * square + slopes * square * reduce(maps, "n f y x -> n f 1 1", "sum")
        share = torch.where(below == 0, 0.0, square / torch.where(below == 0, 1.0, below))
        return reduce(share * slopes.clamp(min=0), "n f y x -> n f 1 1", "sum")


@dataclass(frozen=True)
class ScoreCAM(SaliencyMethod):
    """relu of the sum over channels of weight * activation, the weights without a gradient (Wang et al. 2020).

    A channel's upsampled activation, in [0, 1] over each scan, masks the image towards black, -1. The weights are the
    softmax over the channels of the log-odds that are left. A classifier that reads nothing weighs all channels alike.

    layer: whose output is read; None is the last one that has rows and columns. batch: channels that are tried at once.
    Costs one evaluation a channel.

    Errors: ConfigError as of `GradientCAM`.
    """

    layer: str | None = None
    batch: int = 32

    def find(self, classifier: nn.Module, image: Tensor, target: Tensor | None, generator: Any) -> Tensor:
        """See `SaliencyMethod`."""
        with outputs(classifier, self.layer) as seen:
            logits = classifier(image)
            maps = _chosen(seen, self.layer, image)
        target = logits.argmax(1) if target is None else target
        scores = []
        for channels in maps.split(self.batch, dim=1):
            count = channels.shape[1]
            flat = rearrange(_enlarged(channels, image), "n f h w -> (f n) 1 h w")
            mask = normalised(_of_scans(flat, repeat(image, "b s c h w -> (f b) s c h w", f=count)))
            masked = repeat(image + 1, "b s c h w -> (f b) s c h w", f=count) * mask - 1
            left = explained(classifier(masked), repeat(target, "b -> (f b)", f=count))
            scores.append(rearrange(left, "(f b) -> b f", f=count))
        weight = torch.cat(scores, 1).softmax(1).repeat_interleave(len(maps) // len(image), dim=0)
        weighed = reduce(rearrange(weight, "n f -> n f 1 1") * maps, "n f y x -> n 1 y x", "sum").clamp(min=0)
        return _of_scans(_enlarged(weighed, image), image)


@torch.no_grad()
def half_resolution_layer(classifier: nn.Module, image: Tensor) -> str:
    """The last module whose maps have half the image's side, by name: the layer for `HiResCAM` where nobody has chosen
    one, fine enough to lie inside a lesion and deep enough to know one. The same rule for every architecture.

    Errors: ConfigError where there is none.
    """
    side = image.shape[-1] // 2
    with outputs(classifier) as seen:
        classifier(image)
    found = [name for name, maps in seen if maps.shape[-2:] == (image.shape[-2] // 2, side)]
    if not found:
        raise ConfigError(f"no layer of the classifier has maps of {side} pixels a side; name a layer for HiResCAM.")
    return found[-1]


@contextmanager
def outputs(classifier: nn.Module, layer: str | None = None) -> Iterator[list[tuple[str, Tensor]]]:
    """What modules put out as long as the block runs, names and maps "n f y x" in the order in which they are ready.

    layer: of this one only. Errors: ConfigError for a name that is not there, and for a network that keeps its channels
    last, whose outputs are no such maps.
    """
    modules = dict(classifier.named_modules())
    if any(str(getattr(module, "output_fmt", "NCHW")) != "NCHW" for module in modules.values()):
        raise ConfigError(
            "the classifier keeps channels last, so that its layers put out no maps (n, channels, rows, columns); take "
            "a method of gradients or counterfactuals."
        )
    if layer is not None and layer not in modules:
        raise ConfigError(f"the classifier has no layer {layer!r}; there are {', '.join(list(modules)[1:20])}.")
    seen: list[tuple[str, Tensor]] = []
    handles = []
    for name, module in modules.items() if layer is None else [(layer, modules[layer])]:

        def keep(module: nn.Module, given: Any, output: Any, name: str = name) -> Tensor | None:
            if not isinstance(output, Tensor) or output.ndim != 4:
                return None
            seen.append((name, output))
            return None if layer is None else output.clone()  # what comes next may change it in place

        handles.append(module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _chosen(seen: list[tuple[str, Tensor]], layer: str | None, image: Tensor) -> Tensor:
    """The maps "n f y x" of the layer, n scans or slices."""
    scans, slices = image.shape[:2]
    fitting = [maps for _, maps in seen if len(maps) in (scans, scans * slices)]
    if layer is None:
        fitting = [maps for maps in fitting if maps.shape[-2] * maps.shape[-1] > 1][-1:]
    parts = next((len(maps) for _, maps in seen if len(maps) > scans * slices), 0)
    if not fitting and parts:
        raise ConfigError(
            f"the classifier looks at parts of the image: {parts} of {scans * slices} slices, so that maps of its "
            "layers do not lie over the image; take a method of gradients or counterfactuals."
        )
    if len(fitting) != 1:
        raise ConfigError(
            f"{'no layer' if layer is None else f'the layer {layer!r}'} puts out maps of {scans} scans of {slices} "
            f"slices exactly once (it did so {len(fitting)} times); name another layer of the classifier."
        )
    return fitting[0]


def _enlarged(maps: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(maps, image.shape[-2:], mode="bilinear", align_corners=False)


def _of_scans(maps: Tensor, image: Tensor) -> Tensor:
    """Maps "n 1 h w" of scans or slices -> "b s 1 h w"; slices that are one picture's channels share its map."""
    scans, slices = image.shape[:2]
    if len(maps) == scans:
        return repeat(maps, "b 1 h w -> b s 1 h w", s=slices)
    return rearrange(maps, "(b s) 1 h w -> b s 1 h w", s=slices)
