"""Who is asked about a candidate: an agent, which reads its code, or a classifier, which reads its image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffcf.types import Candidate


@dataclass(frozen=True)
class AgentScorer:
    """Reads the semantic code, "b s ..." -> logits "b k"; decodes nothing."""

    agent: Callable[[Tensor], Tensor]

    def __call__(self, candidate: Candidate) -> Tensor:
        """Logits "b k"."""
        return self.agent(candidate.code.semantic)


@dataclass(frozen=True)
class ImageScorer:
    """Reads the decoded image, "b s c h w" -> logits "b k".

    view: brings an image of the generator's preparation to the classifier's (`BlackBox.view_of`); none by default.
    """

    classifier: Callable[[Tensor], Tensor]
    view: Callable[[Tensor], Tensor] | None = None

    def __call__(self, candidate: Candidate) -> Tensor:
        """Logits "b k"."""
        image = candidate.image
        return self.classifier(image if self.view is None else self.view(image))
