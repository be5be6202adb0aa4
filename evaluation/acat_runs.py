"""What the evaluations of paper 003 share: the run folders of train/acat.py, their test scans, maps and classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from diffcf.cards import ClassifierCard, read_card
from diffcf.classifiers.blackbox import BlackBox, load_blackbox
from diffcf.classifiers.guided import GuidedCard, GuidedClassifier, load_guided
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest, ManifestRow
from diffcf.errors import ConfigError
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.saliency import SaliencyMethod
from diffcf.saliency.maps import maps_of
from diffcf.training.guided import Part
from diffcf.weights import content_hash

BASELINE = "baseline"  # a run's folder, and what a table calls its network


@dataclass(frozen=True)
class AcatRun:
    """A folder that train/acat.py wrote: one seed, one split."""

    folder: Path

    @cached_property
    def baseline(self) -> BlackBox:
        """The network that the maps come from."""
        return load_blackbox(self.folder / BASELINE / "blackbox")

    @cached_property
    def generator(self) -> SliceWise | None:
        """The run's autoencoder; None where the run needed none."""
        source = self.folder / "autoencoder" / "generator"
        return SliceWise(load_generator(source)) if source.is_dir() else None

    def guided(self, name: str) -> GuidedClassifier:
        """The classifier of a method, by its folder's name."""
        return load_guided(self.folder / name / "classifier")

    def manifest(self, path: Path) -> Manifest:
        """A manifest under the run's own splits."""
        seed = read_card(ClassifierCard, self.folder / BASELINE / "blackbox").about.get("split")
        read = Manifest.read(path)
        return read if seed is None else read.redrawn(seed)

    def rows(
        self,
        manifest: Path,
        split: str,
        keep: Callable[[ManifestRow], bool] = lambda row: True,
        *,
        chosen_on: Sequence[Path] = (),
    ) -> list[ManifestRow]:
        """Labelled rows of a split of the run's own.

        chosen_on: runs of the same data by whose validation scans settings were chosen. Each run has a split of its
        own, so that their validation patients are test patients of others: they are left out.

        Errors: ConfigError where none are kept.
        """
        seen = {row.patient for folder in chosen_on for row in AcatRun(folder).manifest(manifest).split("val")}
        own = self.manifest(manifest).split(split)
        rows = [row for row in own if row.label is not None and row.patient not in seen and keep(row)]
        if not rows:
            raise ConfigError(f"{manifest}: no labelled row of the {split} split is left for {self.folder}.")
        return rows

    def scans(self, rows: Sequence[ManifestRow], *, mask: bool = False) -> ScanDataset:
        """The scans of rows, as the run's networks read them."""
        return ScanDataset(rows, self.baseline.card.preparation, mask=mask)

    def maps(self, saliency: SaliencyMethod, images: torch.Tensor) -> torch.Tensor:
        """Maps of the baseline, "n s 1 h w" in [0, 1]: taken from the run's folder, or made and kept there."""
        sources = [self.folder / BASELINE / "blackbox"]
        if saliency.needs_generator:
            sources.append(self.folder / "autoencoder" / "generator")
        return maps_of(
            saliency,
            self.baseline,
            images,
            self.generator if saliency.needs_generator else None,
            folder=self.folder / "maps",
            versions="+".join(content_hash(source) for source in sources),
        )

    def part(self, name: str, scans: ScanDataset, saliency: SaliencyMethod) -> tuple[Any, Part]:
        """A method's classifier and what it reads of scans. Errors: ConfigError where it was trained on other maps."""
        if name == BASELINE:
            return self.baseline, Part(scans)
        model = self.guided(name)
        if not model.guidance.reads_maps:
            return model, Part(scans)
        trained = read_card(GuidedCard, self.folder / name / "classifier").about.get("saliency")
        if trained != repr(saliency):
            raise ConfigError(f"{self.folder / name} was trained on maps by {trained}; the config says {saliency!r}.")
        return model, Part(scans, self.maps(saliency, scans.images))


def over_runs(key: str, values: Sequence[float]) -> dict[str, float]:
    """KEY: the mean over runs, with KEY_se, its standard error, and KEY_low and KEY_high, the 95% interval of
    Student's t with one degree of freedom fewer than there are runs; of one run the mean alone."""
    each = np.asarray([value for value in values if not math.isnan(value)], dtype=np.float64)
    if not len(each):
        return {key: math.nan}
    mean = float(each.mean())
    if len(each) < 2:
        return {key: mean}
    error = float(each.std(ddof=1) / math.sqrt(len(each)))
    half = float(stats.t.ppf(0.975, len(each) - 1)) * error
    return {key: mean, f"{key}_low": mean - half, f"{key}_high": mean + half, f"{key}_se": error}
