"""What attributes are learnt from: rated scans, and the loss of a flow over their codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.cards import Preparation
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.errors import ConfigError
from diffcf.generators.attribute_flow import FlowNetwork


def rated_scans(
    manifest: Manifest, preparation: Preparation, names: Sequence[str], split: str
) -> tuple[Tensor, Tensor]:
    """The scans "n s c h w" of a split that have all attributes rated, and their values "n k" in their own units.

    Errors: ConfigError for an attribute that no manifest has, and where no scan has all of them.
    """
    scans = ScanDataset(manifest, preparation, split=split)
    missing = [name for name in names if name not in scans.attribute_names]
    if missing:
        raise ConfigError(
            f"attribute(s) {', '.join(missing)} are in no manifest; there are {', '.join(scans.attribute_names)}."
        )
    values = scans.attributes[:, [scans.attribute_names.index(name) for name in names]]
    known = ~values.isnan().any(1)
    if not bool(known.any()):
        raise ConfigError(f"no scan of the split {split!r} has all of {', '.join(names)} rated.")
    return scans.images[known], values[known]


class FlowLoss(nn.Module):
    """E || velocity(x_t, t, a) - (z - u) ||^2 + E || reader(z') - a ||^2, x_t = (1 - t) u + t z.

    z are standardised codes, z' those of another view of the same scan, u is white noise (rectified flow; Liu et al.
    2023, Eq. 1). The flow learns scans as they are, the reader what stays the same in all views. Both have weights of
    their own, so that neither disturbs the other.
    """

    def __init__(self, network: FlowNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, codes: Tensor, views: Tensor, amounts: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """Scalar over codes, and those of other views, "b d h w", amounts "b k", times "b" in [0, 1], and noise."""
        read = self.network.reader(self.network.plain(views))
        return self.of_the_velocity(codes, amounts, time, noise) + F.mse_loss(read, amounts)

    def of_the_velocity(self, codes: Tensor, amounts: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """The first part alone."""
        plain = self.network.plain(codes)
        x = torch.lerp(noise, plain, time[:, None, None, None])
        return F.mse_loss(self.network(x, time, amounts), plain - noise)


@torch.no_grad()
def judge_flow(network: FlowNetwork, codes: Tensor, amounts: Tensor, batch: int = 64) -> dict[str, float]:
    """Over held-out codes "n d h w" with amounts "n k": `velocity`, its error, and `told`, how much larger the error is
    with the amounts of another scan."""
    random = torch.Generator().manual_seed(0)
    time = torch.rand(len(codes), generator=random).to(codes)
    noise = torch.randn(codes.shape, generator=random).to(codes)
    loss, wrong = FlowLoss(network), amounts.roll(1, 0)

    def error(given: Tensor) -> float:
        parts = zip(*(each.split(batch) for each in (codes, given, time, noise)), strict=True)
        return sum(float(loss.of_the_velocity(*part)) * len(part[0]) for part in parts) / len(codes)

    own = error(amounts)
    return {"velocity": own, "told": error(wrong) - own}


@torch.no_grad()
def read_by(network: FlowNetwork, codes: Tensor, amounts: Tensor, batch: int = 64) -> list[float]:
    """R^2 of the reader on codes "n d h w", attribute by attribute."""
    read = torch.cat([network.reader(network.plain(part)) for part in codes.split(batch)])
    return (1 - (read - amounts).square().mean(0) / amounts.var(0, unbiased=False)).tolist()
