"""Methods: where a counterfactual is looked for. How far to go is then asked of the black box on decoded images.

A method proposes a direction in the code of each sample, "z plus this is an answer, more or less"; the line search in
`shift` finds the point on it where the black box itself gives the asked probability.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diffcf.counterfactuals.carry import Gate
from diffcf.counterfactuals.direction import Covariance, Score, class_score, shift_direction, spread_covariance
from diffcf.counterfactuals.objective import Loss, Objective, gradient
from diffcf.counterfactuals.ray import Ray, probability_of
from diffcf.counterfactuals.solvers import Adam, ProximalGradient, Solver
from diffcf.counterfactuals.steps import StepSearch
from diffcf.distances import L1, GroupL1, per_sample
from diffcf.generators.pixels import PixelGenerator

ProbabilitiesAt = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Proposal:
    """Where to look, for b samples.

    direction: "b ..." like the code. cheap: (sample indices "m", steps "m") -> probabilities "m k" on the line that
    cost little; the line search starts where they cross, and at step 1 where there are none. whole: an answer as it
    stands: where its own point (step 1) reaches the probability, the line search does not come back from there.
    carried: the share of every pixel's change that is carried, "b s c h w", in place of the method's gate. longest,
    longest_back: the largest steps along and against the line at which it is still meant, "b"; None is any. previewed:
    the search itself looks at previews (`Ray.glimpse`), so that the frames of its path may be some. agrees: somebody
    who must give the target the asked probability, too, at the same step.
    """

    direction: Tensor
    cheap: ProbabilitiesAt | None
    whole: bool = False
    carried: Tensor | None = None
    longest: Tensor | None = None
    longest_back: Tensor | None = None
    previewed: bool = False
    agrees: ProbabilitiesAt | None = None


@dataclass(frozen=True)
class Method(ABC):
    """A new method is a frozen dataclass with `propose`.

    needs_agent: it cannot do without one. residual_carry: how its explanations are composed where nothing else is
    asked for. diverse: it keeps away from `Ray.others`, so that it can be asked again for another answer.
    """

    needs_agent: ClassVar[bool] = False
    diverse: ClassVar[bool] = False
    residual_carry: ClassVar[bool] = True

    @property
    def gate(self) -> Gate | None:
        """Of the change that is carried."""
        return None

    def space(self, generator: Any) -> Any:
        """The generator whose code is searched: the given one."""
        return generator

    def check(self, classes: Sequence[str], generator_hash: str | None, blackbox_hash: str | None) -> None:
        """Refuse models of its own that belong to another generator or black box (CheckpointError); None as a hash is
        not checked."""
        return

    @abstractmethod
    def propose(self, ray: Ray, target: Tensor, search: StepSearch) -> Proposal:
        """A direction for every sample of the ray; target int "b"."""


@dataclass(frozen=True)
class Shift(Method):
    """Paper 004: along the gradient of the agent, which decodes nothing.

    score: "logit" is the paper's y'_i, "log_odds" the logit against the others (`class_score`).
    metric: which steps count as equally long, and so which direction is the steepest. "pattern": in the covariance of
        the agent's training codes, all slices together, which turns the gradient into the pattern of what it reads
        (`diffcf.classifiers.agent`); "spread": in their standard deviations, channel by channel; "none": in the code's
        own unit, which makes the direction the plain gradient of paper 004, Eq. 2. The latter two follow what cancels
        out over real codes, too: on phantoms they move the agent and not the black box.
    """

    score: Score = "log_odds"
    metric: Literal["pattern", "spread", "none"] = "pattern"

    needs_agent: ClassVar[bool] = True
    residual_carry: ClassVar[bool] = False

    def propose(self, ray: Ray, target: Tensor, search: StepSearch) -> Proposal:
        """The agent's direction; the first step is where the agent itself crosses, which costs no decoding."""
        assert ray.agent is not None  # `counterfactual` has asked: needs_agent
        covariance = self._covariance(ray.agent)
        direction = shift_direction(ray.agent, ray.code, target, score=self.score, covariance=covariance)
        return Proposal(direction, ray.agent_at)

    def _covariance(self, agent: Any) -> Covariance | None:
        if self.metric == "none":
            return None
        return agent.agent.covariance if self.metric == "pattern" else spread_covariance(agent.agent.scale)


