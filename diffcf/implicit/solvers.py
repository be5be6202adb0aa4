"""Inner solvers: how u* is found while a classifier trains. Every step can be differentiated, for `Unrolled`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor

from diffcf.distances import Proximal, SquaredL2, per_sample
from diffcf.errors import ConfigError
from diffcf.implicit.problem import Problem, loss_curvature

ACTIVE_SETS = 8  # guesses at which coordinates the bounds hold; few are needed


@dataclass(frozen=True)
class InnerSolver(ABC):
    """So many equal steps. A config names subclasses: {class_path, init_args}."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"{self}: expected one step or more; without any nothing is searched.")
        if getattr(self, "rate", 1.0) <= 0:
            raise ConfigError(f"{self}: expected a rate above 0; below, the objective is climbed.")

    @abstractmethod
    def step(self, problem: Problem, value: Tensor, differentiable: bool) -> Tensor:
        """One step from u "b ...". differentiable: with a graph to θ and to `value`."""


def run(solver: InnerSolver, problem: Problem, start: Tensor) -> Tensor:
    """All steps, without a graph."""
    value = start.detach()
    for _ in range(solver.steps):
        value = solver.step(problem, value, differentiable=False).detach()
    return value


@dataclass(frozen=True)
class GaussNewton(InnerSolver):
    """Linearise the outputs at u, and solve the rest exactly: for a squared distance and a loss convex in the outputs.

    The minimiser of loss(s + J (u' - u)) + w |(u' - u_0) / scale|^2 / 2 is u_0 - D^-1 J^T y, D = w / scale^2, with
    y = gradient of the loss at s + J (u_0 - u) - J D^-1 J^T y: k equations, solved by Newton's method. A network that
    is piecewise linear along the way needs 3 to 5 steps where gradient descent needs hundreds. Where the outputs bend,
    the whole step can lead beyond the solution and back for ever; it is halved, sample by sample and at most `halvings`
    times, until T falls. Costs k gradients of the network a step, and one evaluation for every length that is tried;
    outputs of one margin make k = 1. Where u has bounds, coordinates that the solution takes beyond them are held there
    and the others solved anew, until the same ones are held.

    Errors: ConfigError for other distances than SquaredL2.
    """

    steps: int = 4
    halvings: int = 3
    newton: int = 50  # of k equations in k unknowns; far from rest cross-entropy over several outputs takes dozens

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.halvings < 0 or self.newton < 1:
            raise ConfigError(f"{self}: expected no halvings or some, and one step of Newton's method or more.")

    def step(self, problem: Problem, value: Tensor, differentiable: bool) -> Tensor:
        """See `InnerSolver`."""
        distance = problem.distance
        if not isinstance(distance, SquaredL2):
            raise ConfigError(
                f"the Gauss-Newton solver needs the distance SquaredL2, got {type(distance).__name__}; take "
                "ProximalSteps for L1 and GroupL1."
            )
        with torch.enable_grad():
            leaf = value if value.requires_grad else value.detach().requires_grad_()
            outputs = problem.logits(leaf)
            jacobian = torch.stack(
                [
                    torch.autograd.grad(outputs[:, j].sum(), leaf, retain_graph=True, create_graph=differentiable)[0]
                    for j in range(outputs.shape[1])
                ],
                1,
            )
        with torch.set_grad_enabled(differentiable):
            softness = 1 / problem.weights if distance.reduction == "sum" else value[0].numel() / problem.weights
            scaled = jacobian if distance.scale is None else jacobian * distance.scale**2
            scaled = scaled * rearrange(softness, f"b -> b 1 {' '.join('1' * (value.ndim - 1))}")
            flat, soft = jacobian.flatten(2), scaled.flatten(2)
            back = outputs + einsum(flat, (problem.origin - leaf).flatten(1), "b k n, b n -> b k")
            held = torch.zeros_like(leaf, dtype=torch.bool)
            for _ in range(ACTIVE_SETS):
                free = (~held).flatten(1)
                gram = einsum(flat, soft * free[:, None], "b i n, b j n -> b i j")
                pulled = self._multipliers(problem, back, gram, differentiable)
                moved = einsum(scaled, pulled, "b k ..., b k -> b ...")
                whole = problem.bounded(problem.origin - moved)
                beyond = whole.detach() != (problem.origin - moved).detach()
                if bool((beyond == held).all()):
                    break
                held = beyond
                fixed = torch.where(held, whole.detach() - leaf, problem.origin - leaf)
                back = outputs + einsum(flat, fixed.flatten(1), "b k n, b n -> b k")
            share = self._share(problem, leaf.detach(), whole.detach(), outputs.detach())
            return torch.lerp(leaf, whole, per_sample(share, leaf).expand_as(leaf))  # exactly whole at 1: on a bound

    @torch.no_grad()
    def _share(self, problem: Problem, value: Tensor, whole: Tensor, outputs: Tensor) -> Tensor:
        """How much of the step is taken, "b": 1, 1/2, ... until T is below its value at u."""
        share = torch.ones_like(problem.weights)
        if self.halvings == 0:
            return share
        now = problem.loss(outputs) + problem.weights * problem.distance(value - problem.origin)
        for _ in range(self.halvings):
            higher = problem.whole(value + per_sample(share, value) * (whole - value)) > now
            if not bool(higher.any()):
                break
            share = torch.where(higher, share / 2, share)
        return share

    def _multipliers(self, problem: Problem, back: Tensor, gram: Tensor, differentiable: bool) -> Tensor:
        """y "b k" with y = loss'(back - gram y)."""
        with torch.no_grad():
            found = _slope(problem, back.detach())
            found = torch.where(found.isfinite(), found, torch.zeros_like(found))
            error = self._error(problem, found, back, gram)
            for _ in range(self.newton):
                # What rounding leaves: the curve is read at back - gram y, whose parts may be much larger than y.
                parts = found.norm(dim=1) + einsum(gram, found, "b i j, b j -> b i").norm(dim=1) + back.norm(dim=1)
                if bool((error.norm(dim=1) <= 4 * torch.finfo(error.dtype).eps * (1 + parts)).all()):
                    break
                move = torch.linalg.solve(self._tangent(problem, found, back, gram), error)
                share = torch.ones_like(move[:, :1])
                for _ in range(8):  # halve the step of every sample whose error does not fall
                    tried = self._error(problem, found - share * move, back, gram)
                    worse = tried.norm(dim=1, keepdim=True) > error.norm(dim=1, keepdim=True)
                    if not bool(worse.any()):
                        break
                    share = torch.where(worse, share / 2, share)
                found = found - share * move
                error = self._error(problem, found, back, gram)
        if not differentiable:
            return found
        # One more step at the solution carries the whole first derivative (implicit function theorem).
        tangent = self._tangent(problem, found, back.detach(), gram.detach())
        inside = back - einsum(gram, found, "b i j, b j -> b i")
        slope = torch.autograd.grad(problem.loss(inside).sum(), inside, create_graph=True)[0]
        return found - torch.linalg.solve(tangent, found - slope)

    @staticmethod
    def _error(problem: Problem, found: Tensor, back: Tensor, gram: Tensor) -> Tensor:
        return found - _slope(problem, back - einsum(gram, found, "b i j, b j -> b i"))

    @staticmethod
    def _tangent(problem: Problem, found: Tensor, back: Tensor, gram: Tensor) -> Tensor:
        curvature = loss_curvature(problem.loss, back - einsum(gram, found, "b i j, b j -> b i"))
        return torch.eye(back.shape[1], dtype=back.dtype, device=back.device) + curvature @ gram


