"""Saliency from the project's own counterfactual search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from einops import reduce
from torch import Tensor, nn

from diffcf.counterfactuals.methods import Latent, Method
from diffcf.counterfactuals.scorers import ImageScorer
from diffcf.counterfactuals.shift import counterfactual
from diffcf.counterfactuals.steps import StepSearch
from diffcf.saliency.protocol import SaliencyMethod


@dataclass(frozen=True)
class SearchSaliency(SaliencyMethod):
    """|difference| of the counterfactual that `diffcf.counterfactuals.counterfactual` finds, the mean over channels.

    Without a target the classifier's runner-up is asked for, which takes no label. More of the class that is predicted
    is not asked for: it would cost as much again, and shows nothing where the classifier is sure. Where the asked
    probability is not reached, it is the best point's difference.

    method: where to look, without an agent. search: how far to go. Costs the method's steps, and full decodes of the
    generator along the line that it proposes.

    Errors: ConfigError for a method that cannot do without an agent.
    """

    method: Method = field(default_factory=Latent)
    search: StepSearch = field(default_factory=StepSearch)

    needs_generator: ClassVar[bool] = True

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
        return reduce(found.difference.abs(), "b s c h w -> b s 1 h w", "mean")