@dataclass(frozen=True)
class LatentShift(Method):
    """Cohen et al. 2021, "Gifsplanation via latent shift": along the black box's own gradient, through the decoder."""

    residual_carry: ClassVar[bool] = False

    def propose(self, ray: Ray, target: Tensor, search: StepSearch) -> Proposal:
        """The gradient at the factual code, one step of it as long as the code itself."""
        code = ray.code.semantic

        def score(value: Tensor, index: Tensor) -> Tensor:
            return class_score(ray.glimpse_logits(value, index), target[index], "log_odds")

        _, slope = gradient(score, code, everyone(ray))
        size = slope.flatten(1).norm(dim=1)
        unit = slope * per_sample(torch.where(size > 0, 1 / size, 0.0), slope)
        return Proposal(unit * per_sample(code.flatten(1).norm(dim=1), code), ray.glimpse_at, previewed=True)


@dataclass(frozen=True)
class Latent(Method):
    """The default: sparse proximal steps on a spatial code, asked of black box and agent together.

        argmin_z'  loss(f(x')) + agent_weight * loss(agent(z')) + distance_weight * sum over places |z'_p - z_p|

    with x' = x + gate(D(z') - D(z)) and D the generator's one-evaluation preview. Codes are measured in spreads of the
    agent's training codes. The search starts where the agent alone would go, which decodes nothing: the black box's
    gradient through a decoder also finds changes that only this black box sees, and the agent, which has learnt from
    codes of whole images, holds it to what images have. Without an agent the black box is asked alone. Group
    soft-thresholding leaves all other places exactly as they are.

    asked: the margin that both are asked for in the search, as a probability, or more (`StepSearch.beyond`); the line
        search comes back from there.
    share: of the gate, 0 is none; a gate makes edits sharper, and stops those that are faint as a whole.
    other_weight: of the squared length that a change has along the answers that are there already (`diverse`).
    """

    agent_weight: float = 1.0
    distance_weight: float = 0.1
    other_weight: float = 1.0
    asked: float = 0.9
    agent_steps: int = 100
    solver: Solver = field(default_factory=lambda: ProximalGradient(steps=30))
    share: float = 0.0

    diverse: ClassVar[bool] = True

    @property
    def gate(self) -> Gate | None:
        """Of the change that is carried."""
        return Gate(self.share) if self.share else None

    def propose(self, ray: Ray, target: Tensor, search: StepSearch) -> Proposal:
        """The solution's code less the factual one."""
        scale, origin = standardised(ray)
        start = origin if ray.agent is None else self.alone(ray, target, search)
        found = self.solver(self.objective(ray, target, search), start, ray.recorder(scale))
        return Proposal((found.value - origin) * scale, ray.glimpse_at, previewed=True)

    def alone(self, ray: Ray, target: Tensor, search: StepSearch) -> Tensor:
        """Where the agent alone would go, in standardised codes; decodes nothing."""
        scale, _ = standardised(ray)
        loss = Loss("margin", search.beyond(self.asked))

        def of_agent(value: Tensor, index: Tensor) -> Tensor:
            return loss(ray.agent_logits(value * scale), target[index]) + self._likeness(ray, value, index)

        objective = replace(self.objective(ray, target, search), loss_at=of_agent)
        return ProximalGradient(steps=self.agent_steps)(objective, objective.origin).value

    def objective(self, ray: Ray, target: Tensor, search: StepSearch) -> Objective:
        """Black box and agent together, over standardised codes."""
        scale, origin = standardised(ray)
        loss = Loss("margin", search.beyond(self.asked))

        def of_both(value: Tensor, index: Tensor) -> Tensor:
            told = loss(ray.glimpse_logits(value * scale, index), target[index]) + self._likeness(ray, value, index)
            if ray.agent is None:
                return told
            return told + self.agent_weight * loss(ray.agent_logits(value * scale), target[index])

        return Objective(of_both, origin, weights(self.distance_weight, origin), GroupL1())

    def _likeness(self, ray: Ray, value: Tensor, index: Tensor) -> Tensor:
        scale, origin = standardised(ray)
        move = (value - origin[index]).flatten(1)
        along = torch.zeros_like(move[:, 0])
        for other in ray.others:
            unit = F.normalize((other[index] / scale).flatten(1), dim=1)
            along = along + (move * unit).sum(1).square()
        return self.other_weight * along


