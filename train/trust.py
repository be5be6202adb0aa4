"""Take the trust statistics of a finished generator: what its training and held-out scans are like.

    python train/trust.py --generator runs/diffae-lidc/generator --manifests '[runs/data/lidc/manifest.csv]'

`train/diffae.py` ends with the same; run this for a generator that came without them, for other sampling steps, or
where explanations will see other scans than it was trained on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from diffcf.cards import write_card
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.training.command import run_script
from diffcf.trust import TrustStatistics, fit_trust
from diffcf.weights import TRUST_NAME


@dataclass(frozen=True)
class Config:
    """Which generator, over which scans.

    Args:
        generator: its folder; `trust.safetensors` is written there and named in its card.
        manifests: CSV files; "train" rows are what it knows, "val" rows set the thresholds. Test rows are never read.
        steps: sampling steps that explanations will use; null takes the card's.
    """

    generator: Path
    manifests: list[Path]
    steps: int | None = None


def main(config: Config) -> TrustStatistics:
    """Measure and write; returns the statistics."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = load_generator(config.generator, steps=config.steps).to(device)
    manifest = Manifest.read_all(config.manifests)
    known, held_out = (
        ScanDataset(manifest, generator.card.preparation, split=split).images for split in ("train", "val")
    )
    sampling = {} if generator.sampling is None else dataclasses.asdict(generator.sampling)
    about = {"train_scans": len(known), "held_out_scans": len(held_out), **sampling}
    statistics = fit_trust(SliceWise(generator), known, held_out, about=about)
    statistics.save(config.generator)
    write_card(dataclasses.replace(generator.card, trust=TRUST_NAME), config.generator)
    Console().print(
        f"held-out scans: PSNR above {statistics.psnr_limit:.1f} dB, code distance below {statistics.code_limit:.2f}, "
        f"appearance distance below {statistics.appearance_limit:.2f}"
    )
    return statistics


if __name__ == "__main__":
    run_script(main, Config)
