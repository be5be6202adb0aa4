"""The identity as a generator: an image is its own code. What is searched in it are pixels."""

from __future__ import annotations

from torch import Tensor, nn

from diffcf.cards import GeneratorCard
from diffcf.types import Code


class PixelGenerator(nn.Module):
    """Image "b s c h w" <-> Code(semantic = the image, no x_T). card: whose preparation the images have."""

    forwards = 0  # there is no network to evaluate

    def __init__(self, card: GeneratorCard) -> None:
        super().__init__()
        self.card = card

    def encode(self, image: Tensor) -> Code:
        """The image as a code."""
        return Code(image, None)

    def decode(self, code: Code) -> Tensor:
        """The code as an image."""
        return code.semantic
