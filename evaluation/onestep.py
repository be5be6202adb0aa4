"""How far is an image of one evaluation from the full decode of the same code and noise?

    python evaluation/onestep.py --config configs/evaluation/onestep_lidc.yaml

A row is a way to see a code in one evaluation of the network: the denoiser's own preview, E[x_0 | x_T, z], or the
one-step decoder that was distilled from the full one. `psnr` is between it and the full decode, both clamped, in dB;
`same` the share of scans of which the black box decides the same from both. The codes: of held-out scans with their
inverted x_T; `edited`, the same, shifted by up to `longest` of the difference between the codes of two other scans;
`fresh`, with a random x_T; and `carried`, the edited ones as residual carry shows them, x + (D(z') - D(z)), where only
the difference of two images is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, mean_row, write_result
from einops import rearrange, reduce
from torch import Tensor

from diffcf.classifiers.blackbox import load_blackbox
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.generators.generator import DiffusionGenerator, load_diffusion
from diffcf.metrics.images import psnr
from diffcf.training.command import run_script
from diffcf.training.onestep import KINDS, decode_codes
from diffcf.types import Code

PREVIEW, STUDENT = "denoiser's preview", "one-step decoder"


@dataclass(frozen=True)
class Config:
    """Which generator, seen in which ways, on what.

    Args:
        name: the result is written to docs/results/onestep_NAME.json.
        manifest: CSV file; its rows of `split` are decoded.
        generator, classifier: folders or bundled names.
        onestep: folder or bundled name of the one-step decoder; null takes the one beside the generator, if any.
        longest: of an edit.
        split: test, or val while something is still being chosen.
        scans: at most so many, the first of the split; 0 takes all.
        data: what the data are, in words.
        batch: scans at once.
        resamples: of the bootstrap over patients.
        seed: of edits, noise and the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    generator: str
    classifier: str
    onestep: str | None = None
    longest: float = 1.0
    split: str = "test"
    scans: int = 0
    data: str = ""
    batch: int = 32
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


@torch.no_grad()
def judge(
    ways: dict[str, DiffusionGenerator], images: Tensor, classify: Callable[[Tensor], Tensor], config: Config
) -> dict[str, dict[str, list[float]]]:
    """Figures of each scan, by way; classify: scans "b s c h w" -> logits "b k"."""
    full = ways[PREVIEW]
    device, slices = next(full.parameters()).device, images.shape[1]
    figures: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    flat = rearrange(images, "n s c h w -> (n s) c h w")
    others = torch.cat([full.encode_semantic(part.to(device)) for part in flat.split(config.batch)])
    for number, part in enumerate(images.split(config.batch)):
        image = rearrange(part, "n s c h w -> (n s) c h w").to(device)
        made = decode_codes(full, image, others, edits=1, longest=config.longest, seed=config.seed, chunk=number)
        semantic, stochastic, whole = (
            dict(zip(KINDS, made[key].to(device).split(len(image)), strict=True))
            for key in ("semantic", "stochastic", "image")
        )
        whole["carried"] = image + whole["edited"] - whole["inverted"]
        for way, generator in ways.items():
            one = {
                kind: generator.preview(Code(semantic[kind], rearrange(stochastic[kind], "n c h w -> n 1 c h w")))
                for kind in KINDS
            }
            one["carried"] = image + one["edited"] - one["inverted"]
            for kind in one:
                shown, asked = (rearrange(x[kind].clamp(-1, 1), "(n s) ... -> n s ...", s=slices) for x in (one, whole))
                found = {
                    "psnr": reduce(psnr(shown, asked), "n s -> n", "mean"),
                    "same": (classify(shown).argmax(1) == classify(asked).argmax(1)).float(),
                }
                for key, values in found.items():
                    column = key if kind == "inverted" else f"{key}_{kind}"
                    figures[way].setdefault(column, []).extend(values.tolist())
    return figures


def main(config: Config) -> list[dict[str, Any]]:
    """Judge every way; prints and writes the table, returns its rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = load_diffusion(config.generator, onestep=config.onestep).to(device)
    blackbox = load_blackbox(config.classifier).to(device)
    view = blackbox.view_of(generator.card.preparation)
    ways = {PREVIEW: DiffusionGenerator(generator.model, generator.card, generator.sampling)}
    if generator.onestep is not None:
        ways[STUDENT] = generator
    preparation = replace(generator.card.preparation, slices=blackbox.card.preparation.slices)
    scans = ScanDataset(Manifest.read(config.manifest), preparation, split=config.split)
    count = min(config.scans or len(scans), len(scans))
    patients = scans.patients[:count]
    table = [
        {
            "method": way,
            "data": config.name,
            "split": config.split,
            "n": count,
            "patients": len(set(patients)),
            "default": way == list(ways)[-1],
            "sampler": generator.sampling.sampler,
            "steps": generator.sampling.steps,
            **mean_row(figures, patients, resamples=config.resamples, seed=config.seed),
        }
        for way, figures in judge(ways, scans.images[:count], lambda x: blackbox(view(x)), config).items()
    ]
    write_result(__file__, config, "One evaluation against the full decode of the same code and noise", table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
