"""How a loss of u*(θ) = argmin_u T(u, θ) reaches θ.

`Detached` lets nothing through. `Unrolled` differentiates the solver's own steps. `Implicit` uses that u* is
stationary (implicit function theorem, Eq. 4 of paper 001):

    dL/dθ = - w^T d/dθ grad_u T,    (Hessian of T) w = dL/du*

with one evaluation of the network more, whatever the number of steps was. `method` says how w is found. The mixed
derivative on the left is always exact.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffcf.errors import ConfigError, ConvergenceError
from diffcf.implicit.linear import (
    LinearSolution,
    conjugate_gradients,
    minimal_residual,
    neumann_series,
    relative_residual,
)
from diffcf.implicit.problem import Linearised, Problem
from diffcf.implicit.solvers import InnerSolver, SubgradientSteps, run

Method = Literal["gauss_newton", "woodbury", "cg", "minres", "neumann", "jacobian_free", "dense", "torchopt"]
# The same words every time, so that Python shows each once; the figures are in the report.
FAR = (
    "implicit gradients are taken far from a stationary point (Report.stationarity): give the inner solver more steps, "
    "or a larger distance_weight."
)
INDEFINITE = (
    "the Hessian is indefinite for some samples (Report.indefinite), so that their implicit gradients may point the "
    "wrong way; use method='gauss_newton' or a larger distance_weight."
)
DENSE_LIMIT = 4096  # coordinates a sample of an explicit Hessian


@dataclass
class Report:
    """What the backward pass of `Implicit` found, per sample "b"; None before it ran, and for other adjoints.

    stationarity: |gradient of T| by the sum of the sizes of its two parts, at u*; the theorem needs 0.
    linear_residual: of the system that was solved. indefinite: a direction of negative curvature was met, so that u* is
    no minimum of T there.
    collapsed: u* has not moved, or no coordinate is free; then no gradient passes.
    """

    stationarity: Tensor | None = None
    linear_residual: Tensor | None = None
    indefinite: Tensor | None = None
    collapsed: Tensor | None = None


@dataclass(frozen=True)
class Solved:
    """u* "b ..." with its gradient to the parameters, and what is known about that gradient."""

    value: Tensor
    report: Report = field(default_factory=Report)


class Adjoint(ABC):
    """(problem, solver, start) -> u*, differentiable in the problem's parameters as the adjoint says.

    A config names subclasses: {class_path, init_args}.
    """

    @abstractmethod
    def __call__(self, problem: Problem, solver: InnerSolver, start: Tensor) -> Solved:
        """Solve from start "b ..."."""


@dataclass(frozen=True)
class Detached(Adjoint):
    """No gradient passes: u* counts as given."""

    def __call__(self, problem: Problem, solver: InnerSolver, start: Tensor) -> Solved:
        """See `Adjoint`."""
        return Solved(run(solver, problem, start))


@dataclass(frozen=True)
class Unrolled(Adjoint):
    """The derivative of the steps themselves, exact for what was computed, whether it has converged or not.

    Memory and time grow with the steps; checkpointed keeps the iterates alone and computes every step twice.
    """

    checkpointed: bool = True

    def __call__(self, problem: Problem, solver: InnerSolver, start: Tensor) -> Solved:
        """See `Adjoint`."""
        value = start.detach().requires_grad_()
        trainable = tuple(problem.trainable.values())
        for _ in range(solver.steps):
            if self.checkpointed:
                value: Any = _Step.apply(value, problem, solver, *trainable)
            else:
                value = solver.step(problem, value, differentiable=True)
        return Solved(value)


@dataclass(frozen=True)
class Implicit(Adjoint):
    """The implicit function theorem, on the coordinates that can move (`Problem.still`, `Problem.inside`).

    Kinked distances are differentiated at the proximal fixed point (Bolte et al. 2021): zeros stay zeros, and on the
    support S the system is H_SS w = v_S. They need a proximal solver; another is refused.

    method:
        "gauss_newton", or "woodbury": H = J^T S J + distance, positive semi-definite whatever the network bends like,
            inverted in closed form with as many gradients as S has rank. Exact for piecewise linear outputs. Needs a
            distance with a curvature (SquaredL2, SmoothL1) or a ridge.
        "cg": conjugate gradients on the true Hessian; where that is not positive definite, they stop (paper 001).
        "minres": the same system where it may be indefinite. u* is no minimum there, and w may point the wrong way.
        "neumann": `iterations` terms at `rate`. Diverges unless rate < 2 / the largest curvature.
        "jacobian_free": its first term: the direction of one more step. Wrong where the Hessian is far from a multiple
            of the identity.
        "dense": the Hessian itself, up to 4096 coordinates: the reference.
        "torchopt": TorchOpt's conjugate gradients over the whole batch as one system: no residual of its own, no stop.
    ridge: added to the Hessian; exact is 0. iterations, tolerance: of the linear solver. rate: of the series.
    far: a stationarity above it is warned about, once, as is an indefinite system: the theorem does not hold there.
    as_published: L1 counts as smooth and without curvature, over all coordinates, after `SubgradientSteps`, as in the
        papers.

    Errors: ConfigError for a distance that the method or solver cannot handle, a parameter that T does not depend on,
    a singular system. ConvergenceError for a gradient that is not finite, with the parameter's name.
    """

    method: Method = "gauss_newton"
    ridge: float = 0.0
    iterations: int = 50
    tolerance: float = 1e-8
    rate: float = 0.1
    far: float = 0.1
    as_published: bool = False

    def __post_init__(self) -> None:
        if self.ridge < 0 or self.iterations < 1 or self.rate <= 0:
            raise ConfigError(
                f"ridge {self.ridge}, iterations {self.iterations}, rate {self.rate}: expected a ridge of at least 0, "
                "at least one iteration, a positive rate."
            )

    def __call__(self, problem: Problem, solver: InnerSolver, start: Tensor) -> Solved:
        """See `Adjoint`."""
        descends = isinstance(solver, SubgradientSteps)
        if descends and problem.kinked and not self.as_published:
            raise ConfigError(
                f"{type(problem.distance).__name__} has a kink where most coordinates end, and the implicit function "
                "theorem does not hold for what gradient descent leaves near it. Take ProximalSteps, the distance "
                "SmoothL1, or as_published=True for the papers' own form."
            )
        value = run(solver, problem, start)
        report = Report()
        trainable = problem.trainable
        if not trainable:
            raise ConfigError("no parameter of the inner problem requires a gradient; use Detached().")
        found: Any = _Attach.apply(value, problem, self, report, tuple(trainable), *trainable.values())
        return Solved(found, report)

    def solve(self, at: Linearised, vector: Tensor) -> LinearSolution:
        """w of Hessian w = v on the free coordinates of "b ...", 0 elsewhere."""
        vector = torch.where(at.free, vector, torch.zeros_like(vector))
        if self.method in ("gauss_newton", "woodbury"):
            return self._woodbury(at, vector)

        def matvec(w: Tensor) -> Tensor:
            return at.hessian(w) + self.ridge * w

        if self.method == "cg":
            return conjugate_gradients(matvec, vector, self.iterations, self.tolerance)
        if self.method == "minres":
            return minimal_residual(matvec, vector, self.iterations, self.tolerance)
        if self.method in ("neumann", "jacobian_free"):
            return neumann_series(matvec, vector, self.rate, self.iterations if self.method == "neumann" else 1)
        if self.method == "torchopt":
            return self._torchopt(matvec, vector)
        return self._dense(at, vector)

    def _woodbury(self, at: Linearised, vector: Tensor) -> LinearSolution:
        """(D + R^T R)^-1 v = D^-1 v - D^-1 R^T (I + R D^-1 R^T)^-1 R D^-1 v, rows R of `Linearised.factors`."""
        softened = at.distance_inverse(vector, self.ridge)
        if at.factors:
            rows = torch.stack([row.flatten(1) for row in at.factors], 1)
            soft = torch.stack([at.distance_inverse(row, self.ridge).flatten(1) for row in at.factors], 1)
            small = torch.eye(rows.shape[1]).to(rows) + rows @ soft.mT
            pulled = torch.linalg.solve(small, (rows @ softened.flatten(1)[:, :, None]).squeeze(2))
            softened = softened - (soft.mT @ pulled[:, :, None]).squeeze(2).view_as(softened)
        residual = relative_residual(lambda w: at.gauss_newton(w) + self.ridge * w, softened, vector)
        return LinearSolution(softened, residual, torch.zeros_like(residual, dtype=torch.bool))

    def _dense(self, at: Linearised, vector: Tensor) -> LinearSolution:
        size = vector[0].numel()
        if size > DENSE_LIMIT:
            raise ConfigError(f"a dense Hessian over {size} coordinates a sample; at most {DENSE_LIMIT}. Use 'cg'.")
        columns = []
        for j in range(size):
            unit = torch.zeros_like(vector)
            unit.flatten(1)[:, j] = 1
            columns.append(at.hessian(unit).flatten(1))
        hessian = torch.stack(columns, 2)
        free = at.free.flatten(1)
        eye = torch.eye(size).to(hessian)
        hessian = hessian + self.ridge * eye
        whole = torch.where(free[:, :, None] & free[:, None, :], hessian, eye)  # what is held keeps out of the way
        eigen = torch.linalg.eigvalsh((whole + whole.mT) / 2)
        rounding = size * torch.finfo(eigen.dtype).eps * torch.where(free, whole.abs().sum(2), 0).amax(1)
        singular = eigen.abs().amin(1) <= rounding
        if bool(singular.any()):
            raise ConfigError(
                f"the Hessian of {int(singular.sum())} of {len(vector)} samples is singular on the free coordinates; "
                "give Implicit a ridge above 0."
            )
        value = torch.linalg.solve(whole, vector.flatten(1)).view_as(vector)
        residual = relative_residual(lambda w: at.hessian(w) + self.ridge * w, value, vector)
        return LinearSolution(value, residual, eigen.amin(1) < -rounding)

    def _torchopt(self, matvec: Any, vector: Tensor) -> LinearSolution:
        from torchopt.linear_solve import solve_cg

        solver = solve_cg(maxiter=self.iterations, rtol=self.tolerance, atol=0.0)
        value: Any = solver(matvec, vector)
        residual = relative_residual(matvec, value, vector)
        return LinearSolution(value, residual, torch.zeros_like(residual, dtype=torch.bool))

    def record(self, report: Report, at: Linearised, solution: LinearSolution) -> None:
        """Write what was found into the report, and warn where the theorem does not hold."""
        moved = (at.value.detach() != at.problem.origin) & at.free
        report.stationarity = at.stationarity()
        report.linear_residual, report.indefinite = solution.residual, solution.indefinite
        report.collapsed = ~moved.flatten(1).any(1)
        far = (report.stationarity > self.far) & at.free.flatten(1).any(1)
        if bool(far.any()) and not self.as_published:
            warnings.warn(FAR, stacklevel=2)
        if bool(solution.indefinite.any()):
            warnings.warn(INDEFINITE, stacklevel=2)


class _Step(torch.autograd.Function):
    """A step without its graph, which the backward pass makes anew. `torch.utils.checkpoint` would make it once for
    every gradient that the step itself takes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, problem: Problem, solver: InnerSolver, *parameters: Tensor) -> Tensor:  # type: ignore[override]
        ctx.problem, ctx.solver, ctx.parameters, ctx.value = problem, solver, parameters, value.detach()
        return solver.step(problem, ctx.value, differentiable=False).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            leaf = ctx.value.detach().requires_grad_()
            after = ctx.solver.step(ctx.problem, leaf, differentiable=True)
        found = torch.autograd.grad(after, (leaf, *ctx.parameters), upstream, allow_unused=True)
        return found[0], None, None, *found[1:]


