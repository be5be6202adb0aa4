"""From an image to its counterfactual: along the direction that a method proposes, judged by the black box.

Every point is decoded and scored by the black box itself; the method only says where to go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from diffcf.counterfactuals.methods import Method, ProbabilitiesAt, Proposal, default_method
from diffcf.counterfactuals.ray import Points, Ray, probability_of
from diffcf.counterfactuals.steps import ProbabilityAt, StepFound, StepSearch, find_step
from diffcf.errors import ConfigError
from diffcf.types import Code, Scorer, Solution

CHEAP_EVALUATIONS = 40  # of the search for the first step among points that decode nothing, or in one evaluation
SMALLEST_FIRST = 0.05  # where the target is reached at the start
LONGEST_BACK = 4.0  # spreads of the codes: further out there is nothing that the generator has seen
MOST_BACK = 6  # points asked about on the way back, which is shown and not an answer


@dataclass(frozen=True)
class Counterfactuals:
    """What the search found for b samples.

    ray: the factual images, their codes, reconstructions and scores, and the line searched. target: int "b".
    start: the points of step 0. end: the counterfactuals, or the best points where `reachable` (bool "b") says that
    the asked probability was not reached. found: how the search for the step, with the settings `search`, ended.
    proposal: the method's. frames: the way of the optimisation, "n b s c h w" with the start first, where it was asked
    for and the method has one; previews of its iterates. `Minimal` goes one way a weight, and shows them one by one.
    """

    ray: Ray
    target: Tensor
    start: Points
    end: Points
    found: StepFound
    search: StepSearch
    proposal: Proposal
    frames: Tensor | None = None

    @property
    def reachable(self) -> Tensor:
        """Bool "b"."""
        return self.found.reached

    @property
    def difference(self) -> Tensor:
        """The change against the matching reference, "b s c h w"."""
        return self.end.image - self.ray.reference

    @property
    def solution(self) -> Solution:
        """As every solver reports: residual is the width of the bracket that holds the step."""
        return Solution(self.end.semantic, self.found.converged, self.found.evaluations, self.found.bracket)

    @cached_property
    def agreed(self) -> Tensor | None:
        """What `Proposal.agrees` gives the target at the end, "b"; None where nobody has to agree."""
        if self.proposal.agrees is None:
            return None
        everyone = torch.arange(len(self.target), device=self.target.device)
        return probability_of(self.proposal.agrees(everyone, self.end.step), self.target)

    @property
    def previewed(self) -> bool:
        """Whether the inner frames of `path` are previews where full ones are not asked for."""
        return self.proposal.previewed and self.ray.previews_fit

    @property
    def asked_agent(self) -> bool:
        """Whether an agent has read the codes."""
        return self.ray.agent is not None

    @property
    def code(self) -> Code:
        """The edited codes."""
        return Code(self.end.semantic, self.ray.code.stochastic)


def other_class(probability: Tensor) -> Tensor:
    """The target when none is asked for: of two classes the other one, of more the runner-up; "b k" -> int "b"."""
    return probability.topk(2, dim=1).indices[:, 1]


def counterfactual(
    image: Tensor,
    target: Tensor | None = None,
    *,
    generator: Any,
    blackbox: Scorer,
    agent: Scorer | None = None,
    method: Method | None = None,
    search: StepSearch | None = None,
    residual_carry: bool | None = None,
    roi: Tensor | None = None,
    others: Sequence[Tensor] = (),
    frames: bool = False,
    batch: int = 16,
) -> Counterfactuals:
    """Find a point where the black box gives `target` the asked probability.

    image: "b s c h w" in [-1, 1]. target: int "b"; None takes `other_class` of the black box's scores. agent: a scorer
    of codes, for methods that need or use one. method: where to look; None is `default_method`. search: how far.
    residual_carry: None is the method's own way. roi: where the image may change, "b s 1 h w" of 0 and 1; needs
    residual carry. others: directions "b ..." of answers that are there already, which this one should not be like
    (`diverse`). frames: keep the iterates of the method's solver. batch: scans encoded, decoded and scored at once; the
    solver of a method that has one holds all of them, with their gradients.

    Errors: ConfigError for a target that is no class, and for a method without what it needs.
    """
    method, search = method or default_method(generator, agent), search or StepSearch()
    if method.needs_agent and agent is None:
        raise ConfigError(
            f"the method {type(method).__name__} follows an agent, and there is none; give one, or take another method."
        )
    carry = method.residual_carry if residual_carry is None else residual_carry
    space = method.space(generator)
    ray = Ray(
        image,
        generator=space,
        blackbox=blackbox,
        agent=agent if space is generator else None,  # it reads no other code
        residual_carry=carry,
        gate=method.gate,
        roi=roi,
        others=others,
        batch=batch,
        record=frames,
    )
    classes = ray.factual_probability.shape[1]
    if target is None:
        target = other_class(ray.factual_probability)
    target = target.to(image.device)
    if target.shape != (len(image),) or bool(((target < 0) | (target >= classes)).any()):
        raise ConfigError(f"target {target.tolist()}: expected {len(image)} class indices from 0 to {classes - 1}.")
    proposal = method.propose(ray, target, search)
    ray.direction = proposal.direction
    shown = _frames(ray)
    if proposal.carried is not None:
        ray.restrict(proposal.carried)
    cheap = None if proposal.whole else proposal.cheap
    end, found = walk(
        ray, target, search, cheap, sign=1, longest=proposal.longest, stands=proposal.whole, agrees=proposal.agrees
    )
    return Counterfactuals(ray, target, ray.start, end, found, search, proposal, shown)


def _frames(ray: Ray) -> Tensor | None:
    if not ray.iterates:
        return None
    everyone = torch.arange(len(ray.factual), device=ray.factual.device)
    first, *later = ray.iterates
    # A solver that begins elsewhere, as `Latent` does where its agent ends, has its own first picture, too.
    codes = later if torch.equal(first, ray.code.semantic) else ray.iterates
    with torch.no_grad():
        images = [ray.glimpse(code, everyone) for code in codes]
    return torch.stack([ray.reference, *images])


def walk(
    ray: Ray,
    wanted: Tensor,
    search: StepSearch,
    cheap: ProbabilitiesAt | None,
    *,
    sign: int,
    strict: bool = False,
    longest: Tensor | None = None,
    stands: bool = False,
    agrees: ProbabilitiesAt | None = None,
) -> tuple[Points, StepFound]:
    """Search along the ray (sign 1) or against it (-1) for the asked probability of class `wanted`, int "b".

    The first step tried is where `cheap`, which costs no decoding, reaches it; None tries step 1. strict: where it
    never does, nothing is decoded. longest, stands: as of `find_step`. agrees: as of a `Proposal`. Returns the points
    with signed steps.
    """
    rounds: list[tuple[Tensor, Points]] = []
    start = ray.start

    def by_all(probability: Tensor, index: Tensor, step: Tensor) -> Tensor:
        given = probability_of(probability, wanted[index])
        if agrees is None:
            return given
        return torch.minimum(given, probability_of(agrees(index, sign * step), wanted[index]).to(given))

    def by_blackbox(index: Tensor, step: Tensor) -> Tensor:
        points = ray.at(index, sign * step)
        rounds.append((index, points))
        return by_all(points.probability, index, step)

    given = by_all(start.probability, torch.arange(len(wanted), device=wanted.device), start.step)
    first, among = torch.ones_like(start.step), None
    if cheap is not None:
        first, crossed = _crossing(lambda index, step: by_all(cheap(index, sign * step), index, step), given, search)
        among = crossed if strict else None
    found = find_step(by_blackbox, given, first, search, among, longest=longest, stands=stands)
    ends = []
    for sample, turn in enumerate(found.round.tolist()):
        if turn < 0:
            ends.append(start[sample : sample + 1])
        else:
            index, points = rounds[turn]
            ends.append(points[index == sample])
    return Points.join(ends), found


def _crossing(cheap: ProbabilityAt, given: Tensor, search: StepSearch) -> tuple[Tensor, Tensor]:
    """The step "b" at which the cheap probability reaches the asked one, 1 elsewhere; and where they do, bool "b".

    given: what there is at the start, "b"; where that is enough nothing is asked.
    """
    crossed, first = given >= search.probability, torch.ones_like(given)
    samples = (~crossed).nonzero().squeeze(1)
    if not len(samples):
        return first, crossed

    def along(index: Tensor, step: Tensor) -> Tensor:
        return cheap(samples[index], step)

    everyone = torch.arange(len(samples), device=given.device)
    one = first[samples]
    guess = find_step(along, along(everyone, 0 * one), one, replace(search, evaluations=CHEAP_EVALUATIONS))
    first[samples] = torch.where(guess.reached, guess.step, one).clamp(min=SMALLEST_FIRST).to(first)
    crossed[samples] = guess.reached
    return first, crossed


def path(found: Counterfactuals, points: int = 9, *, full: bool = False) -> Points:
    """The way from one class to the other: n points of rising step, fields "n b ..." (paper 004, Fig. 2).

    It ends at the counterfactual and holds the start. It begins where the black box gives the opposite class - its
    prediction, or the runner-up where the target is the prediction - the same asked probability: for a case that it
    has decided that is the start, for an indeterminate one a point against the gradient (Eq. 2, second line), if there
    is one within `LONGEST_BACK`. Where the search never left the start, the path runs to one spread of the codes, to
    show what lies there.

    Start, counterfactual and both ends are full decodes. The frames between them are previews, one evaluation each,
    where the method itself searched on previews and residual carry puts them onto the scan (`previewed`; not for global
    codes, whose previews are blurred). Then the way back, too, is decoded only where previews reach its end. full:
    decode all of it. A score is always that of the image shown.

    Errors: ConfigError for fewer than 3 points.
    """
    if points < 3:
        raise ConfigError(f"a path of {points} points: expected at least 3, two ends and the start.")
    ray = found.ray
    decided = ray.start.probability.scatter(1, rearrange(found.target, "b -> b 1"), -1.0)
    search = replace(found.search, longest=LONGEST_BACK, evaluations=min(MOST_BACK, found.search.evaluations))
    previewed = found.previewed and not full
    proposal = found.proposal
    opposite, behind = walk(
        ray, decided.argmax(1), search, proposal.cheap, sign=-1, strict=previewed, longest=proposal.longest_back
    )
    moved = rearrange(found.end.step > 0, "b -> b 1")
    samples = range(len(found.target))
    grids = [
        _grid(float(opposite.step[i]) if behind.reached[i] else 0.0, float(found.end.step[i]) or 1.0, points)
        for i in samples
    ]
    steps = torch.tensor(grids, dtype=ray.start.step.dtype, device=ray.start.step.device)  # "b n"
    known = [
        (steps == 0, found.start),
        ((steps == steps[:, :1]) & (steps < 0), opposite),
        ((steps == steps[:, -1:]) & moved, found.end),
    ]
    unknown = ~(known[0][0] | known[1][0] | known[2][0])
    sample = repeat(torch.arange(len(steps), device=steps.device), "b -> b n", n=points)
    inner = torch.ones_like(unknown)
    inner[:, [0, -1]] = False
    seen = inner & previewed
    parts, places = [], []
    for mask, preview in ((unknown & seen, True), (unknown & ~seen, False)):
        if bool(mask.any()):
            parts.append(ray.at(sample[mask], steps[mask], preview=preview))
            places.append(mask.nonzero())
    for mask, source in known:
        parts.append(source[sample[mask]])
        places.append(mask.nonzero())
    row, column = rearrange(torch.cat(places), "m two -> two m")
    joined = Points.join(parts)[torch.argsort(column * len(steps) + row)]
    return Points(*(rearrange(value, "(n b) ... -> n b ...", n=points) for value in joined.fields()))


def rising_share(probability: Tensor) -> Tensor:
    """Share of a path's steps on which the score does not fall, "n ..." -> "..."; 1 is a monotone path."""
    return (probability.diff(dim=0) >= 0).float().mean(0)


def _grid(low: float, high: float, points: int) -> list[float]:
    """`points` rising steps from low <= 0 to high > 0; both ends and 0 are among them."""
    below = 0 if low == 0 else min(max(round((points - 1) * -low / (high - low)), 1), points - 2)
    negative = torch.linspace(low, 0, below + 1).tolist()
    positive = torch.linspace(0, high, points - below).tolist()
    return [low, *negative[1:-1], 0.0, *positive[1:-1], high] if below else [0.0, *positive[1:-1], high]
