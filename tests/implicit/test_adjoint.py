"""Implicit gradients against closed forms, finite differences of solutions found anew, and a dense Hessian."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffcf.distances import L1, GroupL1, SmoothL1, SquaredL2
from diffcf.errors import ConfigError, ConvergenceError
from diffcf.implicit import (
    Detached,
    GaussNewton,
    Implicit,
    InnerSolver,
    Problem,
    ProximalSteps,
    Solved,
    SubgradientSteps,
    Unrolled,
)

SYSTEMS = ["gauss_newton", "woodbury", "cg", "minres", "dense", "torchopt"]


def reached(solved: Solved, towards: Tensor, problem: Problem) -> dict[str, Tensor]:
    """The gradient of <u*, towards> to every parameter."""
    trainable = problem.trainable
    found = torch.autograd.grad((solved.value * towards).sum(), list(trainable.values()))
    return dict(zip(trainable, found, strict=True))


def slope_found_anew(
    problem: Problem, steps: InnerSolver, near: Tensor, towards: Tensor, draws: int = 2
) -> list[tuple[dict[str, Tensor], float]]:
    """(direction of the parameters, central difference of <u*, towards> along it), u* solved anew on either side.

    near: the solution between both, where the steps start: they have little way to go.
    """
    drawn = torch.Generator().manual_seed(5)
    found = []
    for _ in range(draws):
        direction = {
            name: torch.randn(value.shape, generator=drawn, dtype=value.dtype)
            for name, value in problem.trainable.items()
        }
        sides = []
        for sign in (1, -1):
            moved = {
                name: (value + sign * 1e-5 * direction[name]).detach() for name, value in problem.parameters.items()
            }
            anew = Detached()(replace(problem, parameters=moved), steps, near).value
            sides.append(float((anew * towards).sum()))
        found.append((direction, (sides[0] - sides[1]) / 2e-5))
    return found


def along(gradient: dict[str, Tensor], direction: dict[str, Tensor]) -> float:
    return sum(float((gradient[name] * direction[name]).sum()) for name in gradient)


def cotangent(origin: Tensor, seed: int = 9) -> Tensor:
    return torch.randn(origin.shape, generator=torch.Generator().manual_seed(seed), dtype=origin.dtype)


# Ridge regression: everything is exact.


def ridge_solution(case, matrix: Tensor) -> Tensor:
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype)
    wanted = case.target @ matrix + case.weight * case.origin.flatten(1)
    return torch.linalg.solve(matrix.T @ matrix + case.weight * eye, wanted.T).T.reshape(case.origin.shape)


@pytest.mark.parametrize("method", [*SYSTEMS, "neumann"])
def test_ridge_in_closed_form(method: str, linear) -> None:
    case = linear()
    problem = case.problem(SquaredL2())
    towards = cotangent(case.origin)
    (exact,) = torch.autograd.grad((ridge_solution(case, case.matrix) * towards).sum(), case.matrix)
    adjoint = Implicit(method, rate=case.rate(), iterations=50 if method != "neumann" else 1000, tolerance=1e-12)
    solved = adjoint(problem, GaussNewton(steps=2), case.origin)
    assert torch.allclose(solved.value, ridge_solution(case, case.matrix), atol=1e-10)
    found = reached(solved, towards, problem)["matrix"]
    assert float((found - exact).abs().max()) < 1e-6
    report = solved.report
    assert report.stationarity is not None
    assert report.linear_residual is not None
    assert float(report.stationarity.max()) < 1e-9
    assert float(report.linear_residual.max()) < 1e-6
    assert report.indefinite is not None
    assert not bool(report.indefinite.any())


def test_unrolled_ridge_and_what_checkpoints_change(linear) -> None:
    case = linear(weight=50.0)
    problem = case.problem(SquaredL2())
    towards = cotangent(case.origin)
    (exact,) = torch.autograd.grad((ridge_solution(case, case.matrix) * towards).sum(), case.matrix)
    steps = ProximalSteps(steps=40, rate=case.rate())
    found = [reached(Unrolled(kept)(problem, steps, case.origin), towards, problem)["matrix"] for kept in (True, False)]
    assert torch.equal(*found)
    assert float((found[0] - exact).abs().max()) < 1e-6
    newton = reached(Unrolled()(problem, GaussNewton(steps=3), case.origin), towards, problem)["matrix"]
    assert float((newton - exact).abs().max()) < 1e-8


def test_jacobian_free_is_the_direction_of_one_more_step(linear) -> None:
    case = linear()
    problem = case.problem(SquaredL2())
    towards = cotangent(case.origin)
    rate = case.rate()
    value = ridge_solution(case, case.matrix.detach())
    leaf = value.requires_grad_()
    (slope,) = torch.autograd.grad(problem.fit(leaf).sum(), leaf, create_graph=True)
    step = value.detach() - rate * (slope + case.weight * (value.detach() - case.origin))
    (exact,) = torch.autograd.grad((step * towards).sum(), case.matrix)
    solved = Implicit("jacobian_free", rate=rate)(problem, GaussNewton(steps=2), case.origin)
    assert torch.allclose(reached(solved, towards, problem)["matrix"], exact, atol=1e-9)


def test_detached_has_no_gradient(linear) -> None:
    case = linear()
    solved = Detached()(case.problem(SquaredL2()), GaussNewton(), case.origin)
    assert not solved.value.requires_grad
    assert torch.allclose(solved.value, ridge_solution(case, case.matrix), atol=1e-10)


@pytest.mark.parametrize("method", SYSTEMS)
def test_scales_and_weights_of_every_sample(method: str, linear) -> None:
    case = linear()
    scale = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0, 0.7], dtype=torch.float64)
    weight = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    problem = replace(case.problem(SquaredL2(scale=scale)), weight=weight)
    towards = cotangent(case.origin)
    hessian = case.matrix.T @ case.matrix + torch.diag_embed(weight[:, None] / scale**2)
    wanted = case.target @ case.matrix + weight[:, None] / scale**2 * case.origin
    exact_value = torch.linalg.solve(hessian, wanted)
    (exact,) = torch.autograd.grad((exact_value * towards).sum(), case.matrix)
    solved = Implicit(method, tolerance=1e-12)(problem, GaussNewton(steps=2), case.origin)
    assert torch.allclose(solved.value, exact_value, atol=1e-9)
    assert float((reached(solved, towards, problem)["matrix"] - exact).abs().max()) < 1e-6


# Kinks and bounds: the proximal fixed point.


def lasso_on_its_support(case, value: Tensor) -> Tensor:
    """u* as a function of the matrix, its support and signs held: (M_S^T M_S)^-1 (M_S^T (t - M u_0) - w sign) + u_0."""
    rows = []
    for i in range(len(value)):
        change = value[i] - case.origin[i]
        on = change != 0
        part = case.matrix[:, on]
        left = case.target[i] - case.matrix @ case.origin[i]
        moved = torch.linalg.solve(part.T @ part, part.T @ left - case.weight * change[on].sign())
        rows.append(case.origin[i] + torch.zeros_like(change).masked_scatter(on, moved))
    return torch.stack(rows)


@pytest.mark.parametrize("method", ["cg", "minres", "dense", "torchopt"])
def test_lasso_in_closed_form(method: str, linear) -> None:
    case = linear(outputs=8, weight=2.0)
    problem = case.problem(L1())
    towards = cotangent(case.origin)
    solved = Implicit(method, tolerance=1e-12)(problem, ProximalSteps(700, case.rate()), case.origin)
    still = problem.still(solved.value.detach())
    assert 0 < float(still.double().mean()) < 1
    closed = lasso_on_its_support(case, solved.value.detach())
    assert torch.allclose(solved.value, closed, atol=1e-8)
    (exact,) = torch.autograd.grad((closed * towards).sum(), case.matrix)
    assert float((reached(solved, towards, problem)["matrix"] - exact).abs().max()) < 1e-6
    assert solved.report.stationarity is not None
    assert float(solved.report.stationarity.max()) < 1e-7


@pytest.mark.parametrize("distance", [L1(), L1("mean"), SmoothL1(0.05), SquaredL2()], ids=str)
@pytest.mark.parametrize("bounds", [{}, {"low": -0.5, "high": 0.5}], ids=["free", "bounded"])
def test_fixed_points_against_finite_differences(distance, bounds, linear) -> None:
    case = linear(outputs=12, weight=3.0 if distance != L1("mean") else 18.0)
    case = replace(case, origin=case.origin.clamp(-0.4, 0.4))
    problem = case.problem(distance, **bounds)
    steps = ProximalSteps(
        1200 if isinstance(distance, SmoothL1) else 400, case.rate() / (4 if isinstance(distance, SmoothL1) else 1)
    )
    solved = Implicit("cg", tolerance=1e-12)(problem, steps, case.origin)
    if bounds:
        held = ~problem.inside(solved.value.detach())
        assert bool(held.any())
    towards = cotangent(case.origin)
    gradient = reached(solved, towards, problem)
    fewer = replace(steps, steps=steps.steps // 2)
    for direction, slope in slope_found_anew(problem, fewer, solved.value.detach(), towards):
        assert along(gradient, direction) == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("outputs", [1, 4])
def test_gauss_newton_keeps_bounds_exactly(outputs: int, linear) -> None:
    """Of linear outputs one step is the whole solution, with its derivative, also where most of it is held."""
    case = linear(shape=(40,), outputs=outputs, weight=0.1)
    case = replace(case, origin=case.origin.clamp(-1, 1), target=case.target * 12)
    problem = case.problem(SquaredL2(), low=-1.0, high=1.0)
    solved = Implicit("dense")(problem, GaussNewton(steps=1), case.origin)
    held = ~problem.inside(solved.value.detach())
    assert 0.2 < float(held.double().mean()) < 0.95
    # The minimum is where a proximal step stands still.
    stepped = ProximalSteps(1, case.rate()).step(problem, solved.value.detach(), differentiable=False)
    torch.testing.assert_close(stepped, solved.value.detach(), rtol=0, atol=1e-10)
    towards = cotangent(case.origin)
    gradient = reached(solved, towards, problem)
    for direction, slope in slope_found_anew(problem, GaussNewton(steps=2), solved.value.detach(), towards):
        assert along(gradient, direction) == pytest.approx(slope, rel=1e-5)
    unrolled = reached(Unrolled()(problem, GaussNewton(steps=2), case.origin), towards, problem)
    assert torch.allclose(unrolled["matrix"], gradient["matrix"], atol=1e-6)


@pytest.mark.parametrize("bounds", [{}, {"low": -1.2, "high": 1.1}], ids=["free", "bounded"])
def test_groups_against_finite_differences(bounds, linear) -> None:
    case = linear(shape=(1, 3, 2, 2), outputs=16, weight=6.0)
    case = replace(case, origin=case.origin.clamp(-1.2, 1.1))
    problem = case.problem(GroupL1(), **bounds)
    start = Detached()(problem, ProximalSteps(700, case.rate()), case.origin).value
    still, steps = problem.still(start)[:, 0, 0], ProximalSteps(250, case.rate())
    assert 0 < float(still.double().mean()) < 1
    towards = cotangent(case.origin)
    slopes = [] if bounds else slope_found_anew(problem, steps, start, towards)
    # A box after the group step is not their joint proximal step, so that only the system is compared there.
    reference = reached(Implicit("dense")(problem, steps, start), towards, problem)
    for method, ridge in (("cg", 0.0), ("gauss_newton", 1e-9)):
        gradient = reached(Implicit(method, ridge=ridge, tolerance=1e-13)(problem, steps, start), towards, problem)
        assert torch.allclose(gradient["matrix"], reference["matrix"], atol=1e-5)
        for direction, slope in slopes:
            assert along(gradient, direction) == pytest.approx(slope, rel=1e-5, abs=1e-5)


# Networks.


def test_gauss_newton_is_exact_on_piecewise_linear_networks(networked) -> None:
    for classes in (2, 4):
        problem = networked(torch.nn.ReLU(), classes=classes)
        towards = cotangent(problem.origin)
        newton, dense = (
            reached(Implicit(method)(problem, GaussNewton(steps=15), problem.origin), towards, problem)
            for method in ("gauss_newton", "dense")
        )
        for name, gradient in newton.items():
            assert float((gradient - dense[name]).abs().max()) < 1e-6, name


def test_smooth_networks_against_finite_differences(networked) -> None:
    problem = networked(torch.nn.Softplus(), weight=1.0)
    towards = cotangent(problem.origin)
    start = Detached()(problem, ProximalSteps(400, 0.3), problem.origin).value
    steps = ProximalSteps(100, 0.3)
    slopes = slope_found_anew(problem, steps, start, towards)
    for method in ("cg", "minres", "dense", "torchopt"):
        gradient = reached(Implicit(method, tolerance=1e-12)(problem, steps, start), towards, problem)
        for direction, slope in slopes:
            assert along(gradient, direction) == pytest.approx(slope, rel=1e-5), method


def test_the_rank_of_gauss_newton() -> None:
    from diffcf.implicit.problem import Linearised

    weights = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    origin = cotangent(torch.zeros(3, 9, dtype=torch.float64))

    def problem(loss: Callable[[Tensor], Tensor]) -> Problem:
        return Problem(lambda u, p: u @ p["w"].T, loss, {"w": weights}, origin, 0.1)

    softmax = problem(lambda s: F.cross_entropy(s, torch.tensor([0, 3, 1]), reduction="none"))
    sigmoids = problem(lambda s: F.softplus(-s).sum(1))
    assert len(Linearised.at(softmax, origin).factors) == 4
    assert len(Linearised.at(sigmoids, origin).factors) == 5
    at, vector = Linearised.at(softmax, origin), cotangent(origin)
    assert torch.allclose(at.gauss_newton(vector), at.hessian(vector), atol=1e-12)  # linear outputs


def test_gauss_newton_solver_of_softmax_reaches_the_minimum(networked) -> None:
    problem = networked(torch.nn.Softplus(), classes=3, weight=1.0)
    newton = Detached()(problem, GaussNewton(steps=20), problem.origin).value
    descent = Detached()(problem, ProximalSteps(1000, 0.3), problem.origin).value
    assert torch.allclose(newton, descent, atol=1e-6)


def test_gauss_newton_solver_of_several_labels_rests_after_one_step_over_linear_outputs(linear) -> None:
    """Cross-entropy of five attributes, steep in u and nearly without a price on it: the curve bends far on the way."""
    case = linear((200,), outputs=5, weight=0.01)
    with torch.no_grad():
        case.matrix.mul_(4.2 / 200**0.5)
    wanted = torch.tensor([[0.05, 0.95, 0.95, 0.05, 0.5]] * 3, dtype=torch.float64)
    problem = replace(
        case.problem(SquaredL2()),
        loss=lambda s: torch.nn.functional.binary_cross_entropy_with_logits(s, wanted[: len(s)], reduction="none").sum(
            1
        ),
        origin=3 * case.origin,
    )
    found = Detached()(problem, GaussNewton(steps=1), problem.origin)
    leaf = found.value.detach().requires_grad_()
    (slope,) = torch.autograd.grad(problem.whole(leaf).sum(), leaf)
    assert float(slope.norm(dim=1).max()) < 1e-8


def test_halved_steps_settle_where_whole_ones_go_back_and_forth(networked) -> None:
    problem = networked(torch.nn.Tanh(), weight=0.002)
    fitted = {name: value * 4 for name, value in problem.parameters.items()}  # steep, and bent
    problem = replace(problem, parameters={name: value.detach() for name, value in fitted.items()})
    whole, halved = (
        problem.whole(Detached()(problem, GaussNewton(steps=25, halvings=most), problem.origin).value)
        for most in (0, 6)
    )
    assert bool((halved <= whole + 1e-9).all())
    assert float((whole - halved).max()) > 0.01
    assert bool((halved < problem.whole(problem.origin)).all())


# What is refused, and what is warned about.


def test_singular_systems_are_refused_or_ridged(networked, linear) -> None:
    case = linear(outputs=2, weight=0.2)  # rank 2 on a larger support
    problem = case.problem(L1())
    steps = ProximalSteps(300, case.rate())
    for method in ("gauss_newton", "dense"):
        start = case.origin + 1  # everything moves
        solved = Implicit(method)(problem, ProximalSteps(1, 1e-3), start)
        with pytest.raises(ConfigError, match="ridge"):
            solved.value.sum().backward()
    solved = Implicit("gauss_newton", ridge=0.1)(problem, steps, case.origin)
    assert bool(reached(solved, cotangent(case.origin), problem)["matrix"].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_system_is_found_in_either_precision(dtype) -> None:
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 6, generator=random, dtype=dtype).requires_grad_()
    origin = torch.randn(3, 6, generator=random, dtype=dtype)
    problem = Problem(
        lambda u, p: u @ p["matrix"].T, lambda s: s.square().sum(1), {"matrix": matrix}, origin, 0.2, L1()
    )
    solved = Implicit("dense")(problem, ProximalSteps(1, 1e-3), origin + 1)
    with pytest.raises(ConfigError, match="ridge"):
        solved.value.sum().backward()


def test_kinks_need_a_proximal_solver_or_the_papers_name(networked) -> None:
    problem = networked(distance=L1(), weight=0.05)
    with pytest.raises(ConfigError, match="SmoothL1"):
        Implicit("cg")(problem, SubgradientSteps(), problem.origin)
    solved = Implicit("cg", as_published=True, ridge=0.1)(problem, SubgradientSteps(), problem.origin)
    for name, gradient in reached(solved, cotangent(problem.origin), problem).items():
        assert bool(gradient.isfinite().all()), name
    with pytest.raises(ConfigError, match="ProximalSteps"):
        Detached()(problem, GaussNewton(), problem.origin)


def test_far_from_stationary_is_said(networked) -> None:
    problem = networked(weight=0.01)
    solved = Implicit()(problem, ProximalSteps(2, 0.01), problem.origin)
    with pytest.warns(UserWarning, match="far from a stationary point"):
        solved.value.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = Implicit()(networked(weight=1.0), GaussNewton(steps=30), problem.origin)
        near.value.sum().backward()


def test_negative_curvature_is_said() -> None:
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    origin = torch.full((2, 3), 0.5, dtype=torch.float64)
    problem = Problem(
        lambda u, p: (p["scale"] * u).cos().sum(1, keepdim=True), lambda s: s.squeeze(1), {"scale": scale}, origin, 0.1
    )
    for method, matrix in (("cg", "indefinite"), ("minres", "indefinite"), ("dense", "indefinite")):
        solved = Implicit(method, far=10.0)(problem, ProximalSteps(1, 1e-4), origin)
        with pytest.warns(UserWarning, match=matrix):
            solved.value.sum().backward()
        assert solved.report.indefinite is not None
        assert bool(solved.report.indefinite.all())


def test_a_solution_that_did_not_move_is_said(networked) -> None:
    problem = networked(distance=L1(), weight=1e3)
    solved = Implicit("cg")(problem, ProximalSteps(20, 1e-3), problem.origin)
    gradient = reached(solved, cotangent(problem.origin), problem)
    assert solved.report.collapsed is not None
    assert bool(solved.report.collapsed.all())
    assert not any(bool(value.any()) for value in gradient.values())


def test_parameters_that_are_not_used_are_named(networked) -> None:
    problem = networked()
    idle = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    problem = replace(problem, parameters={**problem.parameters, "idle": idle})
    solved = Implicit()(problem, GaussNewton(), problem.origin)
    with pytest.raises(ConfigError, match="idle"):
        solved.value.sum().backward()
    frozen = replace(problem, parameters={name: value.detach() for name, value in problem.parameters.items()})
    with pytest.raises(ConfigError, match="Detached"):
        Implicit()(frozen, GaussNewton(), problem.origin)


def test_a_parameter_without_effect_on_the_solution_gets_zeros(networked) -> None:
    problem = replace(networked(), loss=lambda s: s[:, 1])
    solved = Implicit("cg", far=10.0)(problem, ProximalSteps(300, 0.3), problem.origin)
    gradient = reached(solved, cotangent(problem.origin), problem)
    assert not bool(gradient["net.4.bias"].any())
    assert bool(gradient["net.4.weight"].any())


def test_gradients_that_are_not_finite_are_named(networked) -> None:
    problem = networked(weight=1.0)
    solved = Implicit("neumann", rate=1e30, iterations=400)(problem, GaussNewton(), problem.origin)
    loss = solved.value.sum()
    with pytest.warns(UserWarning, match="indefinite"), pytest.raises(ConvergenceError, match=r"net\.0\.weight"):
        loss.backward()


@pytest.mark.parametrize("wrong", [{"ridge": -1.0}, {"iterations": 0}, {"rate": 0.0}])
def test_settings_that_cannot_be_meant(wrong) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Implicit(**wrong)


def test_a_dense_hessian_has_a_limit() -> None:
    weights = torch.ones(1, 5000, requires_grad=True)
    problem = Problem(lambda u, p: u @ p["w"].T, lambda s: s.square().sum(1), {"w": weights}, torch.zeros(1, 5000), 1.0)
    solved = Implicit("dense")(problem, GaussNewton(), torch.zeros(1, 5000))
    with pytest.raises(ConfigError, match="4096"):
        solved.value.sum().backward()


def test_the_adjoint_asks_the_network_once_however_many_steps(networked) -> None:
    problem = networked()
    calls = 0

    def counted(u: Tensor, p) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.outputs(u, p)

    counting = replace(problem, outputs=counted)
    for steps in (3, 30):
        calls = 0
        solved = Implicit()(counting, GaussNewton(steps=steps, halvings=0), problem.origin)
        assert calls == steps
        solved.value.sum().backward()
        assert calls == steps + 1
