"""What does the semantic code hold by itself, and how much of it is needed?

    python evaluation/semantic.py --config configs/evaluation/semantic_lidc.yaml

Held-out scans, encoded by each generator and decoded from their semantic code beside a random x_T: `psnr` and `ssim`
say what of the scan the code alone holds, `same` how often the black box decides as on the scan, and `frechet` how far
the pictures of one half of the patients are from real ones of the other, in the features of a fixed wavelet transform
(`frechet_real`: as far as real pictures of the halves are from each other; means over halvings, no interval).
`psnr_inverted` is with the x_T of the scan. Of the code, `numbers` is how many it has, `share` that of the scan's
pixels; `probe` and `probe_x_T` are the AUC of a linear reader of the label from the code and from the inverted x_T.

Further rows change the code before it is decoded. `directions k of d`: only its first k principal directions are kept,
those of the training scans' codes (of a spatial code, of the channels at every place). `noise s`: Gaussian noise of s
standard deviations of every channel is added. Intervals resample patients. A generator without x_T, a plain
autoencoder, has the same `psnr` and `psnr_inverted`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, mean_row, write_result
from einops import einsum, rearrange, reduce
from leakage import leakage
from rich.progress import track
from torch import Tensor

from diffcf.classifiers.blackbox import load_blackbox
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.errors import ConfigError
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.metrics.images import psnr, ssim
from diffcf.metrics.realism import frechet_distance
from diffcf.metrics.scattering import Scattering
from diffcf.training.command import run_script
from diffcf.types import Code


@dataclass(frozen=True)
class Config:
    """Which generators, on what.

    Args:
        name: the result is written to docs/results/semantic_NAME.json.
        manifest: CSV file; rows of `split` are decoded, those of train and val say what directions there are and train
            the reader.
        generators: name -> folder or bundled name; the first is ours.
        classifier: folder or bundled name of the black box.
        directions: shares of the principal directions that are kept.
        noises: standard deviations.
        scans: at most so many, the first of the split; 0 takes all.
        read: at most so many scans of each class for the reader of codes; 0 takes all.
        split: test, or val while something is still being chosen.
        batch: scans at once.
        halvings: of the patients, that a Frechet distance is the mean of.
        data: what the data are, in words.
        resamples: of the bootstrap over patients.
        seed: of the noise, the halvings and the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    generators: dict[str, str]
    classifier: str
    directions: list[float] = field(default_factory=lambda: [0.5, 0.25, 0.125])
    noises: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0])
    scans: int = 0
    read: int = 150
    split: str = "test"
    batch: int = 32
    halvings: int = 8
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


@dataclass(frozen=True)
class Spread:
    """How the semantic codes of many scans are spread, over d channels.

    mean, deviation: "d". basis: "d d", a principal direction a row, the widest first.
    """

    mean: Tensor
    deviation: Tensor
    basis: Tensor

    @classmethod
    def of(cls, semantic: Tensor) -> Spread:
        """From codes "n s d ..."; every slice, and every place of a map, is one vector."""
        vectors = rearrange(semantic, "n s d ... -> (n s ...) d").double()
        centred = vectors - vectors.mean(0)
        covariance = einsum(centred, centred, "n d, n e -> d e") / len(vectors)
        basis = rearrange(torch.linalg.eigh(covariance).eigenvectors.flip(1), "d k -> k d")
        return cls(vectors.mean(0), covariance.diagonal().clamp(min=0).sqrt(), basis)

    def kept(self, semantic: Tensor, directions: int) -> Tensor:
        """Codes "n s d ..." with the mean in place of all but the first principal directions."""
        centred = rearrange(semantic, "n s d ... -> n s ... d").double() - self.mean
        first = self.basis[:directions]
        amounts = einsum(centred, first, "... d, k d -> ... k")
        back = einsum(amounts, first, "... k, k d -> ... d") + self.mean
        return rearrange(back, "n s ... d -> n s d ...").to(semantic)

    def noised(self, semantic: Tensor, amount: float, seed: int) -> Tensor:
        """Codes "n s d ..." with Gaussian noise of `amount` standard deviations of every channel."""
        noise = torch.randn(semantic.shape, generator=torch.Generator().manual_seed(seed))
        scaled = rearrange(noise, "n s d ... -> n s ... d") * amount * self.deviation.float()
        return semantic + rearrange(scaled, "n s ... d -> n s d ...").to(semantic)


Change = Callable[[Tensor], Tensor]


def changes(spread: Spread, config: Config) -> Iterator[tuple[str, Change]]:
    """What is done to a code before it is decoded, by name; nothing comes first."""
    yield "", lambda semantic: semantic
    size = len(spread.mean)
    for count in sorted({max(1, round(share * size)) for share in config.directions}, reverse=True):
        yield f"directions {count} of {size}", lambda semantic, count=count: spread.kept(semantic, count)
    for amount in config.noises:
        yield f"noise {amount:g}", lambda semantic, amount=amount: spread.noised(semantic, amount, config.seed)