def default_method(generator: Any, agent: Any) -> Method:
    """`Latent` where the generator's code is spatial; for a vector the paper's `Shift`, which needs an agent.

    docs/method.md has the figures behind this choice.
    """
    return Latent() if getattr(generator, "spatial", False) or agent is None else Shift()


@dataclass(frozen=True)
class Minimal(Method):
    """Paper 002, section 3.2: the smallest change by bisection on the weight of the distance.

        argmin_z'  loss(f(x')) + distance_weight * |x - x'|_1  (mean over pixels)

    by gradient descent on the code, again and again: a weight at which the black box gives the asked probability is
    raised, any other is lowered. The paper's lambda multiplies the loss and is 1 / `distance_weight`.
    """

    solver: Solver = field(default_factory=lambda: Adam(rate=0.05, steps=30))
    lowest: float = 1e-3
    highest: float = 1e2
    rounds: int = 5

    def propose(self, ray: Ray, target: Tensor, search: StepSearch) -> Proposal:
        """The direction to the best point found: of the largest weight at which the probability was reached."""
        origin, index, loss = ray.code.semantic, everyone(ray), Loss("cross_entropy")
        low, high = weights(self.lowest, origin), weights(self.highest, origin)
        weight, best = low, origin
        for turn in range(self.rounds):

            def both(value: Tensor, index: Tensor, weight: Tensor = weight) -> Tensor:
                image = ray.glimpse(value, index)
                moved = (image - ray.glimpsed[index]).abs().flatten(1).mean(1)
                return loss(ray.logits_of(image), target[index]) + weight[index] * moved

            found = self.solver(Objective(both, origin, weight), origin, ray.recorder())
            with torch.no_grad():
                reached = (
                    probability_of(ray.glimpse_logits(found.value, index).softmax(1), target) >= search.probability
                )
            if turn == 0:
                best = found.value  # where nothing reaches it, this comes closest
            else:
                best = torch.where(per_sample(reached, best), found.value, best)
                low, high = torch.where(reached, weight, low), torch.where(reached, high, weight)
            weight = (low * high).sqrt()
        return Proposal(best - origin, ray.glimpse_at, previewed=True)


@dataclass(frozen=True)
class Pixels(Method):
    """Wachter et al. 2017 in pixels, with an exact L1: sparse, true to the black box, and no picture of anything.

        argmin_x'  loss(f(x')) + distance_weight * |x' - x|_1,  x' in [-1, 1]

    It needs no generator, and nothing keeps it on images: it is the adversarial attack that other methods are compared
    with.
    """

    distance_weight: float = 0.02
    asked: float = 0.9
    solver: Solver = field(default_factory=lambda: ProximalGradient(steps=150))

    residual_carry: ClassVar[bool] = False

    def space(self, generator: Any) -> Any:
        """The image itself."""
        return PixelGenerator(generator.card)

    def propose(self, ray: Ray, target: Tensor, search: StepSearch) -> Proposal:
        """The solution less the image."""
        origin, loss = ray.factual, Loss("margin", search.beyond(self.asked))
        objective = Objective(
            lambda value, index: loss(ray.glimpse_logits(value, index), target[index]),
            origin,
            weights(self.distance_weight, origin),
            L1(),
            low=-1.0,
            high=1.0,
        )
        found = self.solver(objective, origin, ray.recorder())
        return Proposal(found.value - origin, ray.glimpse_at)


def standardised(ray: Ray) -> tuple[Tensor, Tensor]:
    """(scale, codes / scale): the factual codes in spreads of the agent's training codes; without an agent as they are.

    A channel that never varied keeps its unit.
    """
    network = getattr(ray.agent, "agent", None)
    if network is None:
        return torch.ones((), dtype=ray.factual.dtype, device=ray.factual.device), ray.code.semantic
    scale = torch.where(network.scale > 0, network.scale, 1.0)
    return scale, ray.code.semantic / scale


def everyone(ray: Ray) -> Tensor:
    """The index of every sample, int "b"."""
    return torch.arange(len(ray.factual), device=ray.factual.device)


def weights(weight: float, like: Tensor) -> Tensor:
    """The same weight for every sample of "b ...", "b"."""
    return torch.full((len(like),), weight, dtype=like.dtype, device=like.device)
