"""Inner problems whose solutions, and their derivatives, are known in closed form; all in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from diffcf.distances import Distance, SquaredL2
from diffcf.implicit import Problem


@dataclass(frozen=True)
class Linear:
    """b problems |M u - t|^2 / 2 + weight * distance(u - u_0) over n coordinates, θ = M "k n"."""

    matrix: Tensor
    target: Tensor
    origin: Tensor
    weight: float

    def problem(self, distance: Distance, matrix: Tensor | None = None, **bounds: float) -> Problem:
        matrix = self.matrix if matrix is None else matrix
        return Problem(
            outputs=lambda u, p: u.flatten(1) @ p["matrix"].T,
            loss=lambda s: (s - self.target).square().sum(1) / 2,
            parameters={"matrix": matrix},
            origin=self.origin,
            weight=self.weight,
            distance=distance,
            **bounds,
        )

    def rate(self) -> float:
        return float(1 / (torch.linalg.matrix_norm(self.matrix.detach(), 2) ** 2 + self.weight))


@pytest.fixture
def linear() -> Callable[..., Linear]:
    def make(shape: tuple[int, ...] = (6,), outputs: int = 4, weight: float = 0.3, seed: int = 0) -> Linear:
        drawn = torch.Generator().manual_seed(seed)
        size = torch.Size(shape).numel()

        def normal(*of: int) -> Tensor:
            return torch.randn(*of, generator=drawn, dtype=torch.float64)

        return Linear(normal(outputs, size).requires_grad_(), normal(3, outputs), normal(3, *shape), weight)

    return make


class Network(torch.nn.Module):
    def __init__(self, activation: torch.nn.Module, inputs: int = 12, classes: int = 2) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(inputs, 16), activation, torch.nn.Linear(16, 16), activation, torch.nn.Linear(16, classes)
        )

    def forward(self, value: Tensor) -> Tensor:
        return self.net(value.flatten(1))


@pytest.fixture
def networked() -> Callable[..., Problem]:
    """Counterfactuals of a small network, cross-entropy at class 1."""

    def make(
        activation: torch.nn.Module | None = None,
        distance: Distance | None = None,
        weight: float = 0.5,
        classes: int = 2,
        seed: int = 0,
        **bounds: float,
    ) -> Problem:
        torch.manual_seed(seed)
        network = Network(activation or torch.nn.Softplus(), classes=classes).double()
        origin = torch.randn(4, 12, dtype=torch.float64)
        return Problem(
            outputs=lambda u, p: functional_call(network, dict(p), (u,)),
            loss=lambda s: F.cross_entropy(s, torch.ones(len(s), dtype=torch.long), reduction="none"),
            parameters=dict(network.named_parameters()),
            origin=origin,
            weight=weight,
            distance=distance or SquaredL2(),
            **bounds,
        )

    return make
