"""Where the counterfactuals of a classifier in training are searched: pixels, or the code of a frozen generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffcf.types import Code


@dataclass(frozen=True)
class Opened:
    """The space around a batch of images: u_0 "b ...", and u -> image "b s c h w", which gives u_0 the image itself."""

    start: Tensor
    image: Callable[[Tensor], Tensor]


class Space(Protocol):
    """Opens itself around images; low, high: bounds of u."""

    low: float | None
    high: float | None

    def at(self, image: Tensor) -> Opened:
        """The space around images "b s c h w"."""
        ...

    def samples(self, images: Tensor) -> Tensor:
        """u_0 of many images, "n ...": what scaled distances are fitted to."""
        ...


class Pixels:
    """u is the image, in [-1, 1]."""

    low: float | None = -1.0
    high: float | None = 1.0

    def at(self, image: Tensor) -> Opened:
        """See `Space`."""
        return Opened(image, lambda value: value)

    def samples(self, images: Tensor) -> Tensor:
        """See `Space`."""
        return images


class Latent(nn.Module):
    """u is the semantic code, "b s d h w" or "b s d"; its image is x + D(u) - D(u_0).

    generator: a `SliceWise` whose `preview` is one differentiable evaluation: of a plain autoencoder, or of a diffusion
    autoencoder, by its one-step decoder where it has one. It stays frozen. The x_T of a diffusion autoencoder is drawn
    from `seed` for every image, since inverting it for every batch would cost more than the rest of a step; only what a
    change of the code changes is used. The image is not clamped, so that no gradient is lost at the window's limits.
    """

    low: float | None = None
    high: float | None = None

    def __init__(self, generator: Any, seed: int = 0) -> None:
        super().__init__()
        self.generator = generator.eval().requires_grad_(False)
        self.seed = seed

    def train(self, mode: bool = True) -> Latent:
        """Does nothing: the generator stays as it is."""
        return self

    def at(self, image: Tensor) -> Opened:
        """See `Space`."""
        with torch.no_grad():
            semantic = self.generator.encode_semantic(image)
            stochastic = None
            if self.generator.generator.sampling is not None:
                stochastic = self.generator.fresh_stochastic(semantic, self.seed)
            rest = image - self.generator.preview(Code(semantic, stochastic))
        return Opened(semantic, lambda value: rest + self.generator.preview(Code(value, stochastic)))

    @torch.no_grad()
    def samples(self, images: Tensor) -> Tensor:
        """See `Space`."""
        device = next(self.generator.parameters()).device
        return torch.cat([self.generator.encode_semantic(part.to(device)) for part in images.split(64)])
