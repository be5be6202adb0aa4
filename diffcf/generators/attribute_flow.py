"""What attributes do to each scan's own code, learnt: a flow from noise to codes that is told the attributes.

A direction adds the same map to every code: the texture of an average nodule, whatever the size and the place of this
one. The flow is a causal model of codes instead, of the kind of Pawlowski et al. 2020 ("Deep structural causal models
for tractable counterfactual inference"), with a rectified flow (Liu et al. 2023) as its mechanism.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from einops import rearrange, repeat
from torch import Tensor, nn

from diffcf.cards import AttributesCard, read_card, write_card
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.attributes import WEIGHTS, AttributeDirections, AttributeModel
from diffcf.generators.encoder import SemanticEncoder
from diffcf.weights import MODEL_WEIGHTS, read_tensors, write_tensors

CONFIG = "config.json"
TIMES = 1000.0  # what the network's embedding of time, made for timesteps, is given for 1


class FlowNetwork(ModelMixin, ConfigMixin):
    """Velocity and reader over maps of codes "b d h w", both of codes standardised by `middle` and `spread`.

    Args:
        attributes: k.
        code_size: rows and columns of a map.
        code_dim: d.
        channels: width of each level of the velocity's UNet (multiples of `norm_groups`).
        reader_channels: width of each level of the reader (multiples of 8).
        steps: of the integration, each of two evaluations.
        norm_groups: of the UNet.

    Errors: ConfigError where the size does not divide.
    """

    @register_to_config
    def __init__(
        self,
        attributes: int,
        code_size: int = 16,
        code_dim: int = 8,
        channels: Sequence[int] = (32, 64, 64),
        reader_channels: Sequence[int] = (32, 64, 128),
        steps: int = 8,
        norm_groups: int = 8,
    ) -> None:
        super().__init__()
        levels = max(len(channels), len(reader_channels))
        if code_size % 2 ** (levels - 1) or steps < 1:
            raise ConfigError(
                f"codes of {code_size} x {code_size} over {levels} levels of channels, {steps} steps: expected a size "
                "that halves so often (name fewer channels), and 1 step or more."
            )
        self.unet = UNet2DModel(
            sample_size=code_size,
            in_channels=2 * code_dim,
            out_channels=code_dim,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
            norm_num_groups=norm_groups,
            add_attention=False,
        )
        width = channels[0] * 4
        self.project = nn.Sequential(nn.Linear(attributes, width), nn.SiLU(), nn.Linear(width, width))
        # Convolutions do not know where they are: what scans with these attributes have at each place is laid beside x.
        self.places = nn.Sequential(nn.SiLU(), nn.Linear(width, code_dim * code_size**2))
        self.reader = SemanticEncoder(code_size, code_dim, 1, reader_channels, attributes, spatial=False)
        self.register_buffer("middle", torch.zeros(code_dim, 1, 1))
        self.register_buffer("spread", torch.ones(code_dim, 1, 1))

    def standardise(self, codes: Tensor) -> None:
        """Take the mean and the spread of every channel from codes "n d h w"."""
        self.middle.copy_(rearrange(codes.mean((0, 2, 3)), "d -> d 1 1"))  # type: ignore[operator]
        self.spread.copy_(rearrange(codes.std((0, 2, 3)).clamp(min=1e-6), "d -> d 1 1"))  # type: ignore[operator]

    def plain(self, codes: Tensor) -> Tensor:
        """Codes "b d h w" standardised."""
        return (codes - self.middle) / self.spread  # type: ignore[operator]

    def forward(self, x: Tensor, time: Tensor, amounts: Tensor) -> Tensor:
        """Velocity at standardised x "b d h w" and times "b" from 0 (noise) to 1 (codes), for amounts "b k"."""
        told = self.project(amounts)
        places = rearrange(self.places(told), "b (d h w) -> b d h w", h=x.shape[-2], w=x.shape[-1])
        return self.unet(torch.cat([x, places], 1), TIMES * time, told).sample

    def moved(self, x: Tensor, amounts: Tensor, *, back: bool = False) -> Tensor:
        """From noise to standardised codes, or back: dx = velocity dt over equal steps of the midpoint rule."""
        steps = cast(Any, self.config).steps
        times = torch.linspace(0, 1, steps + 1).tolist()
        for start, end in itertools.pairwise(times[::-1] if back else times):
            at, half = torch.full((len(x),), start).to(x), (end - start) / 2
            middle = x + half * self(x, at, amounts)
            x = x + 2 * half * self(middle, at + half, amounts)
        return x


class AttributeFlow(nn.Module):
    """An `AttributeModel`: abduction integrates the flow back to noise under the scan's own amounts, prediction
    integrates that noise forth under others.

    F(u, a) is the code that the flow makes of noise u under amounts a. A scan's code is z = F(u, a0) + r, with u what
    integrating back gives and r what rounding and steps leave, which is kept: z' = F(u, a') + r. Over several slices
    all have the scan's amounts; what is read of them is averaged.
    """

    def __init__(self, network: FlowNetwork, card: AttributesCard) -> None:
        super().__init__()
        self.network, self.card = network, card

    def read(self, semantic: Tensor) -> Tensor:
        """Amounts "b k" of codes "b s d h w", in spreads."""
        flat = rearrange(self._maps(semantic), "b s d h w -> (b s) d h w")
        return rearrange(self.network.reader(self.network.plain(flat)), "(b s) k -> b s k", b=len(semantic)).mean(1)

    def abduct(self, semantic: Tensor, amounts: Tensor) -> Tensor:
        """Noise and rest of codes "b s d h w": "b 2 s d h w"."""
        flat = rearrange(self._maps(semantic), "b s d h w -> (b s) d h w")
        every = repeat(amounts, "b k -> (b s) k", s=semantic.shape[1])
        noise = self.network.moved(self.network.plain(flat), every, back=True)
        rest = flat - self._codes(noise, every)
        return rearrange([noise, rest], "two (b s) d h w -> b two s d h w", b=len(semantic))

    def predict(self, held: Tensor, amounts: Tensor) -> Tensor:
        """Codes "b s d h w" of what `abduct` held, with amounts "b k"."""
        noise, rest = rearrange(held, "b two s d h w -> two (b s) d h w")
        every = repeat(amounts, "b k -> (b s) k", s=held.shape[2])
        return rearrange(self._codes(noise, every) + rest, "(b s) d h w -> b s d h w", b=len(held))

    def _codes(self, noise: Tensor, amounts: Tensor) -> Tensor:
        return self.network.moved(noise, amounts) * self.network.spread + self.network.middle  # type: ignore[operator]

    def _maps(self, semantic: Tensor) -> Tensor:
        config: Any = self.network.config
        expected = (config.code_dim, config.code_size, config.code_size)
        if semantic.ndim != 5 or semantic.shape[2:] != expected:
            raise ConfigError(
                f"codes of shape {tuple(semantic.shape)}; expected {('b', 's', *expected)}, maps of the generator that "
                "the flow was trained over."
            )
        return semantic

    def save(self, folder: Path) -> None:
        """Write config.json, safetensors weights and card.yaml."""
        write_tensors(self.network.state_dict(), folder / MODEL_WEIGHTS)
        self.network.save_config(folder)
        write_card(self.card, folder)

    @classmethod
    def load(cls, folder: str | Path) -> AttributeFlow:
        """Read what `save` wrote; frozen. Errors: CheckpointError where there is nothing of the kind."""
        folder = Path(folder)
        card = read_card(AttributesCard, folder)
        try:
            config = cast(dict[str, Any], FlowNetwork.load_config(folder, local_files_only=True))
            network = cast(FlowNetwork, FlowNetwork.from_config(config))
            network.load_state_dict(read_tensors(folder / MODEL_WEIGHTS))
        except (OSError, ValueError, TypeError, RuntimeError, ConfigError) as error:
            raise CheckpointError(f"{folder} holds no readable flow of attributes: {error}") from error
        return cls(network, card).eval().requires_grad_(False)


def load_attributes(folder: str | Path) -> AttributeModel:
    """What train/attributes.py or train/attribute_flow.py wrote.

    Errors: CheckpointError where the folder holds neither, or both.
    """
    folder = Path(folder)
    kinds = [
        kind for kind, name in ((AttributeDirections, WEIGHTS), (AttributeFlow, CONFIG)) if (folder / name).is_file()
    ]
    if len(kinds) > 1:
        raise CheckpointError(f"{folder} holds both directions and a flow; give each a folder of its own.")
    return (kinds or [AttributeDirections])[0].load(folder)
