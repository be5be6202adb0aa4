"""How far a search has moved, per sample: what the objective of a counterfactual adds to the classifier's loss.

A distance takes the change of whatever is searched (code, image or attributes), "b ...", and gives "b". Those with a
kink at 0 have a proximal step in closed form, which is what makes their solutions sparse: a gradient never reaches an
exact zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor

from diffcf.errors import ConfigError

Reduction = Literal["sum", "mean"]


class Distance(ABC):
    """Change "b ..." -> distance "b", 0 where nothing changed. A config names subclasses: {class_path, init_args}."""

    @abstractmethod
    def __call__(self, change: Tensor) -> Tensor:
        """The distance of every sample, "b"."""


class Proximal(Distance):
    """A distance with a proximal step."""

    @abstractmethod
    def prox(self, change: Tensor, step: Tensor) -> Tensor:
        """argmin_u ||u - change||^2 / 2 + step * distance(u); change "b ...", step "b"."""


@dataclass(frozen=True)
class L1(Proximal):
    """sum_i |d_i| / scale_i. Proximal step: soft-thresholding.

    reduction: "sum", or "mean" over the sample's entries (the release of paper 003 weighs the mean). scale: a tensor
    that broadcasts against a sample, such as median absolute deviations (Wachter et al. 2017); None is 1.
    """

    reduction: Reduction = "sum"
    scale: Tensor | None = None

    def __call__(self, change: Tensor) -> Tensor:
        """Change "b ..." -> "b"."""
        return _reduced(_scaled(change, self.scale).abs(), self.reduction)

    def prox(self, change: Tensor, step: Tensor) -> Tensor:
        """Every entry towards 0 by step (divided by its scale, and by the number of entries for a mean)."""
        threshold = per_sample(step, change) / _count(change, self.reduction)
        threshold = threshold if self.scale is None else threshold / self.scale
        return change.sign() * (change.abs() - threshold).clamp(min=0)


@dataclass(frozen=True)
class GroupL1(Proximal):
    """sum over places of the Euclidean norm over the channels there; proximal step: group soft-thresholding.

    Over a spatial code "b s d h w" or an image "b s c h w" the groups are places (s, h, w); over a vector "b s d" every
    entry is its own, as for L1. A place changes in all its channels or in none.
    """

    def __call__(self, change: Tensor) -> Tensor:
        """Change "b ..." -> "b"."""
        return _reduced(self.norms(change), "sum")

    def prox(self, change: Tensor, step: Tensor) -> Tensor:
        """The norm of every group towards 0 by step "b"."""
        norms = self.norms(change)
        return change * (1 - per_sample(step, change) / norms.clamp(min=torch.finfo(change.dtype).tiny)).clamp(min=0)

    @staticmethod
    def norms(change: Tensor) -> Tensor:
        """Of every group, "b s 1 h w"; of every entry where each is its own."""
        return torch.linalg.vector_norm(change, dim=2, keepdim=True) if change.ndim == 5 else change.abs()


@dataclass(frozen=True)
class SmoothL1(Distance):
    """sum_i sqrt(d_i^2 + eps^2) - eps: L1 without its kink, which the implicit function theorem needs."""

    eps: float = 1e-2
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ConfigError(f"eps {self.eps}: expected a positive number; L1 is the distance without one.")

    def __call__(self, change: Tensor) -> Tensor:
        """Change "b ..." -> "b"."""
        return _reduced((change.square() + self.eps**2).sqrt() - self.eps, self.reduction)


@dataclass(frozen=True)
class SquaredL2(Proximal):
    """sum_i (d_i / scale_i)^2 / 2. scale: as of `L1`, such as standard deviations. Proximal step: shrinkage."""

    reduction: Reduction = "sum"
    scale: Tensor | None = None

    def __call__(self, change: Tensor) -> Tensor:
        """Change "b ..." -> "b"."""
        return _reduced(_scaled(change, self.scale).square() / 2, self.reduction)

    def prox(self, change: Tensor, step: Tensor) -> Tensor:
        """change / (1 + step / scale^2)."""
        pull = per_sample(step, change) / _count(change, self.reduction)
        return change / (1 + (pull if self.scale is None else pull / self.scale**2))


def median_deviation(values: Tensor) -> Tensor:
    """The median absolute deviation of every entry over samples "n ...", the scale of Wachter's L1.

    Entries that never vary get the smallest deviation of the others, since no distance can be divided by 0.
    """
    return _positive((values - values.median(0).values).abs().median(0).values)


def standard_deviation(values: Tensor) -> Tensor:
    """The standard deviation of every entry over samples "n ...", the scale of a scaled L2; zeros as above."""
    return _positive(values.std(0))


def _positive(scale: Tensor) -> Tensor:
    if not bool((scale > 0).any()):
        raise ConfigError("no entry varies over these samples, so they give no scale; use the distance without one.")
    return torch.where(scale > 0, scale, scale[scale > 0].min())


def _scaled(change: Tensor, scale: Tensor | None) -> Tensor:
    return change if scale is None else change / scale


def _reduced(values: Tensor, reduction: Reduction) -> Tensor:
    return reduce(values, "b ... -> b", reduction)


def _count(change: Tensor, reduction: Reduction) -> int:
    return 1 if reduction == "sum" else change[0].numel()


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """A figure a sample, "b", so that it broadcasts against "b ..."."""
    return rearrange(values, f"b -> b {' '.join('1' * (like.ndim - 1))}")


def norm(value: Tensor) -> Tensor:
    """The Euclidean norm of every sample, "b ..." -> "b"."""
    return value.flatten(1).norm(dim=1)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """The inner product of every sample, "b ..." twice -> "b"."""
    return (left * right).flatten(1).sum(1)
