"""Training a plain autoencoder: its loss, how good it is, and the run from scans to a generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffcf.cards import GeneratorCard
from diffcf.data.dataset import ScanDataset, SliceDataset
from diffcf.data.views import KINDS, Views, view
from diffcf.errors import ConfigError
from diffcf.generators.autoencoder import NETWORKS, Autoencoder, KLAutoencoder, Network
from diffcf.generators.generator import save_generator
from diffcf.metrics.images import psnr, ssim
from diffcf.training import loop
from diffcf.training.adversarial import Adversarial, Adversary
from diffcf.training.keyed import Order, noise_for, turns_for
from diffcf.training.run import Run


@dataclass(frozen=True, kw_only=True)
class AutoencoderStage(loop.Stage):
    """How an autoencoder is trained.

    Args:
        model: arguments of the network beside the size.
        loss: l1 or l2, between image and reconstruction.
        views: what is as likely as the image itself: none, mirror (left-right), square (all eight turns).
        half: store the generator's weights in half precision.
        val_images: slices watched.
    """

    model: dict[str, Any] = field(default_factory=dict)
    loss: Literal["l1", "l2"] = "l2"
    views: Views = "mirror"
    half: bool = False
    val_images: int = 64


class ReconstructionLoss(nn.Module):
    """Mean |x - D(z)| or (x - D(z))^2 over images "b c h w", and what else there is.

    z is the code of x. Of a `KLAutoencoder` it is a sample from the posterior, and KL(posterior || N(0, 1)), in nats a
    value of the image, is added, times `kl_weight`: latent diffusion's loss (Rombach et al. 2022, appendix G), whose
    sums over an image are means here. adversary: adds its term, and learns.
    """

    def __init__(
        self, model: Autoencoder, norm: Literal["l1", "l2"], kl_weight: float = 0.0, adversary: Adversary | None = None
    ) -> None:
        super().__init__()
        self.model, self.norm, self.kl_weight, self.adversary = model, norm, kl_weight, adversary

    def forward(self, image: Tensor, noise: Tensor | None = None, step: int = 0) -> Tensor:
        """Scalar. noise: white, "b d h w" like the codes, for a `KLAutoencoder`, else None. step: how many are done."""
        nats = image.new_zeros(())
        if isinstance(self.model, KLAutoencoder):
            assert noise is not None
            posterior = self.model.posterior(image)
            made = self.model.decode(posterior.mean + posterior.std * noise)
            nats = posterior.kl().mean() / image[0].numel()
        else:
            made = self.model(image)
        difference = (made - image).float()
        error = (difference.abs() if self.norm == "l1" else difference.square()).mean()
        loss = error + self.kl_weight * nats
        return loss if self.adversary is None else loss + self.adversary(image, made, error, self.model.last, step)


@torch.no_grad()
def judge(model: Autoencoder, images: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM of the reconstructions of images "n c h w", clamped; means."""
    made = torch.cat([model(part).clamp(-1, 1) for part in images.split(32)])
    return {"psnr": float(psnr(made, images).mean()), "ssim": float(ssim(made, images).mean())}


def fit_autoencoder(
    accelerator: Accelerator,
    train: ScanDataset,
    val: ScanDataset,
    config: AutoencoderStage,
    card: GeneratorCard,
    out: Path,
    *,
    seed: int,
    settings: Mapping[str, Any],
    network: Network = "conv",
    kl_weight: float = 0.0,
    adversarial: Adversarial | None = None,
) -> dict[str, float]:
    """Train to `config.steps`, from the newest checkpoint below OUT on; returns the last validation's figures.

    The averaged weights go to OUT/generator at every validation. settings: what must be the same when the run is
    resumed. network: what is trained, by default paper 003's. kl_weight, adversarial: see `ReconstructionLoss`.

    Errors: ConfigError for arguments that the network does not take, and for a discriminator that the images
    are too small for; those of `loop.train`.
    """
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    slices, watched = SliceDataset(train), SliceDataset(val)
    shown = watched.images[:: math.ceil(len(watched) / config.val_images)].to(device)
    torch.manual_seed(seed)
    kind, size, adversary = NETWORKS[network], card.preparation.size, None
    try:
        model = kind(image_size=size, **config.model)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model {config.model}: {error}; expected arguments of {kind.__name__}.") from error
    model.to(device)  # pyright: ignore[reportArgumentType]
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "weight_decay": config.weight_decay}]
    if adversarial is not None:
        mean = cast(Callable[[Tensor], Tensor], partial(accelerator.reduce, reduction="mean"))
        adversary = Adversary(adversarial, size, shown.shape[1], mean).to(device)
        groups.append(adversary.group())
    adam = torch.optim.AdamW(groups, lr=0.0, fused=True)
    run = Run(out / "checkpoints", model, adam, config.ema, dict(settings), adversary)
    order = Order(len(slices), config.batch, seed)

    def inputs(step: int) -> tuple[Tensor, Tensor | None, int]:
        positions = order.at(step, rank, world)
        keys = slices.indices[positions].tolist()
        image = view(slices.images[positions], turns_for(keys, seed, step, KINDS[config.views])).to(device)
        sampled = isinstance(model, KLAutoencoder)
        noise = noise_for(keys, model.code_shape, seed, step).to(device) if sampled else None
        return image, noise, step

    def validate(averaged: Autoencoder, done: int) -> dict[str, float]:
        save_generator(averaged, card, out / "generator", half=config.half)
        return judge(averaged, shown) | ({} if adversary is None else adversary.figures())

    loss = ReconstructionLoss(model, config.loss, kl_weight, adversary)
    return loop.train(accelerator, run, loss, config, name="autoencoder", inputs=inputs, validate=validate)
