"""Does it look like a real image? Distances between two sets of features, and the patches that are compared.

Counterfactuals are judged in split form: those of one half of the patients against real images of the other half, since
a counterfactual keeps most of its own factual image and would be near it whatever it did (Jeanneret et al. 2022).
"""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from diffcf.errors import ConfigError

SHRINKAGE = 0.1  # of a covariance from few images towards its diagonal


def kernel_distance(features: Tensor, real: Tensor) -> float:
    """KID: the unbiased squared maximum mean discrepancy with k(x, y) = (x . y / d + 1)^3 (Binkowski et al. 2018).

    features: "n d", real: "m d", from one encoder. 0 on average for two samples of one distribution, so that single
    values may be negative. Errors: ConfigError for fewer than two on a side, or different d.
    """
    if features.ndim != 2 or real.ndim != 2 or features.shape[1] != real.shape[1] or min(len(features), len(real)) < 2:
        raise ConfigError(
            f"features of shape {tuple(features.shape)} and {tuple(real.shape)}: expected (n, d) and (m, d), n, m >= 2."
        )
    x, y = features.double(), real.double()

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T / left.shape[1] + 1) ** 3

    own = [(gram.sum() - gram.trace()) / (len(gram) * (len(gram) - 1)) for gram in (kernel(x, x), kernel(y, y))]
    return float(own[0] + own[1] - 2 * kernel(x, y).mean())


def frechet_distance(features: Tensor, real: Tensor, shrinkage: float = SHRINKAGE) -> float:
    """|mu - nu|^2 + tr(S + T - 2 (S T)^(1/2)), of Gaussians fitted to features "n d" and "m d" (Heusel et al. 2017).

    shrinkage: covariances move by this share towards their diagonal, since fewer images than features leave them
    singular. The figure is biased upwards for few images and is compared between sets of equal size only.
    Errors: as `kernel_distance`.
    """
    if features.ndim != 2 or real.ndim != 2 or features.shape[1] != real.shape[1] or min(len(features), len(real)) < 2:
        raise ConfigError(
            f"features of shape {tuple(features.shape)} and {tuple(real.shape)}: expected (n, d) and (m, d), n, m >= 2."
        )
    (mu, s), (nu, t) = (_gaussian(values.double(), shrinkage) for values in (features, real))
    # tr (S T)^(1/2) from the eigenvalues of S^(1/2) T S^(1/2), which is symmetric.
    values, vectors = torch.linalg.eigh(s)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ t @ root).clamp(min=0).sqrt().sum()
    return float((mu - nu).square().sum() + s.trace() + t.trace() - 2 * cross)


def _gaussian(values: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    covariance = torch.atleast_2d(torch.cov(values.T))
    diagonal = torch.diag(covariance.diagonal())
    return values.mean(0), (1 - shrinkage) * covariance + shrinkage * diagonal


def patches_at(image: Tensor, change: Tensor, side: int = 32) -> Tensor:
    """A square patch of every image around the middle of its change, "n s c h w" -> "n c side side".

    The slice that changes most, around the centre of mass of |change| there, moved into the image where it would stick
    out; without a change the middle of the image. Images smaller than `side` are taken whole.
    """
    found = []
    for one, moved in zip(image, change.abs(), strict=True):
        mass = reduce(moved, "s c h w -> s h w", "sum")
        z = int(reduce(mass, "s h w -> s", "sum").argmax())
        rows, columns = mass.shape[1:]
        total = mass[z].sum()
        y, x = rows / 2 - 0.5, columns / 2 - 0.5
        if float(total) > 0:
            y = float((mass[z].sum(1) * torch.arange(rows).to(mass)).sum() / total)
            x = float((mass[z].sum(0) * torch.arange(columns).to(mass)).sum() / total)
        height, width = min(side, rows), min(side, columns)
        top = min(max(round(y - (height - 1) / 2), 0), rows - height)
        left = min(max(round(x - (width - 1) / 2), 0), columns - width)
        found.append(one[z, :, top : top + height, left : left + width])
    return torch.stack(found)


def split_distances(features: Tensor, real: Tensor, half: Tensor) -> float:
    """KID in split form: features of one half against real features of the other, and the other way, averaged.

    features, real: "n d" of the same n cases. half: bool "n", by patient.
    """
    ways = [kernel_distance(features[half], real[~half]), kernel_distance(features[~half], real[half])]
    return sum(ways) / 2


class KernelDistance(Metric):
    """`kernel_distance` as a torchmetrics metric: update(features "n d", real=False)."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("made", "real"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Add features of made or of real images."""
        (self.real if real else self.made).append(features)  # type: ignore[union-attr]

    def compute(self) -> Tensor:
        """The distance between all features so far."""
        return torch.tensor(kernel_distance(dim_zero_cat(self.made), dim_zero_cat(self.real)))  # type: ignore[arg-type]
