"""Fit attribute directions: what the rated attributes of scans do to the code of a generator (paper 002, section 4.2).

    python train/attributes.py --config configs/attributes/phantom_nodule.yaml

Least squares and a ridge regression in closed form, over the "train" rows whose attributes are all rated; "val" rows
choose the penalty of the reader and say how well it reads. `diffcf explain --method attributes --attributes
OUT/attributes` searches with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from diffcf.data.manifest import Manifest
from diffcf.generators.attributes import AttributeDirections
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.training.attributes import rated_scans
from diffcf.training.command import command_line, run_script
from diffcf.weights import content_hash


@dataclass(frozen=True)
class Config:
    """Which attributes of which scans.

    Args:
        out: run folder.
        manifests: CSV files with columns `attr_NAME`.
        generator: folder or bundled name.
        names: of the attributes; those that go together are told apart by what is left when the others are held.
        slices: of a scan.
        batch: images encoded at once.
        data, terms: of the scans, in words, for the card.
    """

    out: Path
    manifests: list[Path]
    generator: str
    names: list[str]
    slices: int = 1
    batch: int = 64
    data: str = ""
    terms: str = ""


@torch.no_grad()
def main(config: Config) -> AttributeDirections:
    """Encode, fit, write. Errors: ConfigError for an attribute that no manifest has, or that is rated nowhere."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = SliceWise(load_generator(config.generator)).to(device)
    manifest = Manifest.read_all(config.manifests)
    preparation = replace(generator.card.preparation, slices=config.slices)

    def rated(split: str) -> tuple[Tensor, Tensor]:
        images, values = rated_scans(manifest, preparation, config.names, split)
        return torch.cat(
            [generator.encode_semantic(part.to(device)).cpu() for part in images.split(config.batch)]
        ), values

    codes, values = rated("train")
    found = AttributeDirections.fit(
        config.names, codes, values, rated("val"), content_hash(config.generator, "generator")
    )
    found.card.about.update(
        {"data": config.data, "terms": config.terms, "command": command_line(__file__), "scans": len(codes)}
    )
    found.save(config.out / "attributes")
    Console().print(f"read on validation scans (R^2), from {len(codes)} scans:", found.card.about["read"])
    return found


if __name__ == "__main__":
    run_script(main, Config)
