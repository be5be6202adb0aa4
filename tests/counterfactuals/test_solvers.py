"""Solvers against closed forms and a convex solver's answer; every sample for itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from diffcf.counterfactuals.objective import Loss, Objective, gradient
from diffcf.counterfactuals.solvers import Adam, GradientDescent, ProximalGradient
from diffcf.distances import L1, GroupL1, SmoothL1, SquaredL2
from diffcf.errors import ConfigError

SOLVERS = [
    GradientDescent(rate=0.05, steps=4000, tolerance=1e-9),
    Adam(rate=0.02, steps=4000, tolerance=1e-9),
    ProximalGradient(steps=2000, tolerance=1e-10),
]


def lasso(samples: int = 3, size: int = 8, weight: float = 0.5, distance=None, **box: float) -> Objective:
    """|A_i (u - u_0) - y_i|^2 / 2 + weight * distance(u - u_0)."""
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(samples, 12, size, generator=random, dtype=torch.float64) / 3
    wanted = torch.randn(samples, 12, generator=random, dtype=torch.float64)
    origin = torch.randn(samples, size, generator=random, dtype=torch.float64) / 4

    def loss(value: Tensor, index: Tensor) -> Tensor:
        error = torch.einsum("bij,bj->bi", matrix[index], value - origin[index]) - wanted[index]
        return error.square().sum(1) / 2

    weights = torch.full((samples,), weight, dtype=torch.float64)
    return Objective(loss, origin, weights, distance or L1(), **box)


def everyone(objective: Objective) -> Tensor:
    return torch.arange(len(objective.origin))


def optimality(objective: Objective, value: Tensor) -> Tensor:
    """How far a lasso point is from optimal: the subgradient condition, entry by entry."""
    _, slope = gradient(objective.smooth, value, everyone(objective))
    change, weight = value - objective.origin, objective.weight[:, None]
    moved = (slope + weight * change.sign()).abs()
    still = (slope.abs() - weight).clamp(min=0)
    return torch.where(change.abs() > 1e-9, moved, still).amax(1)


def test_the_proximal_solution_satisfies_the_optimality_condition_and_is_sparse() -> None:
    objective = lasso()
    found = SOLVERS[2](objective, objective.origin)
    assert found.converged.all()
    assert (optimality(objective, found.value) < 1e-7).all()
    exact = (found.value == objective.origin).sum(1)
    assert (exact > 0).all()  # exact zeros, which no gradient step gives


def test_a_step_to_where_the_loss_is_no_number_is_not_taken() -> None:
    """-log(sum u) + 3 sum u is least where the sum is 1/3, and no number where it is negative."""

    def loss(value: Tensor, index: Tensor) -> Tensor:
        return -value.sum(1).log() + 3 * value.sum(1)

    origin = torch.full((2, 2), 0.5, dtype=torch.float64)
    objective = Objective(loss, origin, torch.zeros(2, dtype=torch.float64))
    found = ProximalGradient(first_step=2.0, steps=200, tolerance=1e-9)(objective, origin)
    torch.testing.assert_close(found.value.sum(1), torch.full((2,), 1 / 3, dtype=torch.float64))
    assert found.converged.all()
    none = ProximalGradient(first_step=1e9, steps=3, halvings=1)(objective, origin)
    assert torch.equal(none.value, origin)
    assert not none.converged.any()


def test_the_residual_is_of_the_point_that_is_returned() -> None:
    """With too long a step the descent swings out, and the first point stays the best."""
    origin = torch.ones(1, 1, dtype=torch.float64)
    objective = Objective(lambda value, index: value.square().sum(1), origin, torch.zeros(1, dtype=torch.float64))
    found = GradientDescent(rate=1.1, steps=5, tolerance=1e-9)(objective, origin)
    assert torch.equal(found.value, origin)
    assert found.residual.tolist() == [2.0]


def test_scikit_learn_finds_the_same_lasso() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    objective = lasso(samples=1)
    unit = torch.eye(8, dtype=torch.float64)
    zero = objective.loss_at(objective.origin, torch.tensor([0]))
    # Recover A and y from the loss itself: its gradient at 0 is -A'y, its second differences A'A.
    _, slope = gradient(objective.smooth, objective.origin, torch.tensor([0]))
    hessian = torch.stack(
        [gradient(objective.smooth, objective.origin + row, torch.tensor([0]))[1][0] - slope[0] for row in unit]
    )
    root = torch.linalg.cholesky(hessian).T
    target = torch.linalg.solve(root.T, -slope[0])
    model = linear_model.Lasso(alpha=0.5 / 8, fit_intercept=False, tol=1e-12, max_iter=100_000)
    model.fit(root.numpy(), target.numpy())
    found = SOLVERS[2](objective, objective.origin)
    change = found.value[0] - objective.origin[0]
    torch.testing.assert_close(change, torch.from_numpy(model.coef_), rtol=1e-5, atol=1e-6)
    assert float(zero) > 0


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_every_solver_finds_the_minimum_of_a_smooth_problem(solver) -> None:
    objective = lasso(distance=SquaredL2(), weight=0.7)
    found = solver(objective, objective.origin)
    _, slope = gradient(objective.whole, found.value, everyone(objective))
    assert (slope.norm(dim=1) < 1e-5).all()


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_the_box_is_kept(solver) -> None:
    objective = lasso(low=-0.2, high=0.2, weight=0.01)
    found = dataclasses.replace(solver, steps=200)(objective, objective.origin.clamp(-0.2, 0.2))
    assert found.value.abs().max() <= 0.2


def test_the_box_and_the_kink_together_are_optimal() -> None:
    objective = lasso(low=-0.2, high=0.2, weight=0.1)
    found = SOLVERS[2](objective, objective.origin.clamp(-0.2, 0.2))
    at = objective.whole(found.value, everyone(objective))
    random = torch.Generator().manual_seed(1)
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        for _ in range(50):
            near = found.value + size * torch.randn(found.value.shape, generator=random, dtype=torch.float64)
            assert (objective.whole(near.clamp(-0.2, 0.2), everyone(objective)) >= at - 1e-10).all()


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_samples_are_independent(solver) -> None:
    objective, solver = lasso(distance=SquaredL2()), dataclasses.replace(solver, steps=200)
    together = solver(objective, objective.origin)
    for sample in range(3):
        index = torch.tensor([sample])
        alone = Objective(
            lambda value, _, index=index: objective.loss_at(value, index.expand(len(value))),
            objective.origin[index],
            objective.weight[index],
            SquaredL2(),
        )
        found = solver(alone, objective.origin[index])
        torch.testing.assert_close(found.value[0], together.value[sample], rtol=1e-6, atol=1e-8)
        assert int(found.steps) == int(together.steps[sample])


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_a_finished_sample_costs_nothing_more(solver) -> None:
    """The first sample starts at its minimum, the others do not."""
    objective, asked = lasso(distance=SquaredL2()), []
    start = objective.origin.clone()
    start[0] = solver(objective, start).value[0]

    def counted(value: Tensor, index: Tensor) -> Tensor:
        asked.append(index.tolist())
        return objective.loss_at(value, index)

    found = dataclasses.replace(solver, steps=5, tolerance=1e-4)(dataclasses.replace(objective, loss_at=counted), start)
    assert found.converged.tolist() == [True, False, False]
    assert int(found.steps[0]) <= 1
    assert int(found.steps[1]) == int(found.steps[2]) == 5
    assert all(0 not in index for index in asked[-3:])


def test_a_kink_without_a_proximal_step_is_refused_by_name() -> None:
    objective = lasso(distance=SmoothL1())
    with pytest.raises(ConfigError, match="SmoothL1 has no proximal step"):
        ProximalGradient()(objective, objective.origin)


def test_groups_move_whole_or_not_at_all() -> None:
    random = torch.Generator().manual_seed(2)
    origin = torch.randn(2, 1, 3, 4, 4, generator=random, dtype=torch.float64)
    wanted = origin + torch.randn(origin.shape, generator=random, dtype=torch.float64)
    weights = torch.full((2,), 1.2, dtype=torch.float64)

    def loss(value: Tensor, index: Tensor) -> Tensor:
        return (value - wanted[index]).square().flatten(1).sum(1) / 2

    found = SOLVERS[2](Objective(loss, origin, weights, GroupL1()), origin)
    norms = (wanted - origin).norm(dim=2, keepdim=True)
    exact = origin + (wanted - origin) * (1 - 1.2 / norms).clamp(min=0)
    torch.testing.assert_close(found.value, exact, rtol=1e-6, atol=1e-8)
    still = (found.value == origin).all(2)
    assert 0 < float(still.double().mean()) < 1


@pytest.mark.parametrize("kind", ["margin", "cross_entropy", "logit"])
def test_losses(kind) -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0], [1.0, -3.0, 0.5]], dtype=torch.float64)
    target = torch.tensor([1, 1])
    value = Loss(kind, 0.8)(logits, target)
    p = logits.softmax(1)[:, 1]
    expected = {
        "margin": (torch.tensor(0.8, dtype=torch.float64).logit() - p.logit()).clamp(min=0).square() / 2,
        "cross_entropy": -p.log(),
        "logit": -logits[:, 1],
    }[kind]
    torch.testing.assert_close(value, expected)
