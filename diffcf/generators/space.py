"""What every way to see a generator's code differently shares: attributes as the code, both codes as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffcf.cards import GeneratorCard


def same_stochastic(generator: Any, semantic: Tensor, seed: int) -> Tensor:
    """Stochastic codes of the same white noise for every one of b codes "b s ...".

    One by one: what a sampler makes of the noise may depend on the code, and must not on its neighbours'.
    """
    return torch.cat([generator.fresh_stochastic(one, seed) for one in semantic.split(1)])


class Space(nn.Module):
    """A generator over another code. `encode` learns the shapes that `decode` needs to take that code apart.

    generator: a `SliceWise`.
    """

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator
        self._shapes: list[Any] = []

    @property
    def card(self) -> GeneratorCard:
        """The generator's card."""
        return self.generator.card

    @property
    def forwards(self) -> int:
        """Network evaluations per slice so far."""
        return self.generator.forwards
