"""Counterfactuals in attribute space: which nameable properties decide, and by how much (paper 002, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcf.counterfactuals.methods import Method, Proposal, weights
from diffcf.counterfactuals.objective import Loss, Objective
from diffcf.counterfactuals.ray import Ray
from diffcf.counterfactuals.solvers import ProximalGradient, Solver
from diffcf.counterfactuals.steps import StepSearch
from diffcf.distances import L1
from diffcf.generators.attributes import AttributeSpace


@dataclass(frozen=True)
class Attributes(Method):
    """The fewest attributes, and the least of them, that turn the decision.

        argmin_a'  loss(f(x(a'))) + distance_weight * |a' - a|_1,  a' within the range that was seen

    over amounts in spreads, by proximal steps: what need not change stays exactly as it is. The distance of the
    paper's Eq. 2 is of the images; this one is of the attributes, so that few of them change. A black box may not see
    a small change of an attribute at all (half a mark is no mark), and has no gradient there; where two attributes do
    nearly the same, steps turn one into the other slowly. They start from the best point that changes one attribute
    alone: the best of `tried` values over its range, then of as many around that one, `rounds` times.

    attributes: folder of the directions (train/attributes.py) or of the flow (train/attribute_flow.py). frozen: names
    of attributes that must not change.
    """

    attributes: Path
    frozen: tuple[str, ...] = ()
    distance_weight: float = 0.2
    asked: float = 0.9
    tried: int = 6
    rounds: int = 2
    solver: Solver = field(default_factory=lambda: ProximalGradient(steps=60))

    def space(self, generator: Any) -> AttributeSpace:
        """The attributes that are not frozen, as the code."""
        from diffcf.generators.attribute_flow import load_attributes  # which imports diffusers: seconds

        return AttributeSpace(generator, load_attributes(self.attributes), self.frozen)

    def propose(self, ray: Ray, target: Tensor, search: StepSearch) -> Proposal:
        """The solution less the scan's own amounts."""
        origin, loss = ray.code.semantic, Loss("margin", search.beyond(self.asked))
        card = ray.generator.attributes
        low, high = (torch.tensor(ends).to(origin) for ends in (card.low, card.high))
        # A scan whose own amounts are read outside the range stays where it is, and comes back at most.
        low, high = torch.minimum(origin, low), torch.maximum(origin, high)
        objective = Objective(
            lambda value, index: loss(ray.glimpse_logits(value, index), target[index]),
            origin,
            weights(self.distance_weight, origin),
            L1(),
            low=low,
            high=high,
        )
        found = self.solver(objective, self._start(objective), ray.recorder())
        change = found.value - origin
        # Beyond its own point the line leaves the range; against the change as soon as one attribute does.
        room = torch.where(change > 0, origin - low, high - origin) / change.abs()
        back = torch.where(change == 0, torch.inf, room).amin(1)
        return Proposal(change, ray.glimpse_at, longest=torch.ones_like(back), longest_back=back)

    @torch.no_grad()
    def _start(self, objective: Objective) -> Tensor:
        """The point with the smallest objective among the origin and those that differ from it in one attribute."""
        best, index = objective.origin.clone(), torch.arange(len(objective.origin), device=objective.origin.device)
        least = objective.whole(best, index)
        assert isinstance(objective.low, Tensor)
        assert isinstance(objective.high, Tensor)
        for attribute in range(best.shape[1]):
            low, high = objective.low[:, attribute], objective.high[:, attribute]
            for _ in range(self.rounds):
                values = [torch.lerp(low, high, share) for share in torch.linspace(0, 1, self.tried).tolist()]
                given = torch.stack([objective.whole(_with(objective.origin, attribute, v), index) for v in values])
                lowest, at = given.min(0)
                value, gap = torch.stack(values)[at, index], (high - low) / (self.tried - 1)
                better = lowest < least
                best[better], least[better] = _with(objective.origin, attribute, value)[better], lowest[better]
                low, high = torch.maximum(value - gap, low), torch.minimum(value + gap, high)
        return best


def _with(amounts: Tensor, attribute: int, value: Tensor) -> Tensor:
    """Amounts "b k" with one attribute set to "b"."""
    changed = amounts.clone()
    changed[:, attribute] = value
    return changed
