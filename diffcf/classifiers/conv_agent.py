"""A convolutional agent for spatial codes: it sees where in the code something lies.

The paper's agent (`Agent`) is linear, so that every edit along it is one template for all images. A spatial code allows
more: a small network over its grid, whose gradient depends on the image. It agrees with the black box better, and the
edits that follow it are local.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from diffcf.cards import AgentCard
from diffcf.classifiers.agent import checked_codes, code_statistics
from diffcf.errors import ConfigError

GROUPS = 8


class ConvAgent(ModelMixin, ConfigMixin):
    """Spatial semantic codes "b s d h w" -> logits "b k".

    Five 3x3 convolutions with GroupNorm and SiLU, the third and fifth with stride 2, then one linear layer over all
    places; the slices enter side by side as channels. It has a classification layer of its own (`own_head`), which the
    KL loss trains.

    Args:
        slices: s.
        semantic_shape: of one slice's code, (d, h, w), h and w divisible by 4.
        classes: k.
        width: channels of the first two layers, a multiple of 8; twice as many later.
        dropout: before the linear layer, in training.

    Errors: ConfigError for a code that is no map, and for sizes that do not fit.
    """

    mean: Tensor
    std: Tensor
    own_head = True

    @register_to_config
    def __init__(
        self, slices: int, semantic_shape: Sequence[int], classes: int, width: int = 32, dropout: float = 0.2
    ) -> None:
        super().__init__()
        if len(semantic_shape) != 3 or any(side % 4 for side in semantic_shape[1:]):
            raise ConfigError(
                f"a code of shape {tuple(semantic_shape)}: a convolutional agent reads (d, h, w) with h and w "
                "divisible by 4; for a global code train the linear agent (width 0)."
            )
        if width < GROUPS or width % GROUPS:
            raise ConfigError(f"width {width}: expected a multiple of {GROUPS}.")
        dim, rows, columns = semantic_shape
        self.slices = slices
        self.semantic_shape = tuple(semantic_shape)
        self.card: AgentCard | None = None
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.body = nn.Sequential(
            _block(dim * slices, width, 1),
            _block(width, width, 1),
            _block(width, 2 * width, 2),
            _block(2 * width, 2 * width, 1),
            _block(2 * width, 2 * width, 2),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(2 * width * (rows // 4) * (columns // 4), classes)

    @classmethod
    def for_blackbox(cls, blackbox: Any, semantic_shape: Sequence[int], *, width: int) -> ConvAgent:
        """An untrained agent with the slices and classes of a black box."""
        card = blackbox.card
        return cls(card.preparation.slices, tuple(semantic_shape), len(card.classes), width)

    def set_statistics(self, semantic: Tensor) -> None:
        """Take `mean` and `std` of every channel from the training codes "n s d h w"."""
        mean, std = code_statistics(checked_codes(self, semantic))
        self.mean.copy_(mean)
        self.std.copy_(std)

    @property
    def scale(self) -> Tensor:
        """Spread of the training codes, "d 1 1"."""
        return rearrange(self.std, "d -> d 1 1")

    def covariance(self, gradient: Tensor) -> Tensor:
        """No metric of patterns: this agent is not affine. Raises ConfigError."""
        raise ConfigError(
            "a convolutional agent has no pattern, which is a linear agent's, over a global code (`--generator "
            "lidc-global`); take the method 'latent', or Shift with metric 'spread'."
        )

    def features(self, semantic: Tensor) -> Tensor:
        """What the last layer reads, "b f"."""
        spread = self.scale
        inverse = torch.where(spread > 0, 1 / spread, 0.0)
        x = (checked_codes(self, semantic) - rearrange(self.mean, "d -> d 1 1")) * inverse
        return self.body(rearrange(x, "b s d h w -> b (s d) h w"))

    def forward(self, semantic: Tensor) -> Tensor:
        """Semantic codes "b s d h w" -> logits "b k".

        Errors: ConfigError where the codes come from another generator or number of slices.
        """
        return self.head(self.features(semantic))


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(GROUPS, outputs), nn.SiLU())
