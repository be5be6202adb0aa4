"""Saliency from the project's own counterfactual search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from einops import reduce
from torch import Tensor, nn

from diffcf.counterfactuals.methods import Latent, Method
from diffcf.counterfactuals.scorers import ImageScorer
from diffcf.counterfactuals.shift import counterfactual
from diffcf.counterfactuals.solvers import ProximalGradient
from diffcf.counterfactuals.steps import StepSearch
from diffcf.saliency.changes import check_changes, mean_slope, smoothed
from diffcf.saliency.protocol import SaliencyMethod


@dataclass(frozen=True)
class SearchSaliency(SaliencyMethod):
    """What the counterfactual that `diffcf.counterfactuals.counterfactual` finds changes, by what the change does.

    Without a target the classifier's runner-up is asked for, which takes no label. More of the class that is predicted
    is not asked for: it would cost as much again, and shows nothing where the classifier is sure. Where the asked
    probability is not reached, it is the best point's difference.

    The map is the geometric mean of the difference, under a Gaussian, and of the mean slope of the target's log-odds on
    the way, then under the same Gaussian: a code with a place for every few pixels does not know more finely where its
    change belongs, the slopes do.

    method: where to look, without an agent; the default search with two thirds of its steps, which a map does not miss
    (docs/acat.md). search: how far to go. slopes: at so many points of the way; 0: the difference alone. smooth:
    deviation of the Gaussian in pixels. Costs the method's steps, a gradient a slope, and full decodes of the generator
    along the line that the method proposes: by default at most 45 forward and backward passes, a forward pass alone
    counting as a third.

    Errors: ConfigError for a method that cannot do without an agent.
    """

    method: Method = field(default_factory=lambda: Latent(solver=ProximalGradient(steps=20)))
    search: StepSearch = field(default_factory=StepSearch)
    slopes: int = 3
    smooth: float = 2.0

    needs_generator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_changes(self.slopes, self.smooth)

    def find(self, classifier: nn.Module, image: Tensor, target: Tensor | None, generator: Any) -> Tensor:
        """See `SaliencyMethod`."""
        found = counterfactual(
            image,
            target,
            generator=generator,
            blackbox=ImageScorer(classifier),
            method=self.method,
            search=self.search,
            batch=len(image),
        )
        change = smoothed(reduce(found.difference.abs(), "b s c h w -> b s 1 h w", "mean"), self.smooth)
        if not self.slopes:
            return change
        slope = mean_slope(classifier, found.ray.reference, found.difference, found.target, self.slopes)
        return smoothed((change * reduce(slope.abs(), "b s c h w -> b s 1 h w", "mean")).sqrt(), self.smooth)
