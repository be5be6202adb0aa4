"""The loss of the diffusion autoencoder, and how good its reconstructions are while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from diffcf.cards import GeneratorCard
from diffcf.data.views import KINDS, Views, view
from diffcf.errors import ConfigError
from diffcf.generators.diffae import DiffusionAutoencoder
from diffcf.generators.generator import DiffusionGenerator
from diffcf.metrics.images import psnr, ssim
from diffcf.training.keyed import noise_for, timesteps_for, turns_for
from diffcf.types import Code


class DiffusionLoss(nn.Module):
    """E || target - D_theta(x_t, t, E_phi(x_0)) ||, encoder and denoiser together (paper 004, section 2.1).

    The target is eps where the network predicts epsilon, as in the paper, and alpha_t eps - sigma_t x_0 where it
    predicts v. norm: "l1", the paper's, or "l2". min_snr: weigh timesteps by `min_snr_weight` with this gamma; None
    weighs all alike.

    Errors: ConfigError for min_snr with l1, of whose errors it is no weight, or not above 0.
    """

    def __init__(
        self, model: DiffusionAutoencoder, norm: Literal["l1", "l2"] = "l1", min_snr: float | None = None
    ) -> None:
        super().__init__()
        if min_snr is not None and (norm != "l2" or min_snr <= 0):
            raise ConfigError(f"min_snr {min_snr} with loss {norm!r}: expected a gamma above 0, with l2; or null.")
        self.model = model
        self.norm = norm
        self.min_snr = min_snr

    def forward(self, image: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Scalar: the mean over images "b c h w" in [-1, 1] at timesteps t "b" with noise like the images."""
        alpha, sigma = self.model.levels(t, image)
        noisy = alpha * image + sigma * noise
        config: Any = self.model.config
        target = noise if config.prediction == "epsilon" else alpha * noise - sigma * image
        difference = (self.model(noisy, t, self.model.encode_semantic(image)) - target).float()
        error = difference.abs() if self.norm == "l1" else difference.square()
        if self.min_snr is not None:
            error = error * min_snr_weight(alpha, sigma, self.min_snr, config.prediction)
        return error.mean()


def min_snr_weight(alpha: Tensor, sigma: Tensor, gamma: float, prediction: Literal["epsilon", "v"]) -> Tensor:
    """Weight of squared errors at noise levels of any shape (Hang et al. 2023, section 3.4), for snr = alpha^2/sigma^2.

    Of x_0 it is min(snr, gamma); an error of epsilon is snr times, one of v snr + 1 times as large as one of x_0, so
    of these it is min(snr, gamma) / snr = min(1, gamma sigma^2 / alpha^2) and min(snr, gamma) / (snr + 1) =
    min(alpha^2, gamma sigma^2), as alpha^2 + sigma^2 = 1.
    """
    if prediction == "epsilon":
        return (gamma * (sigma / alpha).square()).clamp(max=1)
    return torch.minimum(alpha.square(), gamma * sigma.square())


def drawn(
    image: Tensor, keys: Sequence[int], views: Views, timesteps: int, seed: int, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `DiffusionLoss` takes, at a step 0, 1, ... of a run: some view of the slices "b c h w" whose keys (their
    `SliceDataset.indices`) are "b", a timestep of each below `timesteps`, and noise."""
    image = view(image, turns_for(keys, seed, step, KINDS[views]))
    return image, timesteps_for(keys, timesteps, seed, step), noise_for(keys, image.shape[1:], seed, step)


@dataclass(frozen=True)
class Reconstruction:
    """What a generator makes of images: `image` from the inverted x_T, `random` from a fresh one, both clamped."""

    image: Tensor
    random: Tensor
    figures: dict[str, float]


@torch.no_grad()
def judge_reconstruction(
    model: DiffusionAutoencoder, card: GeneratorCard, images: Tensor, *, batch: int = 32, seed: int = 0
) -> Reconstruction:
    """Reconstruct images "n c h w" with the card's sampling; PSNR in dB and SSIM, means over the images.

    `psnr`, `ssim`: from the inverted x_T. `psnr_random`, `ssim_random`: what the semantic code alone holds.
    """
    generator = DiffusionGenerator(model, card)
    parts, random = [], []
    for part in images.split(batch):
        code = generator.encode(part)
        fresh = generator.fresh_stochastic(code.semantic, seed)
        parts.append(generator.decode(code).clamp(-1, 1))
        random.append(generator.decode(Code(code.semantic, fresh)).clamp(-1, 1))
    made, drawn = torch.cat(parts), torch.cat(random)
    figures = {
        "psnr": float(psnr(made, images).mean()),
        "ssim": float(ssim(made, images).mean()),
        "psnr_random": float(psnr(drawn, images).mean()),
        "ssim_random": float(ssim(drawn, images).mean()),
    }
    return Reconstruction(made, drawn, figures)


def picture_grid(images: Tensor, reconstruction: Reconstruction, columns: int = 8) -> Tensor:
    """Rows of images, their reconstructions and those from a random x_T, as one picture "c h w" in [0, 1]."""
    rows = [images[:columns], reconstruction.image[:columns], reconstruction.random[:columns]]
    grid = rearrange(torch.stack(rows), "r n c h w -> c (r h) (n w)")
    return grid / 2 + 0.5
