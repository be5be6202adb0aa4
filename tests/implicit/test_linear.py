"""Batched linear solvers against a dense solve."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffcf.implicit.linear import conjugate_gradients, minimal_residual, neumann_series


def systems(eigenvalues: list[float]) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(5, len(eigenvalues), len(eigenvalues), generator=drawn, dtype=torch.float64)).Q
    matrix = turned @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turned.mT
    return matrix, torch.randn(5, len(eigenvalues), generator=drawn, dtype=torch.float64)


def times(matrix: Tensor):
    return lambda w: (matrix @ w[:, :, None]).squeeze(2)


@pytest.mark.parametrize("solver", [conjugate_gradients, minimal_residual])
def test_positive_definite(solver) -> None:
    matrix, vector = systems([0.1, 0.5, 1, 2, 7, 7, 30])
    found = solver(times(matrix), vector, 50, 1e-12)
    assert torch.allclose(found.value, torch.linalg.solve(matrix, vector), rtol=1e-9)
    assert float(found.residual.max()) < 1e-9
    assert not bool(found.indefinite.any())


def test_minres_solves_what_conjugate_gradients_refuse() -> None:
    matrix, vector = systems([-3, -0.5, 1, 2, 7])
    exact = torch.linalg.solve(matrix, vector)
    found = minimal_residual(times(matrix), vector, 50, 1e-12)
    assert torch.allclose(found.value, exact, rtol=1e-8)
    assert bool(found.indefinite.all())
    stopped = conjugate_gradients(times(matrix), vector, 50, 1e-12)
    assert bool(stopped.indefinite.any())
    assert bool((stopped.residual[stopped.indefinite] > 0.01).all())


def test_samples_do_not_mix() -> None:
    matrix, vector = systems([0.1, 1, 2, 30])
    vector[2] = 0
    for solver in (conjugate_gradients, minimal_residual):
        together = solver(times(matrix), vector, 3, 1e-12).value
        for i in range(len(vector)):
            alone = solver(times(matrix[i : i + 1]), vector[i : i + 1], 3, 1e-12)
            assert torch.allclose(together[i], alone.value[0], rtol=1e-12)
        assert not bool(together[2].any())


def test_a_direction_without_curvature_ends_a_sample_and_no_other() -> None:
    matrix = torch.stack([torch.eye(3), torch.zeros(3, 3)]).double()
    vector = torch.ones(2, 3, dtype=torch.float64)
    found = conjugate_gradients(times(matrix), vector, 10, 1e-12)
    assert found.value.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert found.indefinite.tolist() == [False, True]


def test_small_curvature_is_curvature() -> None:
    matrix = torch.diag(torch.tensor([1e-7, 2e-7, 5e-7]))[None]
    found = conjugate_gradients(times(matrix), torch.ones(1, 3), 10, 1e-6)
    assert not bool(found.indefinite)
    torch.testing.assert_close(found.value, 1 / torch.diagonal(matrix, dim1=1, dim2=2), rtol=1e-4, atol=0)


def test_neumann() -> None:
    matrix, vector = systems([0.5, 1, 1.5])
    found = neumann_series(times(matrix), vector, 1.0, 60)
    assert torch.allclose(found.value, torch.linalg.solve(matrix, vector), rtol=1e-9)
    assert not bool(found.indefinite.any())
    assert torch.equal(neumann_series(times(matrix), vector, 0.7, 1).value, 0.7 * vector)
    matrix, vector = systems([0.5, 1, 5])
    assert bool(neumann_series(times(matrix), vector, 1.0, 60).indefinite.all())
