"""Code and x_T together: for generators whose x_T holds what the semantic code does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffcf.counterfactuals.methods import Method, Proposal, weights
from diffcf.counterfactuals.objective import Loss, Objective
from diffcf.counterfactuals.ray import Ray
from diffcf.counterfactuals.solvers import Adam, Solver
from diffcf.counterfactuals.steps import StepSearch
from diffcf.distances import SquaredL2
from diffcf.generators.joint import JointSpace


@dataclass(frozen=True)
class Joint(Method):
    """Semantic code and x_T together.

        argmin_(z', x_T')  loss(f(x')) + distance_weight * (|z' - z|_2^2 + |x_T' - x_T|_2^2) / 2

    by Adam through every step of the decoder: as many evaluations and gradients an iteration as it has steps.
    """

    distance_weight: float = 1e-3
    asked: float = 0.9
    solver: Solver = field(default_factory=lambda: Adam(rate=0.02, steps=20))

    def space(self, generator: Any) -> Any:
        """Both codes as one."""
        return JointSpace(generator)

    def propose(self, ray: Ray, target: Tensor, search: StepSearch) -> Proposal:
        """The solution less both codes of the image."""
        origin, loss = ray.code.semantic, Loss("margin", search.beyond(self.asked))
        objective = Objective(
            lambda value, index: loss(ray.glimpse_logits(value, index), target[index]),
            origin,
            weights(self.distance_weight, origin),
            SquaredL2(),
        )
        found = self.solver(objective, origin, ray.recorder())
        return Proposal(found.value - origin, cheap=None)
