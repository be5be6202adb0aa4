"""Training the plain autoencoder of paper 003: its loss, how good it is, and the run from scans to a generator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffcf.cards import GeneratorCard
from diffcf.data.dataset import ScanDataset, SliceDataset
from diffcf.data.views import KINDS, Views, view
from diffcf.errors import ConfigError
from diffcf.generators.autoencoder import ConvAutoencoder
from diffcf.generators.generator import save_generator
from diffcf.metrics.images import psnr, ssim
from diffcf.training import loop
from diffcf.training.keyed import Order, turns_for
from diffcf.training.run import Run


class Settings(loop.Pace, Protocol):
    """What a script's Config says of an autoencoder, beside the loop's numbers."""

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of ConvAutoencoder beside the size."""
        ...

    @property
    def loss(self) -> Literal["l1", "l2"]:
        """Between image and reconstruction."""
        ...

    @property
    def views(self) -> Views:
        """What is as likely as the image itself."""
        ...

    @property
    def weight_decay(self) -> float:
        """Of AdamW."""
        ...

    @property
    def ema(self) -> float:
        """Decay of the averaged weights."""
        ...

    @property
    def half(self) -> bool:
        """Store the generator's weights in half precision."""
        ...

    @property
    def val_images(self) -> int:
        """Slices watched."""
        ...


@dataclass(frozen=True)
class AutoencoderStage(loop.Stage):
    """The `Settings` of an autoencoder that is one of several networks of a script."""

    model: dict[str, Any] = field(default_factory=dict)
    loss: Literal["l1", "l2"] = "l2"
    views: Views = "mirror"
    half: bool = False
    val_images: int = 64


class ReconstructionLoss(nn.Module):
    """Mean |x - D(E(x))| or (x - D(E(x)))^2 over images "b c h w"."""

    def __init__(self, model: ConvAutoencoder, norm: Literal["l1", "l2"]) -> None:
        super().__init__()
        self.model, self.norm = model, norm

    def forward(self, image: Tensor) -> Tensor:
        """Scalar."""
        difference = (self.model(image) - image).float()
        return (difference.abs() if self.norm == "l1" else difference.square()).mean()


@torch.no_grad()
def judge(model: ConvAutoencoder, images: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM of the reconstructions of images "n c h w", clamped; means."""
    made = torch.cat([model(part).clamp(-1, 1) for part in images.split(32)])
    return {"psnr": float(psnr(made, images).mean()), "ssim": float(ssim(made, images).mean())}


def fit_autoencoder(
    accelerator: Accelerator,
    train: ScanDataset,
    val: ScanDataset,
    config: Settings,
    card: GeneratorCard,
    out: Path,
    *,
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, float]:
    """Train to `config.steps`, from the newest checkpoint below OUT on; returns the last validation's figures.

    The averaged weights go to OUT/generator at every validation. settings: what must be the same when the run is
    resumed. Errors: ConfigError for arguments that ConvAutoencoder does not take; those of `loop.train`.
    """
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    slices, watched = SliceDataset(train), SliceDataset(val)
    shown = watched.images[:: math.ceil(len(watched) / config.val_images)].to(device)
    torch.manual_seed(seed)
    try:
        model = ConvAutoencoder(image_size=card.preparation.size, **config.model)
    except TypeError as error:
        raise ConfigError(f"model {config.model}: {error}; expected arguments of ConvAutoencoder.") from error
    model.to(device)  # pyright: ignore[reportArgumentType]
    adam = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=config.weight_decay, fused=True)
    run = Run(out / "checkpoints", model, adam, config.ema, dict(settings))
    order = Order(len(slices), config.batch, seed)

    def inputs(step: int) -> tuple[Tensor]:
        positions = order.at(step, rank, world)
        turns = turns_for(slices.indices[positions].tolist(), seed, step, KINDS[config.views])
        return (view(slices.images[positions], turns).to(device),)

    def validate(averaged: ConvAutoencoder, done: int) -> dict[str, float]:
        save_generator(averaged, card, out / "generator", half=config.half)
        return judge(averaged, shown)

    loss = ReconstructionLoss(model, config.loss)
    return loop.train(accelerator, run, loss, config, name="autoencoder", inputs=inputs, validate=validate)
