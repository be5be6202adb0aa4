"""Does the check `in_distribution` tell a generator's own kind of scans from others?

    python evaluation/trust.py --config configs/evaluation/trust_lidc.yaml

Held-out scans of the generator's own data should pass, scans of other parts of the body should not. A row gives the
share that the check flags (`flagged`), because of the semantic code (`by_code`) or the intensities (`by_appearance`),
and the mean of both distances over the limit that held-out validation scans set (above 1 is flagged).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, mean_row, write_result

from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest, ManifestRow
from diffcf.errors import ConfigError
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.training.command import run_script
from diffcf.trust import TrustStatistics
from diffcf.weights import TRUST_NAME, part_of


@dataclass(frozen=True)
class Config:
    """Which generator, shown what.

    Args:
        name: the result is written to docs/results/trust_NAME.json.
        manifest: CSV file; its rows of `split` are the generator's own kind.
        generator: folder or bundled name.
        others: in words -> a glob pattern of scans of another kind ($VARIABLES are expanded), or a manifest.
        split: test, or val while something is still being chosen.
        data: what the generator's own data are, in words.
        batch: scans at once.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    generator: str
    others: dict[str, str] = field(default_factory=dict)
    split: str = "test"
    data: str = ""
    batch: int = 64
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


def rows_of(pattern: str, split: str) -> list[ManifestRow]:
    """Scans of another kind. Errors: ConfigError where there are none."""
    expanded = Path(os.path.expandvars(pattern)).absolute()
    if expanded.suffix == ".csv":
        return Manifest.read(expanded).split(split)
    found = sorted(expanded.parent.glob(expanded.name))
    if not found:
        raise ConfigError(f"{pattern} matches no scan; is its variable set, such as DIFFCF_DATA?")
    return [ManifestRow(path, path.name, None, "test") for path in found]


def kinds(config: Config) -> Iterator[tuple[str, list[ManifestRow]]]:
    """The generator's own kind, then the others."""
    yield f"own, {config.split} split", Manifest.read(config.manifest).split(config.split)
    for kind, pattern in config.others.items():
        yield kind, rows_of(pattern, config.split)


@torch.no_grad()
def main(config: Config) -> list[dict[str, Any]]:
    """Measure every kind; prints and writes the table, returns its rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = SliceWise(load_generator(config.generator).to(device))
    statistics = TrustStatistics.load(part_of(config.generator, "generator") / (generator.card.trust or TRUST_NAME))
    table = []
    for kind, rows in kinds(config):
        scans = ScanDataset(rows, generator.card.preparation)
        parts = [part.to(device) for part in scans.images.split(config.batch)]
        code = torch.cat([statistics.code_distance(generator.encode_semantic(part)) for part in parts])
        appearance = torch.cat([statistics.appearance_distance(part) for part in parts])
        code, appearance = code / statistics.code_limit, appearance / statistics.appearance_limit
        values = {
            "flagged": ((code > 1) | (appearance > 1)).double(),
            "by_code": (code > 1).double(),
            "by_appearance": (appearance > 1).double(),
            "code_distance": code.double(),
            "appearance_distance": appearance.double(),
        }
        named = {"method": kind, "data": config.name, "split": config.split, "n": len(scans)}
        named |= {"patients": len(set(scans.patients)), "default": kind.startswith("own")}
        figures = {key: value.numpy() for key, value in values.items()}
        table.append(named | mean_row(figures, scans.patients, resamples=config.resamples, seed=config.seed))
    title = "Scans that the check in_distribution flags, of the generator's own kind and of others"
    write_result(__file__, config, title, table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