@dataclass(frozen=True)
class ProximalSteps(InnerSolver):
    """u <- prox(u - rate * gradient of the fit): exact zeros under L1 and GroupL1; plain gradient descent on T where
    the distance has no proximal step, such as SmoothL1. rate below 2 / the largest curvature, or it diverges."""

    steps: int = 100
    rate: float = 0.1

    def step(self, problem: Problem, value: Tensor, differentiable: bool) -> Tensor:
        """See `InnerSolver`."""
        proximal = isinstance(problem.distance, Proximal)
        with torch.enable_grad():
            leaf = value if value.requires_grad else value.detach().requires_grad_()
            descended = problem.fit(leaf) if proximal else problem.whole(leaf)
            (slope,) = torch.autograd.grad(descended.sum(), leaf, create_graph=differentiable)
        with torch.set_grad_enabled(differentiable):
            moved = leaf - self.rate * slope
            if not proximal:
                return problem.bounded(moved)
            return problem.prox(moved, torch.full((len(moved),), self.rate).to(moved))


@dataclass(frozen=True)
class SubgradientSteps(InnerSolver):
    """Gradient descent on the whole of T, kinks included, as the papers' own code does: what is small stays small and
    never becomes 0. Only for `Implicit(as_published=True)`."""

    steps: int = 20
    rate: float = 0.1

    def step(self, problem: Problem, value: Tensor, differentiable: bool) -> Tensor:
        """See `InnerSolver`."""
        with torch.enable_grad():
            leaf = value if value.requires_grad else value.detach().requires_grad_()
            (slope,) = torch.autograd.grad(problem.whole(leaf).sum(), leaf, create_graph=differentiable)
        with torch.set_grad_enabled(differentiable):
            return problem.bounded(leaf - self.rate * slope)


def _slope(problem: Problem, outputs: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(problem.loss(leaf).sum(), leaf)
    return slope
