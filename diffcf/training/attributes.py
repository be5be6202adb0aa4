"""What attributes are learnt from: rated scans, and the loss of a flow over their codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor, nn
from torch.func import functional_call
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


@dataclass(frozen=True)
class Effects:
    """The last part of a training: what other amounts do to a scan is held to what is read of it.

    share: of the steps; 0 leaves it out. batch: scans of a process's step, the first of its batch. weight: of the term.

    Errors: ConfigError for a share outside [0, 1], and a batch below 1.
    """

    share: float = 0.0
    batch: int = 16
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.batch < 1:
            raise ConfigError(f"{self}: expected a share of the steps between 0 and 1, and at least one scan.")


class FlowLoss(nn.Module):
    """E || velocity(x_t, t, a) - (z - u) ||^2 + E || r(z') - a ||^2, x_t = (1 - t) u + t z; in the last part also
    weight * E || r(F(F^-1(z, a), a*)) - r(z) - s (a* - a) ||^2.

    z are standardised codes, z' those of another view of the same scan, u is white noise (rectified flow; Liu et al.
    2023, Eq. 1). The flow learns scans as they are, the reader r what stays the same in all views.

    A velocity that hardly listens to the amounts has nearly the same error. The last term makes it listen: a scan
    decoded under other amounts a* is read as changed by as much, in those attributes and no others (after Ribeiro et
    al. 2023, "High fidelity image counterfactuals with probabilistic causal models"). A reader that is not sure stays
    near the mean, by its slope s over the batch. The term does not move the reader.
    """

    def __init__(self, network: FlowNetwork, weight: float = 1.0) -> None:
        super().__init__()
        self.network, self.weight = network, weight

    def forward(
        self, codes: Tensor, views: Tensor, amounts: Tensor, time: Tensor, noise: Tensor, other: Tensor | None = None
    ) -> Tensor:
        """Scalar over codes, and those of other views, "b d h w", amounts "b k", times "b" in [0, 1], and noise.

        other: "e k", amounts under which the first e codes are decoded; none before the last part.
        """
        read = self.network.reader(self.network.plain(views))
        value = self.of_the_velocity(codes, amounts, time, noise) + F.mse_loss(read, amounts)
        if other is None or not len(other):
            return value
        first = slice(len(other))
        return value + self.weight * self.of_effects(codes[first], amounts[first], other, slopes(amounts, read))

    def of_the_velocity(self, codes: Tensor, amounts: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """The first part alone."""
        plain = self.network.plain(codes)
        x = torch.lerp(noise, plain, time[:, None, None, None])
        return F.mse_loss(self.network(x, time, amounts), plain - noise)

    def of_effects(self, codes: Tensor, amounts: Tensor, other: Tensor, slope: Tensor) -> Tensor:
        """The last part alone; slope: "k"."""
        plain, still = self.network.plain(codes), {k: v.detach() for k, v in self.network.reader.named_parameters()}
        with torch.no_grad():
            held, own = self.network.moved(plain, amounts, back=True), self.network.reader(plain)
        read = functional_call(self.network.reader, still, self.network.moved(held, other))
        return F.mse_loss(read - own, slope * (other - amounts))


def slopes(amounts: Tensor, read: Tensor) -> Tensor:
    """How much more is read, "k", of one spread more of each attribute with the others held, from 0 to 1: the diagonal
    of the least squares from amounts to what is read, both "b k", over several times k rows."""
    known = F.pad(amounts, (0, 1), value=1.0).double().cpu()  # elsewhere it takes full rank for granted
    found = torch.linalg.lstsq(known, read.detach().double().cpu()).solution
    return found.diagonal().clamp(0, 1).to(read)


def one_changed(amounts: Tensor, whole: Tensor, random: torch.Generator) -> Tensor:
    """Amounts "e k" with one attribute of each, drawn, as it is of another scan, drawn from `whole` "n k"."""
    which = torch.randint(amounts.shape[1], (len(amounts),), generator=random)
    scan = torch.randint(len(whole), (len(amounts),), generator=random)
    changed, rows = amounts.clone(), torch.arange(len(amounts))
    changed[rows, which] = whole[scan, which]
    return changed


@torch.no_grad()
def judge_flow(
    network: FlowNetwork, codes: Tensor, amounts: Tensor, slices: int = 1, batch: int = 64
) -> dict[str, float]:
    """Over held-out codes "(n s) d h w" with amounts "(n s) k": `velocity`, its error; `told`, how much larger it is
    with the amounts of another scan; `effects`, on the first batch, the error of what is read of other amounts."""
    random = torch.Generator().manual_seed(0)
    time = torch.rand(len(codes), generator=random).to(codes)
    noise = torch.randn(codes.shape, generator=random).to(codes)
    loss, wrong = FlowLoss(network), amounts.roll(slices, 0)

    def error(given: Tensor) -> float:
        parts = zip(*(each.split(batch) for each in (codes, given, time, noise)), strict=True)
        return sum(float(loss.of_the_velocity(*part)) * len(part[0]) for part in parts) / len(codes)

    own, few = error(amounts), slice(max(batch // slices, 1) * slices)
    slope = slopes(amounts, torch.cat([network.reader(network.plain(part)) for part in codes.split(batch)]))
    other = one_changed(amounts[few][::slices].cpu(), amounts.cpu(), random).to(amounts)
    other = repeat(other, "n k -> (n s) k", s=slices)
    effects = float(loss.of_effects(codes[few], amounts[few], other, slope))
    return {"velocity": own, "told": error(wrong) - own, "effects": effects}


@torch.no_grad()
def read_by(network: FlowNetwork, codes: Tensor, amounts: Tensor, batch: int = 64) -> list[float]:
    """R^2 of the reader on codes "n d h w", attribute by attribute."""
    read = torch.cat([network.reader(network.plain(part)) for part in codes.split(batch)])
    return (1 - (read - amounts).square().mean(0) / amounts.var(0, unbiased=False)).tolist()
