"""What a search minimises: the black box's loss at the target plus a weighted distance, sample by sample.

    argmin_u  loss(f(image(u)), y*) + distance_weight * distance(u - u_0)

It is Eq. 4 of paper 003, Eq. 1-2 of papers 000 and 001, Eq. 2 of paper 002 (whose weight multiplies the loss, so that
`distance_weight` is its inverse), and Wachter's where u are pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffcf.counterfactuals.direction import class_score
from diffcf.distances import Distance, Proximal

Part = Callable[[Tensor, Tensor], Tensor]
Kind = Literal["cross_entropy", "margin", "logit"]


@dataclass(frozen=True)
class Loss:
    """The classifier's loss at the target, logits "b k" and target int "b" -> "b".

    kind "cross_entropy": -log softmax(logits)_y*, the papers' own. "margin": relu(asked - margin)^2 / 2 of the margin
    log p / (1 - p), which is 0 where the asked probability is reached: nothing pulls beyond it, and its curvature does
    not vanish on the way. "logit": minus the raw logit, of paper 004.
    """

    kind: Kind = "margin"
    probability: float = 0.75

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of every sample."""
        if self.kind == "cross_entropy":
            return F.cross_entropy(logits, target, reduction="none")
        if self.kind == "logit":
            return -class_score(logits, target, "logit")
        asked = log(self.probability / (1 - self.probability))
        return (asked - class_score(logits, target, "log_odds")).clamp(min=0).square() / 2


@dataclass(frozen=True)
class Objective:
    """The objective of b samples, over variables u "b ...".

    loss_at: (u "m ...", sample indices "m") -> "m", the differentiable part without the distance. origin: u_0, "b ...".
    weight: `distance_weight` of every sample, "b". distance: of u - u_0; None is nothing. low, high: what u may be at
    most, pixels' [-1, 1] for example.
    """

    loss_at: Part
    origin: Tensor
    weight: Tensor
    distance: Distance | None = None
    low: float | Tensor | None = None
    high: float | Tensor | None = None

    def of(self, samples: Tensor) -> Objective:
        """The objective of some of the samples, numbered anew."""
        return replace(
            self,
            loss_at=lambda value, index: self.loss_at(value, samples[index]),
            origin=self.origin[samples],
            weight=self.weight[samples],
            low=_of(self.low, samples),
            high=_of(self.high, samples),
        )

    @property
    def has_prox(self) -> bool:
        """Whether the distance has a proximal step."""
        return isinstance(self.distance, Proximal)

    def smooth(self, value: Tensor, index: Tensor) -> Tensor:
        """The part that gradients descend, "m": the loss, and the distance where it has no proximal step."""
        loss = self.loss_at(value, index)
        if self.distance is None or self.has_prox:
            return loss
        return loss + self.weight[index] * self.distance(value - self.origin[index])

    def kinked(self, value: Tensor, index: Tensor) -> Tensor:
        """The rest of the objective, "m"."""
        if isinstance(self.distance, Proximal):
            return self.weight[index] * self.distance(value - self.origin[index])
        return torch.zeros_like(self.weight[index])

    def whole(self, value: Tensor, index: Tensor) -> Tensor:
        """The objective itself, "m"."""
        return self.smooth(value, index) + self.kinked(value, index)

    def prox(self, value: Tensor, step: Tensor, index: Tensor) -> Tensor:
        """The proximal step of the kinked part with the box, value "m ...", step size "m".

        With a box this is exact for distances that act entry by entry, as the clamp of a one-dimensional convex
        problem is its solution.
        """
        origin = self.origin[index]
        if isinstance(self.distance, Proximal):
            value = origin + self.distance.prox(value - origin, step * self.weight[index])
        return self.bounded(value, index)

    def bounded(self, value: Tensor, index: Tensor) -> Tensor:
        """The nearest value "m ..." inside the box."""
        if self.low is None and self.high is None:
            return value
        return value.clamp(_of(self.low, index), _of(self.high, index))  # type: ignore[arg-type]


def _of(bound: float | Tensor | None, samples: Tensor) -> float | Tensor | None:
    return bound[samples] if isinstance(bound, Tensor) else bound


def gradient(part: Part, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """(part "m", its gradient "m ...") at value "m ..."."""
    with torch.enable_grad():
        leaf = value.detach().requires_grad_()
        each = part(leaf, index)
        (slope,) = torch.autograd.grad(each.sum(), leaf)
    return each.detach(), slope
