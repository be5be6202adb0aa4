"""A fixed encoder that nobody trained: the wavelet scattering transform (Bruna and Mallat 2013).

Realism and identity must be judged by features that neither the generator nor the black box has learnt. These are known
in closed form: averages of |x * psi| and ||x * psi| * psi'| over Morlet wavelets psi, small shifts of the image change
them little, fine noise does.
"""

from __future__ import annotations

import hashlib
import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

SIGMA, CENTRE, SLANT = 0.8, 3 * math.pi / 4, 0.5  # of the finest wavelet: width in pixels, frequency, aspect
FLOOR = 1e-2  # of the intensity range: smaller averages are as good as none


class Scattering(nn.Module):
    """Images "n c h w" in [-1, 1] -> features "n f", the logarithm of first and second order averages.

    scales: J, wavelets of widths 0.8 * 2^j pixels, j < J. angles: L, evenly over half a turn. grid: averages are taken
    over grid x grid parts of the image. f = c * grid^2 * (1 + J L + L^2 J (J - 1) / 2). Images are doubled by their
    mirror images at the edges before they are filtered.
    """

    filters: Tensor

    def __init__(self, scales: int = 3, angles: int = 4, grid: int = 2, size: int = 32) -> None:
        super().__init__()
        self.scales, self.angles, self.grid, self.size = scales, angles, grid, size
        self.register_buffer("filters", morlet_filters(scales, angles, 2 * size))

    @property
    def name(self) -> str:
        """Settings and the first digits of the SHA-256 of the filters, rounded to six decimals."""
        rounded = (self.filters * 1e6).round().to(torch.int64).cpu().numpy()
        digest = hashlib.sha256(rounded.astype("<i8").tobytes()).hexdigest()[:8]
        return f"scattering-J{self.scales}-L{self.angles}-g{self.grid}-{self.size}-{digest}"

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Images of another size than `size` are resized. Features of each image, "n f"."""
        if image.shape[-2:] != (self.size, self.size):
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)
        flat = rearrange((image.float() + 1) / 2, "n c h w -> (n c) 1 h w")
        first = self._modulus(flat)
        second = []
        for coarse in range(1, self.scales):
            finer = first[:, : coarse * self.angles]  # a coarser wavelet of a finer modulus: the rest holds no energy
            kept = slice(coarse * self.angles, (coarse + 1) * self.angles)
            second.append(self._modulus(rearrange(finer, "n k h w -> (n k) 1 h w"), kept))
        found = [flat, first]
        for values in second:
            found.append(rearrange(values, "(n k) l h w -> n (k l) h w", n=len(flat)))
        pooled = F.adaptive_avg_pool2d(torch.cat(found, 1), self.grid)
        return rearrange((pooled + FLOOR).log(), "(n c) f a b -> n (c f a b)", n=len(image))

    def _modulus(self, image: Tensor, kept: slice | None = None) -> Tensor:
        """|x * psi| for every (or some) wavelets, "n 1 h w" -> "n k h w"."""
        filters = self.filters if kept is None else self.filters[kept]
        doubled = torch.cat([image, image.flip(-1)], -1)
        doubled = torch.cat([doubled, doubled.flip(-2)], -2)
        filtered = torch.fft.ifft2(torch.fft.fft2(doubled) * filters)
        return filtered.abs()[..., : self.size, : self.size]


def morlet_filters(scales: int, angles: int, size: int) -> Tensor:
    """Fourier transforms of Morlet wavelets on a periodic grid, real, "(J L) size size"; each is 0 at frequency 0.

    psi^(w) = g(w - xi) - k g(w), g(w) = exp(-|sigma R w|^2 / 2) with R turned and slanted, k so that psi^(0) = 0;
    sigma and xi of scale j are those of the finest one times and over 2^j.
    """
    frequency = torch.fft.fftfreq(size, dtype=torch.float64) * 2 * math.pi
    periods = 2 * math.pi * torch.arange(-2, 3, dtype=torch.float64)
    filters = []
    for scale in range(scales):
        for angle in range(angles):
            turn = math.pi * angle / angles
            total = torch.zeros(size, size, dtype=torch.float64)
            low = torch.zeros_like(total)
            for dy in periods:
                for dx in periods:
                    y, x = torch.meshgrid(frequency + dy, frequency + dx, indexing="ij")
                    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
                    width, centre = SIGMA * 2**scale, CENTRE / 2**scale
                    total += torch.exp(-((width * (along - centre)) ** 2 + (width * across / SLANT) ** 2) / 2)
                    low += torch.exp(-((width * along) ** 2 + (width * across / SLANT) ** 2) / 2)
            filters.append(total - total[0, 0] / low[0, 0] * low)
    return torch.stack(filters).float()
