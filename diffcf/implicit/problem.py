"""An inner problem whose solution depends on parameters, and the curvature that its derivative needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from diffcf.distances import L1, Distance, GroupL1, Proximal, SmoothL1, SquaredL2, dot, norm, per_sample
from diffcf.errors import ConfigError

Parameters = Mapping[str, Tensor]
SEPARABLE = (L1, SmoothL1, SquaredL2)


@dataclass(frozen=True)
class Problem:
    """T(u, θ) = loss(outputs(u, θ)) + weight * distance(u - origin), for b samples at once.

    It is Eq. 2 of paper 001 with everything named. Unlike the `Objective` of a search it keeps the outputs apart from
    their loss, since Gauss-Newton needs both, and takes θ explicitly, since the derivative is with respect to it.

    outputs: (u "b ...", parameters) -> "b k", sample by sample: networks in eval mode, without BatchNorm statistics.
    loss: "b k" -> "b", convex in the outputs for the Gauss-Newton forms. parameters: name -> tensor; those that require
    a gradient get one. origin: u_0, "b ...". weight: `distance_weight`, a number or "b". low, high: bounds of u.
    """

    outputs: Callable[[Tensor, Parameters], Tensor]
    loss: Callable[[Tensor], Tensor]
    parameters: Parameters
    origin: Tensor
    weight: float | Tensor
    distance: Distance = field(default_factory=SquaredL2)
    low: float | None = None
    high: float | None = None

    @property
    def kinked(self) -> bool:
        """Whether the distance has no gradient at 0, so that only a proximal step solves the problem."""
        return isinstance(self.distance, L1 | GroupL1)

    @property
    def weights(self) -> Tensor:
        """The weight of every sample, "b"."""
        return torch.as_tensor(self.weight).to(self.origin).expand(len(self.origin))

    @property
    def trainable(self) -> dict[str, Tensor]:
        """The parameters that require a gradient."""
        return {name: value for name, value in self.parameters.items() if value.requires_grad}

    def logits(self, value: Tensor) -> Tensor:
        """The outputs "b k" at u."""
        return self.outputs(value, self.parameters)

    def fit(self, value: Tensor) -> Tensor:
        """The part of T that depends on θ, "b"."""
        return self.loss(self.logits(value))

    def whole(self, value: Tensor) -> Tensor:
        """T itself, "b"."""
        return self.fit(value) + self.weights * self.distance(value - self.origin)

    def prox(self, value: Tensor, step: Tensor) -> Tensor:
        """argmin_u |u - value|^2 / 2 + step * weight * distance, bounded; step "b".

        Errors: ConfigError for a distance without a proximal step.
        """
        if not isinstance(self.distance, Proximal):
            raise ConfigError(f"{type(self.distance).__name__} has no proximal step; take L1, GroupL1 or SquaredL2.")
        return self.bounded(self.origin + self.distance.prox(value - self.origin, step * self.weights))

    def bounded(self, value: Tensor) -> Tensor:
        """The nearest u inside the bounds."""
        return value if self.low is None and self.high is None else value.clamp(self.low, self.high)

    def still(self, value: Tensor) -> Tensor:
        """Coordinates that a kinked distance holds at u_0, bool "b ..."; whole groups of `GroupL1`."""
        change = value - self.origin
        if isinstance(self.distance, L1):
            return change == 0
        if isinstance(self.distance, GroupL1):
            return (self.distance.norms(change) == 0).expand_as(change)
        return torch.zeros_like(change, dtype=torch.bool)

    def inside(self, value: Tensor) -> Tensor:
        """Coordinates strictly inside the bounds, bool "b ..."."""
        low = -torch.inf if self.low is None else self.low
        high = torch.inf if self.high is None else self.high
        return (value > low) & (value < high)


@dataclass(frozen=True)
class Linearised:
    """A problem at one point u: what its second derivative needs, computed once. Products keep to the free coordinates.

    graph: the derivatives can be differentiated again, which Hessian-vector products and the mixed derivative need.
    """

    problem: Problem
    value: Tensor  # "b ...", requires a gradient
    outputs: Tensor  # "b k", with its graph
    fit_slope: Tensor  # "b ...", the gradient of the fit, with its graph if asked for
    free: Tensor  # bool "b ...": in the support of a kinked distance, strictly inside the bounds
    row: Tensor | None = None  # the gradient of the output, "b ...", where there is only one

    @classmethod
    def at(cls, problem: Problem, value: Tensor, everywhere: bool = False) -> Linearised:
        """One evaluation of the outputs and one gradient. everywhere: all coordinates count as free."""
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            outputs = problem.logits(leaf)
            if outputs.shape[1] == 1:  # one gradient serves both the slope and the curvature
                (row,) = torch.autograd.grad(outputs.sum(), leaf, create_graph=True)
                (pull,) = torch.autograd.grad(problem.loss(outputs).sum(), outputs, create_graph=True)
                slope = per_sample(pull.squeeze(1), row) * row
            else:
                row = None
                (slope,) = torch.autograd.grad(problem.loss(outputs).sum(), leaf, create_graph=True)
        at = value.detach()
        free = torch.ones_like(at, dtype=torch.bool) if everywhere else problem.inside(at) & ~problem.still(at)
        return cls(problem, leaf, outputs, slope, free, row)

    @cached_property
    def change(self) -> Tensor:
        """u - u_0, and 1 where a kink holds it at 0, so that there are derivatives there; those are not used."""
        value = self.value.detach()
        change = value - self.problem.origin
        return torch.where(self.problem.still(value), torch.ones_like(change), change)

    @cached_property
    def residual(self) -> Tensor:
        """What keeps u from solving T, "b ...": the gradient of T on the free coordinates; elsewhere how far the
        gradient exceeds what the kink or the bound takes up. 0 exactly at a stationary point."""
        problem, value, fit = self.problem, self.value.detach(), self.fit_slope.detach()
        leaf = self.change.detach().requires_grad_()
        with torch.enable_grad():
            (pull,) = torch.autograd.grad(problem.distance(leaf).sum(), leaf)
        total = fit + per_sample(problem.weights, pull) * pull
        if isinstance(problem.distance, Proximal):
            still = problem.still(value)
            held = torch.where(still, -fit, torch.zeros_like(fit))
            total = torch.where(still, -problem.distance.prox(held, problem.weights), total)
        return torch.where(problem.inside(value), total, value - problem.bounded(value - total))

    def stationarity(self) -> Tensor:
        """|residual| by |gradient of the fit| + |gradient of the weighed distance|, "b" in [0, 1]: 0 at a solution."""
        fit = self.fit_slope.detach()
        scale = norm(fit) + norm(self.residual - fit)
        return norm(self.residual) / scale.clamp(min=torch.finfo(scale.dtype).eps)

    @cached_property
    def factors(self) -> list[Tensor]:
        """R_j^T J, "b ..." each, with R R^T the curvature of the loss in the outputs: J^T R R^T J is Gauss-Newton's.

        As many as the curvature has rank, k - 1 for a softmax over k classes and at most k for sigmoids. A negative
        eigenvalue, of a loss that is not convex there, counts as 0.
        """
        curvature = loss_curvature(self.problem.loss, self.outputs.detach())
        eigen, vectors = torch.linalg.eigh(curvature)
        eigen = eigen.clamp(min=0)
        largest = eigen.max()
        needed = (eigen > largest * 1e-10).any(0) if bool(largest > 0) else torch.zeros_like(eigen[0], dtype=torch.bool)
        roots = vectors * eigen.sqrt()[:, None, :]
        rows = []
        for j in needed.nonzero().squeeze(1).tolist():
            if self.row is not None:
                row = per_sample(roots[:, 0, 0], self.row) * self.row.detach()
            else:
                with torch.enable_grad():
                    weighted = (self.outputs * roots[:, :, j]).sum()
                    (row,) = torch.autograd.grad(weighted, self.value, retain_graph=True)
            rows.append(self._inside(row))
        return rows

    def gauss_newton(self, vector: Tensor) -> Tensor:
        """J^T S J v + the distance's curvature times v."""
        product = self.distance_product(vector)
        for row in self.factors:
            product = product + per_sample(dot(row, vector), row) * row
        return product

    def hessian(self, vector: Tensor) -> Tensor:
        """The true Hessian of T times v, by one more gradient."""
        inside = self._inside(vector)
        with torch.enable_grad():
            (product,) = torch.autograd.grad(
                self.fit_slope, self.value, inside, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        return self._inside(product) + self.distance_product(vector)

    def distance_product(self, vector: Tensor) -> Tensor:
        """weight * the distance's second derivative times v; for `GroupL1` (w / |d_g|)(I - d d^T / |d_g|^2)."""
        leaf = self.change.detach().requires_grad_()
        with torch.enable_grad():
            (pull,) = torch.autograd.grad(self.problem.distance(leaf).sum(), leaf, create_graph=True)
            if not pull.requires_grad:
                return torch.zeros_like(vector)
            (product,) = torch.autograd.grad(
                pull, leaf, self._inside(vector), allow_unused=True, materialize_grads=True
            )
        return self._inside(per_sample(self.problem.weights, product) * product)

    def distance_inverse(self, vector: Tensor, ridge: float) -> Tensor:
        """(weight * the distance's curvature + ridge)^-1 v in closed form.

        Errors: ConfigError where that curvature is not known to be diagonal or grouped, or is singular without a ridge.
        """
        distance = self.problem.distance
        if isinstance(distance, GroupL1) and vector.ndim == 5:
            self._need(ridge > 0, distance)
            norms = distance.norms(self.change)
            bend = per_sample(self.problem.weights, norms) / norms  # w / |d_g|
            free = self._inside(self.change) / norms
            along, length = ((free * other).sum(2, keepdim=True) for other in (vector, free))
            # Sherman and Morrison: ((bend + ridge) I - bend e e^T)^-1 v with e the free part of d / |d|
            return self._inside(vector + free * along * bend / (bend + ridge - bend * length)) / (bend + ridge)
        if not isinstance(distance, (*SEPARABLE, GroupL1)):
            raise ConfigError(
                f"the curvature of {type(distance).__name__} has no inverse in closed form; use Implicit(method='cg')."
            )
        diagonal = self.distance_product(torch.ones_like(vector)) + ridge
        self._need(bool((diagonal[self.free] > 0).all()), distance)
        return self._inside(vector / torch.where(self.free, diagonal, torch.ones_like(diagonal)))

    def _need(self, regular: bool, distance: Distance) -> None:
        if not regular:
            raise ConfigError(
                f"{type(distance).__name__} has no curvature of its own, so that the Gauss-Newton system is singular; "
                "give Implicit a ridge above 0 (damping, not exact), or use SquaredL2 or SmoothL1."
            )

    def _inside(self, vector: Tensor) -> Tensor:
        return torch.where(self.free, vector, torch.zeros_like(vector))


def loss_curvature(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """The Hessian of the loss in the outputs, "b k" -> "b k k"."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf).sum(), leaf, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros(*outputs.shape, outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        rows = [
            torch.autograd.grad(
                slope[:, j].sum(),
                leaf,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )[0]
            for j in range(outputs.shape[1])
        ]
    return torch.stack(rows, 1)
