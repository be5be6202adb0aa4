"""How far to go: the smallest step at which a probability is reached, by bracketing and bisection, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from diffcf.errors import ConfigError

ProbabilityAt = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepSearch:
    """Settings of the search for a step.

    probability: asked of the target, by the black box itself. The default 0.75, odds of three to one, lies clearly
        behind the border of two classes (a prediction at 0.5 turns at the next rounding of the image), while the
        near-certainty of 0.95 and more asks for larger edits than the decision needs and leads away from the codes
        that the generator knows.
    evaluations: most points asked about, a sample.
    tolerance: a step is small enough where its probability exceeds the asked one by at most this; beyond the default,
        where a score rises more slowly towards 1, by as much less.
    resolution: or where the bracket is narrower than this share of the step.
    longest: the largest step taken.
    """

    probability: float = 0.75
    evaluations: int = 14
    tolerance: float = 0.02
    resolution: float = 0.02
    longest: float = 16.0

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ConfigError(f"probability {self.probability}: expected a number between 0 and 1, both excluded.")
        if self.evaluations < 1 or self.longest <= 0 or self.tolerance < 0 or self.resolution < 0:
            raise ConfigError(
                f"{self}: expected at least one evaluation, a positive longest step, and no negative tolerance."
            )

    @property
    def near(self) -> float:
        """The tolerance at the asked probability p: in proportion to p (1 - p), a sigmoid's slope, from 0.75 on."""
        asked, usual = (p * (1 - p) for p in (self.probability, StepSearch.probability))
        return self.tolerance * (asked / usual if self.probability > StepSearch.probability else 1.0)

    def beyond(self, asked: float) -> float:
        """What a solver aims at: `asked`, or where more than the default is wanted, as far beyond it in odds.

        With a price on the change a solver ends short of what it aims at, and a line search can only come back.
        """
        wanted, usual, aim = (p / (1 - p) for p in (self.probability, StepSearch.probability, asked))
        odds = wanted * max(1.0, aim / usual)
        return max(asked, odds / (1 + odds))


@dataclass(frozen=True)
class StepFound:
    """Per sample "b": where the search ended.

    step: the smallest step found with the asked probability; where none was found, the best one tried. probability:
    there. round: which evaluation gave it (0, 1, ...), -1 for the start. reached: the asked probability was found.
    converged: and the step is as small as tolerance or resolution ask. evaluations: points asked about. bracket: width
    of the interval that holds the crossing, infinite where there is none.
    """

    step: Tensor
    probability: Tensor
    round: Tensor
    reached: Tensor
    converged: Tensor
    evaluations: Tensor
    bracket: Tensor


def find_step(
    probability_at: ProbabilityAt,
    start: Tensor,
    first: Tensor,
    settings: StepSearch,
    among: Tensor | None = None,
    *,
    longest: Tensor | None = None,
    stands: bool = False,
) -> StepFound:
    """Find, for every sample, the smallest step at which `probability_at` reaches the asked probability.

    The step is doubled from `first` until the probability is reached, then the bracket is halved. For a probability
    that rises with the step this is the crossing; otherwise it is one of the crossings in the first bracket found.
    Where no doubled step reaches it, what is left of the budget goes into the gaps beside the best one: a score that
    rises and falls again may peak there. A sample that has it at the start stays there. Samples are independent: each
    is evaluated until its own search ends.

    probability_at: (indices "m", steps "m") -> probabilities "m" of those samples. start: "b", at step 0. first: "b".
    among: bool "b", the samples to search; the others stay at the start. None is all. longest: a sample's own, "b",
    where it is less than that of the settings; at 0 it stays at the start. stands: where `first` has the probability,
    nothing smaller is looked for.
    """
    asked = settings.probability
    zero, nowhere = torch.zeros_like(start), torch.full_like(start, torch.inf)
    low, high = zero, nowhere  # the probability is missed at low and reached at high
    step, best = zero, start
    which = torch.full_like(start, -1, dtype=torch.long)
    evaluations = torch.zeros_like(which)
    reached = start >= asked
    converged = reached.clone()
    limit = torch.full_like(start, settings.longest)
    limit = limit if longest is None else torch.minimum(limit, longest.to(limit))
    outside = (limit <= 0) if among is None else ~among | (limit <= 0)
    done = reached | outside
    trial = torch.minimum(first, limit)
    missed = rearrange(zero, "b -> b 1")  # every step at which the probability was asked and missed
    for turn in range(settings.evaluations):
        index = (~done).nonzero().squeeze(1)
        if not len(index):
            break
        tried = trial[index]
        found = probability_at(index, tried).to(start)
        hit = found >= asked
        # Reached points come one smaller than the other; before the first, the most probable one is kept.
        better = hit | (~reached[index] & (found > best[index]))
        kept = index[better]
        step, best, which = step.clone(), best.clone(), which.clone()
        step[kept], best[kept], which[kept] = tried[better], found[better], turn
        high = high.clone()
        high[index[hit]] = tried[hit]
        turned = torch.full_like(start, torch.inf)
        turned[index[~hit]] = tried[~hit]
        missed = torch.cat([missed, rearrange(turned, "b -> b 1")], 1)
        low = torch.where(missed < rearrange(high, "b -> b 1"), missed, 0.0).amax(1)
        evaluations[index] += 1
        reached[index] |= hit
        near = (best - asked <= settings.near) | (high - low <= settings.resolution * high)
        near = near | (which == 0) if stands else near
        converged = converged | (reached & near)
        exhausted = ~reached & (low >= limit)
        gap, between = _widest_gap(missed, step)
        done = outside | converged | (exhausted & (gap <= settings.resolution * limit))
        onwards = torch.where(exhausted, between, torch.minimum(2 * low, limit))
        trial = torch.where(reached, (low + high) / 2, onwards)
    return StepFound(
        step=step,
        probability=best,
        round=which,
        reached=reached,
        converged=converged,
        evaluations=evaluations,
        bracket=torch.where(start >= asked, zero, high - low),
    )


def _widest_gap(tried: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """The wider of the two gaps between a step "b" and its neighbours among the steps tried "b n", and its middle."""
    here = rearrange(best, "b -> b 1")
    below = torch.where(tried < here, tried, -torch.inf).amax(1)
    above = torch.where(tried > here, tried, torch.inf).amin(1)
    left = torch.where(below.isfinite(), best - below, 0.0)
    right = torch.where(above.isfinite(), above - best, 0.0)
    return torch.maximum(left, right), torch.where(left >= right, best - left / 2, best + right / 2)
