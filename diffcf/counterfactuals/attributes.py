"""Counterfactuals in attribute space: which nameable properties decide, and by how much (paper 002, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from diffcf.cards import AttributeAgentCard, AttributesCard, read_card
from diffcf.classifiers.attribute_agent import AttributeAgent
from diffcf.counterfactuals.methods import Method, Proposal, weights
from diffcf.counterfactuals.objective import Loss, Objective
from diffcf.counterfactuals.ray import Ray, take
from diffcf.counterfactuals.solvers import ProximalGradient, Solver
from diffcf.counterfactuals.steps import StepSearch
from diffcf.distances import L1
from diffcf.errors import CheckpointError
from diffcf.generators.attributes import AttributeSpace

Told = Callable[[Tensor, Tensor], Tensor]  # (amounts "m k", sample indices "m") -> logits "m c"


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
    of attributes that must not change. agent: folder of an agent of attributes (train/attribute_agent.py), which is
    then asked together with the black box, at every step: what the generator makes of an attribute may turn the
    decision where no scan with such an amount would. Its logits are moved so that it gives the scan itself what the
    black box gives it.
    """

    attributes: Path
    frozen: tuple[str, ...] = ()
    agent: Path | None = None
    distance_weight: float = 0.2
    asked: float = 0.9
    tried: int = 6
    rounds: int = 2
    solver: Solver = field(default_factory=lambda: ProximalGradient(steps=60))

    def space(self, generator: Any) -> AttributeSpace:
        """The attributes that are not frozen, as the code."""
        from diffcf.generators.attribute_flow import load_attributes  # which imports diffusers: seconds

        return AttributeSpace(generator, load_attributes(self.attributes), self.frozen)

    def check(self, classes: Sequence[str], generator_hash: str | None, blackbox_hash: str | None) -> None:
        """Attributes of another generator, and an agent of another black box, are refused."""
        card = read_card(AttributesCard, self.attributes)
        if generator_hash not in (None, card.generator_hash):
            raise CheckpointError(
                f"these attributes were fitted over generator {card.generator_hash[:12]}, but this one is "
                f"{generator_hash[:12]}; fit them again: train/attributes.py or train/attribute_flow.py."
            )
        if self.agent is None:
            return
        agent = read_card(AttributeAgentCard, self.agent)
        if blackbox_hash not in (None, agent.blackbox_hash) or list(classes) != agent.classes:
            raise CheckpointError(
                f"this agent of attributes imitates black box {agent.blackbox_hash[:12]} with the classes "
                f"{', '.join(agent.classes)}; fit one to this black box: train/attribute_agent.py."
            )
        if (agent.names, agent.mean, agent.spread) != (card.names, card.mean, card.spread):
            raise CheckpointError(
                f"this agent reads {', '.join(agent.names)} in other units or another order than {self.attributes}; "
                "fit one over these attributes: train/attribute_agent.py."
            )

    def propose(self, ray: Ray, target: Tensor, search: StepSearch) -> Proposal:
        """The solution less the scan's own amounts."""
        origin, loss = ray.code.semantic, Loss("margin", search.beyond(self.asked))
        card, told = ray.generator.attributes, self._told(ray)

        def both(value: Tensor, index: Tensor) -> Tensor:
            of_blackbox = loss(ray.glimpse_logits(value, index), target[index])
            return of_blackbox if told is None else of_blackbox + loss(told(value, index), target[index])

        low, high = (torch.tensor(ends).to(origin) for ends in (card.low, card.high))
        # A scan whose own amounts are read outside the range stays where it is, and comes back at most.
        low, high = torch.minimum(origin, low), torch.maximum(origin, high)
        objective = Objective(
            both,
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
        agrees = (
            None
            if told is None
            else lambda index, step: told(origin[index] + rearrange(step, "m -> m 1") * change[index], index).softmax(1)
        )
        return Proposal(change, ray.glimpse_at, longest=torch.ones_like(back), longest_back=back, agrees=agrees)

    def _told(self, ray: Ray) -> Told | None:
        """What the agent says of free amounts, moved to the black box's own scores at the scan."""
        if self.agent is None:
            return None
        agent = AttributeAgent.load(self.agent)

        def said(value: Tensor, index: Tensor) -> Tensor:
            return agent(ray.generator.amounts(replace(take(ray.code, index), semantic=value)))

        everyone = torch.arange(len(ray.factual), device=ray.factual.device)
        with torch.no_grad():
            rest = ray.factual_probability.clamp(min=1e-6).log() - said(ray.code.semantic, everyone)
        return lambda value, index: said(value, index) + rest[index]

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
