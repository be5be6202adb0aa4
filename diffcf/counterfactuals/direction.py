"""Where to go: the direction in code space along which the agent's score of a class rises (paper 004, Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from einops import reduce
from torch import Tensor
from torch.nn import functional as F

from diffcf.distances import per_sample
from diffcf.types import Candidate, Code, Scorer

Score = Literal["logit", "log_odds"]
Covariance = Callable[[Tensor], Tensor]


def class_score(logits: Tensor, target: Tensor, score: Score) -> Tensor:
    """The number whose gradient is followed, "b".

    logits: "b k"; target: int "b". "logit" is y'_i, the raw logit of class i, as in paper 004, Eq. 2. "log_odds" is
    log p_i / (1 - p_i) = y'_i - logsumexp of the other logits (for two classes their difference), which alone decides
    p_i: what raises *all* logits moves the raw one and leaves the probability where it was.
    """
    chosen = F.one_hot(target, logits.shape[1]).bool()
    raw = (logits * chosen).sum(1)
    return raw if score == "logit" else raw - logits.masked_fill(chosen, -torch.inf).logsumexp(1)


def shift_direction(
    scorer: Scorer,
    code: Code,
    target: Tensor,
    *,
    score: Score = "log_odds",
    covariance: Covariance | None = None,
) -> Tensor:
    """The steepest direction of the scorer's class score at a code, one spread of the codes long: like `code.semantic`.

    With g = d score / d q and C the codes' covariance, the direction is C g / sqrt(g' C g): of all shifts that are
    as far in the metric of C (the Mahalanobis distance), it raises the score most. A step of size 1 is then one
    standard deviation of the codes along that line. Without a covariance it is g / |g|: the gradient itself as the
    paper has it, and steps are in the code's own unit.

    target: int "b". covariance: applies C to gradients "b ..."; `Agent.covariance`, or `spread_covariance` for a
    diagonal one. A scorer that does not depend on the code gives the zero direction.
    """
    with torch.enable_grad():
        semantic = code.semantic.detach().requires_grad_(True)
        point = Candidate(Code(semantic, code.stochastic), _undecodable)
        risen = class_score(scorer(point), target, score)
        if risen.requires_grad:
            (gradient,) = torch.autograd.grad(risen.sum(), semantic, allow_unused=True, materialize_grads=True)
        else:
            gradient = torch.zeros_like(code.semantic)
    along = gradient if covariance is None else covariance(gradient)
    length = reduce(gradient * along, "b ... -> b", "sum").clamp(min=0).sqrt()
    return along * per_sample(torch.where(length > 0, 1 / length, 0.0), along)


def spread_covariance(spread: Tensor) -> Covariance:
    """The diagonal covariance of codes with standard deviations `spread`, which broadcasts over them."""
    return lambda gradient: spread.to(gradient).square() * gradient


def shifted(code: Code, direction: Tensor, step: Tensor) -> Code:
    """The code q + step * direction (Eq. 2; a negative step is its second line); step: "b"."""
    return Code(code.semantic + per_sample(step.to(direction), direction) * direction, code.stochastic)


def _undecodable(code: Code) -> Tensor:
    raise AssertionError("a direction is taken in code space: its scorer reads no image")