class _Attach(torch.autograd.Function):
    """u* as it is, with the implicit gradient to the parameters behind it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        value: Tensor,
        problem: Problem,
        implicit: Implicit,
        report: Report,
        names: tuple[str, ...],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.problem, ctx.implicit, ctx.report, ctx.names, ctx.parameters = problem, implicit, report, names, parameters
        ctx.value = value.detach()
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:  # type: ignore[override]
        (vector,) = upstream
        implicit, problem = ctx.implicit, ctx.problem
        at = Linearised.at(problem, ctx.value, everywhere=implicit.as_published)
        solution = implicit.solve(at, vector)
        implicit.record(ctx.report, at, solution)
        gradients = torch.autograd.grad(at.fit_slope, ctx.parameters, -solution.value, allow_unused=True)
        return None, None, None, None, None, *_complete(problem, at, ctx.names, ctx.parameters, gradients)


def _complete(
    problem: Problem, at: Linearised, names: tuple[str, ...], parameters: tuple[Tensor, ...], found: tuple[Any, ...]
) -> list[Tensor]:
    """A finite gradient for every parameter: 0 for one that T depends on and its slope does not, such as the last bias
    under a raw logit."""
    missing = [name for name, gradient in zip(names, found, strict=True) if gradient is None]
    if missing:
        with torch.enable_grad():
            fit = problem.fit(at.value.detach()).sum()
            reached = torch.autograd.grad(fit, parameters, allow_unused=True)
        unused = [name for name, gradient in zip(names, reached, strict=True) if gradient is None]
        if unused:
            raise ConfigError(
                f"the inner problem does not depend on {', '.join(unused[:5])}{' ...' if len(unused) > 5 else ''}; "
                "pass it only parameters that its outputs use."
            )
    complete = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    bad = [name for name, gradient in zip(names, complete, strict=True) if not bool(gradient.isfinite().all())]
    if bad:
        raise ConvergenceError(
            f"the implicit gradient of {', '.join(bad[:5])}{' ...' if len(bad) > 5 else ''} is not finite; look at the "
            "inner solution (a diverging rate?), or give Implicit a ridge."
        )
    return complete
