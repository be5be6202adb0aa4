"""The diffusion autoencoder: a semantic encoder and a conditional denoising UNet, trained together.

Paper 004, section 2.1, after Preechakul et al. 2022. The UNet is diffusers' UNet2DModel; a global code enters every
residual block through its scale and shift, a spatial code is laid over the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.errors import ConfigError
from diffcf.generators.encoder import SemanticEncoder
from diffcf.generators.sampling import Denoiser, Schedule


class DiffusionAutoencoder(ModelMixin, ConfigMixin):
    """Encoder E_phi and denoiser D_theta over images "b c h w" in [-1, 1].

    Args:
        image_size: rows and columns.
        image_channels: c.
        patch: the network works on a grid coarser by this factor, the pixels of a patch as its channels.
        block_channels: UNet width of each level (multiples of `norm_groups`).
        layers_per_block: residual blocks a level.
        attention_levels: how many of the coarsest levels have self-attention.
        code: "global", a vector of `code_dim`; or "spatial", a map with `code_dim` channels.
        code_dim: 512 in the paper.
        encoder_channels: width of each encoder level; for a spatial code their number sets its grid,
            image_size / patch / 2^(levels - 1).
        prediction: what the network predicts, "epsilon" as in the paper, or "v" = alpha eps - sigma x_0.
        schedule: "linear" as in the paper, or "cosine".
        norm_groups: groups of GroupNorm in the UNet.

    Errors: ConfigError where the sizes do not divide, and for a schedule under which the prediction says nothing.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        image_channels: int = 1,
        patch: int = 2,
        block_channels: Sequence[int] = (64, 96, 128),
        layers_per_block: int = 1,
        attention_levels: int = 1,
        code: Literal["global", "spatial"] = "global",
        code_dim: int = 512,
        encoder_channels: Sequence[int] = (48, 64, 96),
        prediction: Literal["epsilon", "v"] = "epsilon",
        schedule: Literal["linear", "cosine"] = "linear",
        norm_groups: int = 16,
    ) -> None:
        super().__init__()
        levels = len(block_channels)
        if image_size % (patch * 2 ** (max(levels, len(encoder_channels)) - 1)):
            raise ConfigError(
                f"image_size {image_size} is not divisible by patch {patch} times 2^(levels - 1) of the {levels}-level "
                f"network and the {len(encoder_channels)}-level encoder; choose another size or fewer levels."
            )
        if code not in ("global", "spatial") or prediction not in ("epsilon", "v"):
            raise ConfigError(f"code {code!r}, prediction {prediction!r}: expected global|spatial and epsilon|v.")
        if prediction == "epsilon" and schedule == "cosine":
            raise ConfigError(
                "schedule cosine with prediction epsilon: at its noisiest level the image is 1 / 20000 of the noise, "
                "and any error of the noise would be that much larger in the image; predict v."
            )
        self.schedule = Schedule(schedule)
        # A plain attribute, not a buffer: model.half() or .to(bf16) must not round the noise levels.
        self._levels = self.schedule.levels(torch.arange(self.schedule.timesteps))
        self.encoder = SemanticEncoder(
            image_size, image_channels, patch, encoder_channels, code_dim, spatial=code == "spatial"
        )
        patched = image_channels * patch**2
        plain, attending = levels - attention_levels, attention_levels
        self.unet = UNet2DModel(
            sample_size=image_size // patch,
            in_channels=patched + (code_dim if code == "spatial" else 0),
            out_channels=patched,
            block_out_channels=tuple(block_channels),
            layers_per_block=layers_per_block,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attending,
            up_block_types=("AttnUpBlock2D",) * attending + ("UpBlock2D",) * plain,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity" if code == "global" else None,
            norm_num_groups=norm_groups,
            attention_head_dim=32,
            add_attention=attention_levels > 0,
        )
        self.project = nn.Linear(code_dim, block_channels[0] * 4) if code == "global" else None

    def encode_semantic(self, image: Tensor) -> Tensor:
        """Image "b c h w" in [-1, 1] -> semantic code, "b d" or "b d h w"."""
        return self.encoder(image)

    def forward(self, x: Tensor, t: Tensor, semantic: Tensor) -> Tensor:
        """What the network predicts (epsilon or v), "b c h w", at noisy images x "b c h w", timesteps t "b"."""
        p = self.config.patch  # pyright: ignore[reportAttributeAccessIssue]
        h = rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=p, q=p)
        if self.project is not None:
            out = self.unet(h, t, class_labels=self.project(semantic)).sample
        else:
            laid = F.interpolate(semantic, size=h.shape[-2:], mode="bilinear", align_corners=False)
            out = self.unet(torch.cat([h, laid], dim=1), t).sample
        return rearrange(out, "b (c p q) h w -> b c (h p) (w q)", p=p, q=p)

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at timesteps t "b", shaped "b 1 1 1" in the dtype and device of `like`."""
        alpha, sigma = (rearrange(v[t.to(v.device)], "b -> b 1 1 1").to(like) for v in self._levels)
        return alpha, sigma

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Whatever moves the weights to a GPU takes the noise levels along: a look at the host's would wait for it."""
        super()._apply(fn, recurse)
        device = self.unet.conv_in.weight.device
        if device.type in ("cpu", "cuda"):  # others may have no double precision
            self._levels = tuple(level.to(device) for level in self._levels)
        return self

    def noise(self, x: Tensor, t: Tensor, semantic: Tensor) -> Tensor:
        """The predicted noise eps, whatever the network predicts."""
        out = self(x, t, semantic)
        if self.config.prediction == "epsilon":  # pyright: ignore[reportAttributeAccessIssue]
            return out
        alpha, sigma = self.levels(t, x)
        return alpha * out + sigma * x

    def denoiser(self, semantic: Tensor) -> Denoiser:
        """(x, t) -> eps at a fixed semantic code, for the samplers."""
        return lambda x, t: self.noise(x, t, semantic)
