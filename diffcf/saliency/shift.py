"""Saliency from the latent shift of Cohen et al. 2021, which paper 003 compares with: one straight step in the code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import repeat
from torch import Tensor, nn

from diffcf.counterfactuals.objective import gradient
from diffcf.counterfactuals.ray import probability_of
from diffcf.distances import per_sample
from diffcf.errors import ConfigError
from diffcf.saliency.changes import mean_of_changes
from diffcf.saliency.counterfactual import decoded, logits_of
from diffcf.saliency.protocol import SaliencyMethod, class_of, evaluating, explained
from diffcf.types import Code

CERTAIN = 0.95  # no step is asked to go further than this, or below what is left


@dataclass(frozen=True)
class LatentShiftSaliency(SaliencyMethod):
    """|D(z + lambda g) - D(z)|, z = E(x) and g the gradient of the class's log-odds in z (paper 003, appendix F).

    lambda is found for every scan: it is doubled from `first` on until the probability of the class has moved by
    `moved`, or to `CERTAIN`. Where it never does, the lambda that moved it furthest is taken. The predicted class is
    moved both ways, up and down, and the two maps, each in [0, 1], are averaged; with a target it is raised only. What
    is certain already cannot be raised, and its part of the mean is 0.

    moved: a difference of probabilities. first: the smallest lambda. doublings: how often it is doubled at most. Costs
    one backward pass, and a forward pass a lambda and way.
    """

    moved: float = 0.5
    first: float = 1e-5
    doublings: int = 24

    needs_generator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 < self.moved < 1 and self.first > 0 and self.doublings >= 0):
            raise ConfigError(f"{self}: expected a move between 0 and 1, a positive first, and no negative doublings.")

    def find(self, classifier: nn.Module, image: Tensor, target: Tensor | None, generator: Any) -> Tensor:
        """See `SaliencyMethod`."""
        ways = (1.0, -1.0) if target is None else (1.0,)
        target = class_of(classifier, image, target)
        code, scans = generator.encode(image), len(image)
        given, steepest = _steepest(classifier, generator, code, target)
        index = torch.arange(len(ways) * scans, device=image.device) % scans
        way = repeat(image.new_tensor(ways), "k -> (k b)", b=scans)
        step = self._steps(classifier, generator, code, steepest, target, given, way, index)
        semantic = code.semantic[index] + per_sample(way * step, steepest) * steepest[index]
        change = _shown(generator, code, semantic, index) - _shown(generator, code, code.semantic[index], index)
        return mean_of_changes(change * per_sample(step > 0, change), scans)

    def _steps(
        self,
        classifier: nn.Module,
        generator: Any,
        code: Code,
        steepest: Tensor,
        target: Tensor,
        given: Tensor,
        way: Tensor,
        index: Tensor,
    ) -> Tensor:
        """lambda >= 0 of every scan and way, "n"; 0 where nothing moves it, or nothing is left to move."""
        start = given[index]
        asked = torch.where(
            way > 0, (start + self.moved).clamp(max=CERTAIN), (start - self.moved).clamp(min=1 - CERTAIN)
        )
        wanted = way * (asked - start)  # how far it should go; negative where it is there
        best, furthest = torch.zeros_like(way), torch.zeros_like(way)
        live = (wanted > 0).nonzero().squeeze(1)
        for turn in range(self.doublings + 1):
            if not len(live):
                break
            step, chosen = self.first * 2**turn, index[live]
            semantic = code.semantic[chosen] + per_sample(way[live] * step, steepest) * steepest[chosen]
            reached = _probability(classifier, generator, code, semantic, target, chosen)
            gone = way[live] * (reached - start[live])
            further = gone > furthest[live]
            best[live[further]], furthest[live[further]] = step, gone[further]
            live = live[gone < wanted[live]]
        return best


@torch.no_grad()
def shift_curve(
    classifier: nn.Module, image: Tensor, generator: Any, lambdas: Tensor, target: Tensor | None = None
) -> Tensor:
    """The probability of a class on the line z + lambda g, "b n" (paper 003, Fig. 5 a and c).

    image: "b s c h w". lambdas: "n", of either sign. target: int "b"; None is the predicted class of each image.
    """
    with evaluating(classifier):
        target = class_of(classifier, image, target)
        code = generator.encode(image)
        _, steepest = _steepest(classifier, generator, code, target)
        everyone = torch.arange(len(image), device=image.device)
        curve = [
            _probability(classifier, generator, code, code.semantic + float(step) * steepest, target, everyone)
            for step in lambdas
        ]
    return torch.stack(curve, 1)


def _steepest(classifier: nn.Module, generator: Any, code: Code, target: Tensor) -> tuple[Tensor, Tensor]:
    """(the probability of the target at z, "b", the gradient of its log-odds there, like z)."""

    def odds(value: Tensor, index: Tensor) -> Tensor:
        return explained(logits_of(classifier, _shown(generator, code, value, index)), target[index])

    everyone = torch.arange(len(target), device=target.device)
    given, steepest = gradient(odds, code.semantic, everyone)
    return given.sigmoid(), steepest


def _probability(
    classifier: nn.Module, generator: Any, code: Code, semantic: Tensor, target: Tensor, index: Tensor
) -> Tensor:
    logits = classifier(_shown(generator, code, semantic, index))
    return probability_of(logits.softmax(1), target[index])


def _shown(generator: Any, code: Code, semantic: Tensor, index: Tensor) -> Tensor:
    return decoded(generator, code, semantic, index).clamp(-1, 1)
