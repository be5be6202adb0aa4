"""Plain autoencoders, paper 003's and latent diffusion's: no sampling, one evaluation from code to image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.cards import GeneratorCard
from diffcf.errors import ConfigError
from diffcf.generators.encoder import ResidualBlock, SemanticEncoder
from diffcf.types import Code


class ConvAutoencoder(ModelMixin, ConfigMixin):
    """E and D of paper 003, section 3.2 and appendix: residual blocks of 3 x 3 filters, three each way, no bottleneck.

    The paper gives no more; here every block after the first works on half the grid. "No bottleneck" is read as: the
    code, a map with `code_dim` channels, holds no fewer numbers than the image.

    Args:
        image_size: rows and columns.
        image_channels: c.
        channels: width of each block of the encoder; the decoder's are the same from the other end.
        code_dim: channels of the code; the default makes it as large as a grey image.

    Errors: ConfigError where the sizes do not divide.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        image_channels: int = 1,
        channels: Sequence[int] = (32, 48, 64),
        code_dim: int = 16,
    ) -> None:
        super().__init__()
        _check_halvings(image_size, channels)
        self.encoder = SemanticEncoder(image_size, image_channels, 1, channels, code_dim, spatial=True)
        widths = tuple(reversed(tuple(channels)))
        self.stem = nn.Conv2d(code_dim, widths[0], 1)
        blocks: list[nn.Module] = [ResidualBlock(widths[0], widths[0])]
        for before, after in itertools.pairwise(widths):
            blocks += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1), ResidualBlock(after, after)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(8, widths[-1])
        self.head = nn.Conv2d(widths[-1], image_channels, 3, padding=1)

    def encode_semantic(self, image: Tensor) -> Tensor:
        """Image "b c h w" in [-1, 1] -> code "b d h/f w/f"."""
        return self.encoder(image)

    def decode(self, semantic: Tensor) -> Tensor:
        """Code "b d h/f w/f" -> image "b c h w"; not clamped."""
        return self.head(F.silu(self.norm(self.blocks(self.stem(semantic)))))

    def forward(self, image: Tensor) -> Tensor:
        """D(E(image)), "b c h w"."""
        return self.decode(self.encode_semantic(image))

    @property
    def last(self) -> Tensor:
        """The weights of the layer that makes the image."""
        return self.head.weight


class KLAutoencoder(ModelMixin, ConfigMixin):
    """The autoencoder of latent diffusion (Rombach et al. 2022, section 3.1), diffusers' `AutoencoderKL`, in our words.

    It encodes an image as a normal distribution of codes, whose mean is the code; training decodes a sample of it.

    Args:
        image_size: rows and columns.
        image_channels: c.
        channels: width of each level; every level but the last halves the grid. In eights.
        code_dim: channels of the code.
        blocks: residual blocks of each level of the encoder; the decoder has one more.
        attention: self-attention on the coarsest grid.

    Errors: ConfigError where the sizes do not divide.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        image_channels: int = 1,
        channels: Sequence[int] = (24, 32, 40),
        code_dim: int = 8,
        blocks: int = 1,
        attention: bool = True,
    ) -> None:
        super().__init__()
        _check_halvings(image_size, channels)
        levels: Any = {
            "down_block_types": ("DownEncoderBlock2D",) * len(channels),
            "up_block_types": ("UpDecoderBlock2D",) * len(channels),
            "block_out_channels": tuple(channels),
        }
        self.network = AutoencoderKL(
            in_channels=image_channels,
            out_channels=image_channels,
            layers_per_block=blocks,
            latent_channels=code_dim,
            norm_num_groups=8,
            sample_size=image_size,
            mid_block_add_attention=attention,
            **levels,
        )
        # Fused attention has no second derivative, which a search that is differentiated itself may ask for.
        self.network.set_attn_processor(AttnProcessor())
        grid = image_size // 2 ** (len(channels) - 1)
        self.code_shape = (code_dim, grid, grid)

    def posterior(self, image: Tensor) -> DiagonalGaussianDistribution:
        """Image "b c h w" in [-1, 1] -> the distribution of its codes, with `mean` and `std` "b d h/f w/f"."""
        return self.network.encode(image, return_dict=False)[0]

    def encode_semantic(self, image: Tensor) -> Tensor:
        """Image "b c h w" in [-1, 1] -> code "b d h/f w/f"."""
        return self.posterior(image).mean

    def decode(self, semantic: Tensor) -> Tensor:
        """Code "b d h/f w/f" -> image "b c h w"; not clamped."""
        decoded: Any = self.network.decode(semantic, return_dict=False)  # pyright: ignore[reportArgumentType]
        return decoded[0]

    def forward(self, image: Tensor) -> Tensor:
        """D(E(image)), "b c h w"."""
        return self.decode(self.encode_semantic(image))

    @property
    def last(self) -> Tensor:
        """The weights of the layer that makes the image."""
        return self.network.decoder.conv_out.weight


Network = Literal["conv", "kl"]
Autoencoder = ConvAutoencoder | KLAutoencoder
NETWORKS: dict[Network, type[ConvAutoencoder] | type[KLAutoencoder]] = {"conv": ConvAutoencoder, "kl": KLAutoencoder}


def _check_halvings(image_size: int, channels: Sequence[int]) -> None:
    if image_size % 2 ** (len(channels) - 1):
        raise ConfigError(
            f"image_size {image_size} is not divisible by 2^{len(channels) - 1}, which {len(channels)} blocks "
            "halve it by; choose another size or fewer blocks."
        )


class AutoencoderGenerator(nn.Module):
    """A `Generator` over single slices "b c h w" whose codes have no x_T.

    `forwards` counts evaluations of the decoder per image; reading a code is none of them, as in `DiffusionGenerator`.
    The weights are frozen; `decode` is differentiable in the code's `semantic`, and is its own preview.
    """

    spatial = True
    sampling = None  # there is nothing to sample

    def __init__(self, model: Autoencoder, card: GeneratorCard) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.card = card
        self.forwards = 0

    def encode_semantic(self, image: Tensor) -> Tensor:
        """Image "b c h w" in [-1, 1] -> code "b d h w"."""
        return self.model.encode_semantic(image)

    def encode(self, image: Tensor) -> Code:
        """Image "b c h w" in [-1, 1] -> code without x_T."""
        return Code(self.encode_semantic(image))

    def decode(self, code: Code) -> Tensor:
        """Code -> image "b c h w"; not clamped."""
        self.forwards += 1
        return self.model.decode(code.semantic)

    def preview(self, code: Code) -> Tensor:
        """The decode: it is one evaluation already."""
        return self.decode(code)

    def purified(self, image: Tensor, seed: int, noise: float = 0.25) -> Tensor:
        """Refused: without noise nothing is taken out of an image."""
        raise ConfigError("a plain autoencoder cannot purify images; name a diffusion autoencoder as the purifier.")
