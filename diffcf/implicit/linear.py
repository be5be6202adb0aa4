"""Linear systems A w = v of many samples at once, each with its own step sizes and its own end.

`matvec` maps "b ..." to "b ..." and never mixes samples. What did not go well is returned, not hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcf.distances import dot, norm, per_sample

MatVec = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearSolution:
    """w "b ...", |A w - v| / |v| "b" (0 for v = 0), and whether A was found not to be positive definite, bool "b"."""

    value: Tensor
    residual: Tensor
    indefinite: Tensor


def conjugate_gradients(matvec: MatVec, vector: Tensor, iterations: int, tolerance: float) -> LinearSolution:
    """Hestenes and Stiefel's method for positive definite A (paper 001, section 4.2).

    A sample stops where its residual falls below `tolerance`, and where it meets a direction of no or negative
    curvature, along which its quadratic has no minimum: it keeps what it has, nothing at all where that was the first
    direction, and says so in `indefinite`.
    """
    value, residual = torch.zeros_like(vector), vector.clone()
    direction = residual.clone()
    size = dot(residual, residual)
    asked = tolerance**2 * size
    indefinite = torch.zeros_like(size, dtype=torch.bool)
    live = size > 0
    for _ in range(iterations):
        if not bool(live.any()):
            break
        product = matvec(direction)
        curvature = dot(direction, product)
        # Rounding makes a zero curvature positive or negative by chance.
        flat = curvature <= 10 * torch.finfo(size.dtype).eps * norm(direction) * norm(product)
        bad = live & flat
        indefinite |= bad
        live = live & ~bad
        step = torch.where(live, size / torch.where(live, curvature, torch.ones_like(size)), torch.zeros_like(size))
        value = value + per_sample(step, value) * direction
        residual = residual - per_sample(step, value) * product
        new = dot(residual, residual)
        again = torch.where(live, new / size.clamp(min=_tiny(size)), torch.zeros_like(new))
        direction = residual + per_sample(again, value) * direction
        size = torch.where(live, new, size)
        live = live & (size > asked)
    return LinearSolution(value, relative_residual(matvec, value, vector), indefinite)


def minimal_residual(matvec: MatVec, vector: Tensor, iterations: int, tolerance: float) -> LinearSolution:
    """MINRES (Paige and Saunders 1975), for symmetric A that may be indefinite.

    `indefinite` where a Lanczos direction of negative curvature was met; the solution stands nevertheless.
    """
    beta = norm(vector)
    first = beta
    indefinite = torch.zeros_like(beta, dtype=torch.bool)
    old, now = torch.zeros_like(vector), vector / per_sample(beta.clamp(min=_tiny(beta)), vector)
    value = torch.zeros_like(vector)
    before, last = torch.zeros_like(vector), torch.zeros_like(vector)  # search directions
    cosine, sine = -torch.ones_like(beta), torch.zeros_like(beta)
    delta, epsilon = torch.zeros_like(beta), torch.zeros_like(beta)
    left, previous = first.clone(), torch.zeros_like(beta)
    live = beta > 0
    for _ in range(iterations):
        if not bool(live.any()):
            break
        product = matvec(now)
        alpha = dot(now, product)
        indefinite |= live & (alpha < 0)
        fresh = product - per_sample(alpha, now) * now - per_sample(previous, old) * old
        following = norm(fresh)
        # The last rotation, then the one that zeroes the new entry below the diagonal.
        diagonal, gamma = cosine * delta + sine * alpha, sine * delta - cosine * alpha
        skipped, epsilon, delta = epsilon, sine * following, -cosine * following
        length = torch.hypot(gamma, following)
        safe = length.clamp(min=_tiny(length))
        cosine, sine = gamma / safe, following / safe
        direction = (now - per_sample(diagonal, now) * last - per_sample(skipped, now) * before) / per_sample(safe, now)
        moving = live & (length > _tiny(length))
        step = torch.where(moving, cosine * left, torch.zeros_like(left))
        value = value + torch.where(per_sample(moving, value), per_sample(step, value) * direction, 0.0)
        left = torch.where(moving, sine * left, left)
        before, last = last, torch.where(per_sample(moving, value), direction, torch.zeros_like(direction))
        old, now = now, fresh / per_sample(following.clamp(min=_tiny(following)), fresh)
        previous = following
        live = moving & (left.abs() > tolerance * first) & (following > 10 * torch.finfo(first.dtype).eps * length)
    return LinearSolution(value, relative_residual(matvec, value, vector), indefinite)


def neumann_series(matvec: MatVec, vector: Tensor, rate: float, terms: int) -> LinearSolution:
    """rate * sum_{k < terms} (I - rate A)^k v (Lorraine et al. 2020), which converges where |I - rate A| < 1.

    One term is the Jacobian-free form. `indefinite` where a term was larger than the one before it: there the series
    diverges, since A is not positive definite or the rate too large.
    """
    term = rate * vector
    value, size = term.clone(), norm(term)
    indefinite = torch.zeros_like(size, dtype=torch.bool)
    for _ in range(terms - 1):
        term = term - rate * matvec(term)
        new = norm(term)
        indefinite |= new > size * (1 + 1e-6)
        value, size = value + term, new
    return LinearSolution(value, relative_residual(matvec, value, vector), indefinite)


def relative_residual(matvec: MatVec, value: Tensor, vector: Tensor) -> Tensor:
    """|A w - v| / |v|, "b"; 0 for v = 0."""
    scale = norm(vector)
    error = norm(matvec(value) - vector) / scale.clamp(min=_tiny(scale))
    return torch.where(scale > 0, error, torch.zeros_like(scale))


def _tiny(value: Tensor) -> float:
    return torch.finfo(value.dtype).tiny