def halved(made: Tensor, real: Tensor, patients: Sequence[str], seed: int, halvings: int = 8) -> float:
    """Frechet distance of features "n d" of one half of the patients from real ones of the other, over halvings.

    Halves differ in size by a patient's scans; the larger is cut, since the distance depends on the numbers.
    """
    owners, whose = sorted(set(patients)), np.array(patients)
    random, found = np.random.default_rng(seed), []
    for _ in range(halvings):
        half = np.isin(whose, random.permutation(owners)[: len(owners) // 2])
        size = min(half.sum(), (~half).sum())
        for here, there in ((half, ~half), (~half, half)):
            found.append(frechet_distance(made[np.flatnonzero(here)[:size]], real[np.flatnonzero(there)[:size]]))
    return float(np.mean(found))


class Looked:
    """What all generators are judged on: scans "n s c h w" in [-1, 1], whose they are, and who judges.

    classify: scans -> logits "n k". batch: scans at once. decided, real: what the black box says of the scans, and the
    features of their middle slices.
    """

    def __init__(
        self, images: Tensor, patients: Sequence[str], classify: Callable[[Tensor], Tensor], batch: int
    ) -> None:
        self.images, self.patients, self.classify, self.batch = images, patients, classify, batch
        self.encoder = Scattering()
        self.decided, self.real = self.decisions(images), self.features(images)

    def decisions(self, scans: Tensor) -> Tensor:
        """Predicted classes, "n"."""
        return torch.cat([self.classify(part).argmax(1) for part in scans.split(self.batch)])

    def features(self, scans: Tensor) -> Tensor:
        """Of the middle slice of every scan, "n f"."""
        return self.encoder(scans[:, scans.shape[1] // 2])


def judge(made: Tensor, looked: Looked, config: Config) -> dict[str, float]:
    """The figures of decoded scans "n s c h w"."""
    of_slices = {"psnr": psnr(made, looked.images), "ssim": ssim(made, looked.images)}
    figures = {key: reduce(value, "n s -> n", "mean").numpy() for key, value in of_slices.items()}
    figures["same"] = (looked.decisions(made) == looked.decided).float().numpy()
    row = mean_row(figures, looked.patients, resamples=config.resamples, seed=config.seed)
    distance = halved(looked.features(made), looked.real, looked.patients, config.seed, config.halvings)
    return row | {"frechet": distance}


def rows_of(
    generator: SliceWise, sets: dict[str, ScanDataset], looked: Looked, config: Config
) -> Iterator[dict[str, Any]]:
    """The rows of one generator, without its name."""
    semantic = [
        torch.cat([generator.encode_semantic(part) for part in images.split(config.batch)])
        for images in (sets["train"].images, looked.images)
    ]
    how = {"read": config.read, "batch": config.batch, "resamples": config.resamples, "seed": config.seed}
    about: dict[str, Any] = {
        "numbers": semantic[1][0, 0].numel(),
        "share": semantic[1][0, 0].numel() / looked.images[0, 0].numel(),
        "parameters": sum(weight.numel() for weight in generator.generator.model.parameters()),
    }
    for part, read in leakage(generator, sets, **how).items():
        key = "probe" if part == "semantic code" else "probe_x_T"
        about |= {f"{key}{end}": read[f"auc{end}"] for end in ("", "_low", "_high")}
    inverted = []
    for part in looked.images.split(config.batch):
        inverted.append(generator.decode(generator.encode(part)).clamp(-1, 1))
    plain = {"psnr_inverted": reduce(psnr(torch.cat(inverted), looked.images), "n s -> n", "mean").numpy()}
    about |= mean_row(plain, looked.patients, resamples=config.resamples, seed=config.seed)
    sampled = getattr(generator.generator, "sampling", None) is not None
    for name, change in changes(Spread.of(semantic[0]), config):
        made = []
        for start, part in zip(
            range(0, len(semantic[1]), config.batch), change(semantic[1]).split(config.batch), strict=True
        ):
            noise = generator.fresh_stochastic(part, config.seed + start) if sampled else None
            made.append(generator.decode(Code(part, noise)).clamp(-1, 1))
        yield {"code": name or "whole", **judge(torch.cat(made), looked, config), **(about if not name else {})}


@torch.no_grad()
def main(config: Config) -> list[dict[str, Any]]:
    """Judge every generator; prints and writes the table, returns its rows. Errors: ConfigError for other scans."""
    blackbox = load_blackbox(config.classifier)
    manifest = Manifest.read(config.manifest)
    loaded = {name: SliceWise(load_generator(folder)) for name, folder in config.generators.items()}
    preparations = {name: generator.card.preparation for name, generator in loaded.items()}
    first = next(iter(preparations.values()))
    if other := [name for name, one in preparations.items() if one != first]:
        raise ConfigError(
            f"generator {other[0]!r} takes scans prepared as {preparations[other[0]]}, and {next(iter(loaded))!r} as "
            f"{first}; compare generators of the same preparation."
        )
    # The black box decides how many slices a scan has; the generator takes them one by one.
    preparation = replace(first, slices=blackbox.card.preparation.slices)
    rows = [row for row in manifest.split("train") + manifest.split("val") if row.label is not None]
    held = [row for row in manifest.split(config.split) if row.label is not None]
    sets = {"train": ScanDataset(rows, preparation), "test": ScanDataset(held, preparation)}
    count = min(config.scans or len(held), len(held))
    view = blackbox.view_of(preparation)
    first_scans, whose = sets["test"].images[:count], sets["test"].patients[:count]
    looked = Looked(first_scans, whose, lambda scans: blackbox(view(scans)), config.batch)
    common = {
        "data": config.name,
        "split": config.split,
        "n": count,
        "patients": len(set(looked.patients)),
        "frechet_real": halved(looked.real, looked.real, looked.patients, config.seed, config.halvings),
    }
    table = []
    for name, generator in track(loaded.items(), description="generators"):
        for row in rows_of(generator, sets, looked, config):
            table.append({"method": name, **common, **row, "default": name == next(iter(loaded))})
    write_result(__file__, config, "What the semantic code holds by itself", table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
