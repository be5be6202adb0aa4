"""Questions that are asked with `counterfactual`: more of the same class, and several different answers.

A criticism (paper 002: the nearest image of another class) is what `counterfactual` finds; `Minimal` is that paper's
own way to it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffcf.counterfactuals.methods import Method
from diffcf.counterfactuals.shift import Counterfactuals, counterfactual
from diffcf.counterfactuals.steps import StepSearch
from diffcf.errors import ConfigError
from diffcf.types import Candidate, Code, Scorer


def prototype(
    image: Tensor, *, blackbox: Scorer, probability: float = 0.99, search: StepSearch | None = None, **how: Any
) -> Counterfactuals:
    """What would make the black box surer of what it says already (paper 002, section 3.1: c' = c)?

    image: "b s c h w". probability: asked of the predicted class. how: as for `counterfactual`. Where the black box
    gives the probability already, the image is its own prototype, at step 0.
    """
    with torch.no_grad():
        prediction = blackbox(Candidate(Code(image), lambda _: image)).argmax(1)
    search = replace(search or StepSearch(), probability=probability)
    return counterfactual(image, prediction, blackbox=blackbox, search=search, **how)


def diverse(image: Tensor, target: Tensor, *, count: int, method: Method, **how: Any) -> list[Counterfactuals]:
    """Several answers that differ: each is searched away from the directions in code space that the earlier ones took.

    image: "b s c h w"; target: int "b". count: how many. method: one that keeps away from other answers (`Latent`,
    `Exemplar`). how: as for `counterfactual`. What cannot be reached in another way is not reachable, and says so.

    Errors: ConfigError for fewer than one answer and for another method.
    """
    if count < 1:
        raise ConfigError(f"{count} answers; at least one can be asked for.")
    if not method.diverse:
        raise ConfigError(
            f"the method {type(method).__name__} always gives the same answer; take Latent, or Exemplar where the "
            "agent has exemplars."
        )
    found: list[Counterfactuals] = []
    for _ in range(count):
        others = [one.proposal.direction for one in found]
        found.append(counterfactual(image, target, method=method, others=others, **how))
    return found
