"""Solvers: how an objective is minimised, (objective, start) -> Solution; every sample stops by itself.

A finished sample is evaluated no more. Every solver stops a sample where its residual falls below `tolerance`, and
says so in `converged`; not to converge within the budget is a result, not an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcf.counterfactuals.objective import Objective, gradient
from diffcf.distances import dot, norm, per_sample
from diffcf.errors import ConfigError
from diffcf.types import Solution

Watch = Callable[[Tensor], None]  # shown every iterate of all samples, "b ..."


class Solver(ABC):
    """Minimises an objective from a start "b ...". A config names subclasses: {class_path, init_args}."""

    @abstractmethod
    def __call__(self, objective: Objective, start: Tensor, watch: Watch | None = None) -> Solution:
        """Returns the best point, of `ProximalGradient` the last. watch: called with the start and after every step."""


@dataclass(frozen=True)
class GradientDescent(Solver):
    """u <- prox(u - rate * gradient), with the box of the objective (paper 002, section 3.2).

    Plain descent: a distance with a kink is descended along its subgradient, as the papers' own code does, so that its
    solutions are small and never sparse. Residual: |gradient| of the whole objective.
    """

    rate: float = 0.1
    steps: int = 100
    tolerance: float = 1e-4

    def __call__(self, objective: Objective, start: Tensor, watch: Watch | None = None) -> Solution:
        """See `Solver`."""
        return _descend(objective, start, self.steps, self.tolerance, lambda slope, _: self.rate * slope, watch)


@dataclass(frozen=True)
class Adam(Solver):
    """Adam (Kingma and Ba 2015) on the whole objective, each sample with its own moments; kinks as above."""

    rate: float = 0.05
    steps: int = 100
    tolerance: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __call__(self, objective: Objective, start: Tensor, watch: Watch | None = None) -> Solution:
        """See `Solver`."""
        first, second = torch.zeros_like(start), torch.zeros_like(start)
        step = 0

        def move(slope: Tensor, index: Tensor) -> Tensor:
            nonlocal step
            step += 1
            first[index] = self.beta1 * first[index] + (1 - self.beta1) * slope
            second[index] = self.beta2 * second[index] + (1 - self.beta2) * slope.square()
            mean = first[index] / (1 - self.beta1**step)
            return self.rate * mean / ((second[index] / (1 - self.beta2**step)).sqrt() + self.eps)

        return _descend(objective, start, self.steps, self.tolerance, move, watch)


def _descend(
    objective: Objective,
    start: Tensor,
    steps: int,
    tolerance: float,
    move: Callable[[Tensor, Tensor], Tensor],
    watch: Watch | None,
) -> Solution:
    value, best = start.clone(), start.clone()
    lowest, residual = _infinite(start), _infinite(start)  # of the best one
    taken = torch.zeros(len(start), dtype=torch.long, device=start.device)
    index = torch.arange(len(start), device=start.device)
    for _ in range(steps + 1):
        if watch is not None:
            watch(value)
        each, slope = gradient(objective.whole, value[index], index)
        better = each < lowest[index]
        size = norm(slope)
        best[index[better]], lowest[index[better]] = value[index[better]], each[better]
        residual[index[better]] = size[better]
        going = size > tolerance
        index, slope = index[going], slope[going]
        if not len(index) or int(taken[index].max()) >= steps:
            break
        moved = value[index] - move(slope, index)
        value[index] = objective.bounded(moved, index)
        taken[index] += 1
    return Solution(best, residual <= tolerance, taken, residual)


@dataclass(frozen=True)
class ProximalGradient(Solver):
    """Accelerated proximal gradient: FISTA (Beck and Teboulle 2009) with backtracking and restart, sample by sample.

    u+ = prox_{t w distance}(v - t grad loss(v)), v = u+ + momentum (u+ - u). The step t is halved until the quadratic
    model at v lies above the loss, and grown by `growth` after a step that needed no halving; the momentum starts again
    where it points uphill (O'Donoghue and Candes 2015). Distances with a kink give exact zeros; without a distance
    these are accelerated gradient steps. Residual: |u+ - v| / t against the larger of 1 and |gradient|; 0 only where
    the objective's optimality condition holds.

    Errors: ConfigError for a distance without a proximal step.
    """

    first_step: float = 0.5
    steps: int = 100
    tolerance: float = 1e-3
    halvings: int = 12
    growth: float = 1.1

    def __call__(self, objective: Objective, start: Tensor, watch: Watch | None = None) -> Solution:
        """See `Solver`."""
        if objective.distance is not None and not objective.has_prox:
            raise ConfigError(
                f"{type(objective.distance).__name__} has no proximal step; take L1, GroupL1 or SquaredL2, or another "
                "solver."
            )
        value, ahead = start.clone(), start.clone()
        size = torch.full((len(start),), self.first_step, dtype=start.dtype, device=start.device)
        momentum = torch.ones_like(size)
        residual = _infinite(start)
        taken = torch.zeros(len(start), dtype=torch.long, device=start.device)
        done = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        for _ in range(self.steps):
            index = _live(done)
            if not len(index):
                break
            if watch is not None:
                watch(value)
            at = ahead[index]
            loss, slope = gradient(objective.smooth, at, index)
            new, step, fresh, lost = self._step(objective, at, loss, slope, size[index], index)
            new[lost] = value[index[lost]]  # and go on from there, in smaller steps
            taken[index] += 1
            moved = at - new
            residual[index] = norm(moved) / (step * norm(slope).clamp(min=1))
            residual[index[lost]] = torch.inf
            # Uphill against the last move: forget the momentum.
            uphill = dot(moved, new - value[index]) > 0
            old = torch.where(uphill, torch.ones_like(step), momentum[index])
            grown = (1 + (1 + 4 * old.square()).sqrt()) / 2
            push = torch.where(uphill, torch.zeros_like(old), (old - 1) / grown)
            ahead[index] = new + per_sample(push, new) * (new - value[index])
            value[index], momentum[index] = new, grown
            size[index] = torch.where(fresh, step * self.growth, step)
            done[index[residual[index] <= self.tolerance]] = True
        if watch is not None:
            watch(value)
        return Solution(value, residual <= self.tolerance, taken, residual)

    def _step(
        self, objective: Objective, at: Tensor, loss: Tensor, slope: Tensor, size: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(u+, the step size that gave it, whether the first one did, whether no step's loss is a number)."""
        step, fresh = size.clone(), torch.ones_like(size, dtype=torch.bool)
        new = objective.prox(at - per_sample(step, at) * slope, step, index)
        open_ = torch.arange(len(index), device=at.device)
        for _ in range(self.halvings):
            with torch.no_grad():
                reached = objective.smooth(new[open_], index[open_])
            move = new[open_] - at[open_]
            model = loss[open_] + dot(slope[open_], move) + dot(move, move) / (2 * step[open_])
            below = reached <= model + 4 * torch.finfo(loss.dtype).eps * loss[open_].abs()
            open_ = open_[~below]  # a loss that is no number lies below nothing
            if not len(open_):
                break
            step[open_] /= 2
            fresh[open_] = False
            tried = at[open_] - per_sample(step[open_], at) * slope[open_]
            new[open_] = objective.prox(tried, step[open_], index[open_])
        lost = torch.zeros_like(fresh)
        if len(open_):
            with torch.no_grad():
                lost[open_] = ~objective.smooth(new[open_], index[open_]).isfinite()
        return new, step, fresh, lost


def _live(done: Tensor) -> Tensor:
    return (~done).nonzero().squeeze(1)


def _infinite(start: Tensor) -> Tensor:
    return torch.full((len(start),), torch.inf, dtype=start.dtype, device=start.device)
