"""How alike two images are: PSNR and SSIM of images in [-1, 1], one figure an image.

Thin over torchmetrics, with the settings of Wang et al. 2004 (11 x 11 Gaussian window, sigma 1.5, k1 0.01, k2 0.03).
"""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor

from diffcf.errors import ConfigError

SSIM_WINDOW = 11


def psnr(image: Tensor, reference: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / mean squared difference).

    image, reference: "... c h w", same shape; the mean runs over c, h and w. Returns "...", infinite for equal images.
    Errors: ConfigError for different shapes.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    flat, other = _flat(image, reference)
    figures = peak_signal_noise_ratio(flat, other, data_range=data_range, reduction="none", dim=(1, 2, 3))
    return figures.reshape(image.shape[:-3])


def ssim(image: Tensor, reference: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity, 1 for equal images; the mean over channels and over windows that lie inside the image.

    image, reference: "... c h w", same shape, h and w at least 11. Returns "...".
    Errors: ConfigError for different shapes and for images smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    flat, other = _flat(image, reference)
    if min(flat.shape[-2:]) < SSIM_WINDOW:
        raise ConfigError(f"SSIM needs images of at least {SSIM_WINDOW} pixels a side, {tuple(flat.shape[-2:])} came.")
    _, everywhere = structural_similarity_index_measure(
        flat, other, data_range=data_range, reduction="none", return_full_image=True
    )
    edge = SSIM_WINDOW // 2  # torchmetrics pads; windows that see padding are left out, as in the original
    inside = everywhere[..., edge : flat.shape[-2] - edge, edge : flat.shape[-1] - edge]
    return reduce(inside, "b c h w -> b", "mean").reshape(image.shape[:-3])


def mean_absolute_difference(image: Tensor, reference: Tensor) -> Tensor:
    """Mean |image - reference| over c, h and w: "... c h w" -> "...", in the images' unit."""
    flat, other = _flat(image, reference)
    return reduce((flat - other).abs(), "b c h w -> b", "mean").reshape(image.shape[:-3])


def _flat(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != reference.shape or image.ndim < 3:
        raise ConfigError(
            f"images of shape {tuple(image.shape)} and {tuple(reference.shape)}: expected two of the same shape, "
            "(..., channels, rows, columns)."
        )
    if image.ndim == 3:
        image, reference = image[None], reference[None]
    flat, other = (rearrange(x, "... c h w -> (...) c h w") for x in (image, reference))
    return flat.to(torch.promote_types(flat.dtype, torch.float32)), other.to(flat.dtype)
