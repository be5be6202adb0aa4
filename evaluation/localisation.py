"""Where do saliency maps lie? (paper 003, section 4.4, appendices G and H)

    python evaluation/localisation.py --config configs/evaluation/localisation_lidc.yaml

Every row is a way to make maps of the baselines of `train/acat.py`, over test scans that show a lesion, whose class no
method is told. `dice` and `iou`: the highest pixels of a map, as many as the lesion has, against the lesion;
`class_averaged_dice` and `class_averaged_iou`: the mean of lesion and background, the form that explains the paper's
figures near 0.5. `pointing`: the highest pixel lies in the lesion; `hits`: in its territory, where the data have six
(the paper's score S); KEY_small: of lesions of size grade 1 and 2. `relevance_mass`: share of the map in the lesion.
`chance`: the lesion's share of the image. KEY_gain: the default's less this method's, paired by scan. KEY_smoothed:
the same Gaussian over the maps of all methods (ours have one already), which gains more by itself than some differ.

The row of the guided classifier: maps by the method that it reads, but of that classifier, each scan's map held fixed.
Intervals resample patients; a patient whom several runs test counts once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acat_runs import AcatRun
from common import RESULTS, mean_row, write_result
from rich.progress import track
from torch import Tensor

from diffcf.classifiers.guided import WithMap
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import ManifestRow
from diffcf.data.phantom.folder import territory_masks
from diffcf.errors import ConfigError
from diffcf.metrics.localisation import (
    class_averaged_dice,
    class_averaged_iou,
    dice,
    iou,
    pointing,
    region_share,
    relevance_mass,
    top_p,
)
from diffcf.saliency import SaliencyMethod, normalised
from diffcf.saliency.changes import smoothed
from diffcf.saliency.maps import check_maps
from diffcf.training.command import run_script

SMALL = (1, 2)  # size grades
SMOOTH = 2.0  # pixels, the deviation of the Gaussian over all maps


@dataclass(frozen=True)
class Config:
    """Which runs, and which maps.

    Args:
        name: the result is written to docs/results/localisation_NAME.json.
        manifest: CSV file; rows of each run's own `split` with a lesion and its mask are judged.
        runs: folders that train/acat.py wrote.
        methods: name -> how maps are made.
        guided: folder of a classifier that reads maps; null leaves its row out. reads: name of their method.
        default: name of our method among `methods`, whose gains are told.
        chosen_on: runs by whose validation scans settings were chosen; their patients are left out.
        territories: the data are phantoms with six territories, one of which has the lesion.
        most: so many lesions a run, spread evenly; 0: all.
        split: val to choose settings by, test for a table.
        resamples: of the bootstrap. data: what the scans are, in words. seed: of the bootstrap. out: folder.
    """

    name: str
    manifest: Path
    runs: list[Path]
    methods: dict[str, SaliencyMethod] = field(default_factory=dict)
    guided: str | None = "acat"
    reads: str = "ours"
    default: str = "ours"
    chosen_on: list[Path] = field(default_factory=list)
    territories: bool = False
    most: int = 0
    split: str = "test"
    resamples: int = 1000
    data: str = ""
    seed: int = 0
    out: Path = RESULTS


@dataclass(frozen=True)
class Lesions:
    """Scans with a lesion, where it is, and the territory in which it lies ("n s 1 h w"; None without territories)."""

    scans: ScanDataset
    region: Tensor
    territory: Tensor | None

    @classmethod
    def of(cls, run: AcatRun, config: Config) -> Lesions:
        """Those of a run's split."""

        def shows(row: ManifestRow) -> bool:
            return bool(row.label) and row.mask is not None

        rows = run.rows(config.manifest, config.split, shows, chosen_on=config.chosen_on)
        if config.most and len(rows) > config.most:
            rows = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, config.most).round()]
        scans = run.scans(rows, mask=True)
        assert scans.masks is not None
        seen = (scans.masks > 0).flatten(1).any(1).tolist()
        if not all(seen):  # a lesion outside the field, or between the slices
            rows = [row for row, there in zip(rows, seen, strict=True) if there]
            scans = run.scans(rows, mask=True)
            assert scans.masks is not None
        territory = territory_masks(rows, scans.preparation) if config.territories else None
        return cls(scans, (scans.masks > 0).float(), territory)

    def figures(self, maps: Tensor) -> dict[str, np.ndarray]:
        """Every figure of every scan."""
        top = top_p(maps, self.region)
        wide = smoothed(maps, SMOOTH)
        figures = {
            "dice": dice(top, self.region),
            "dice_smoothed": dice(top_p(wide, self.region), self.region),
            "iou": iou(top, self.region),
            "class_averaged_dice": class_averaged_dice(top, self.region),
            "class_averaged_iou": class_averaged_iou(top, self.region),
            "pointing": pointing(maps, self.region),
            "pointing_smoothed": pointing(wide, self.region),
            "relevance_mass": relevance_mass(maps, self.region),
            "chance": region_share(self.region),
        }
        if self.territory is not None:
            figures["hits"] = pointing(maps, self.territory)
            figures["hits_smoothed"] = pointing(wide, self.territory)
        # A map of zeros points nowhere and finds nothing: a miss, or a method that fails would be judged by the rest.
        cases = {key: torch.nan_to_num(value.double(), nan=0.0).numpy() for key, value in figures.items()}
        if "grade" in self.scans.attribute_names:
            grade = self.scans.attributes[:, self.scans.attribute_names.index("grade")].numpy()
            small = np.isin(grade, SMALL)
            for key in ("dice", "pointing", "hits", "hits_smoothed"):
                if key in cases:
                    cases[f"{key}_small"] = np.where(small, cases[key], np.nan)
        return cases


def maps_by_method(run: AcatRun, lesions: Lesions, config: Config) -> dict[str, Callable[[], Tensor]]:
    """What makes the maps of each row."""
    images = lesions.scans.images
    made: dict[str, Callable[[], Tensor]] = {
        name: partial(run.maps, method, images) for name, method in config.methods.items()
    }
    if config.guided is not None:
        read = config.methods[config.reads]
        model, part = run.part(config.guided, lesions.scans, read)
        if part.maps is None:
            raise ConfigError(f"{config.guided} reads no maps: name a classifier that does, or guided: null.")
        pairs = list(zip(images, part.maps, strict=True))

        def of_guided() -> Tensor:
            found = [read(WithMap(model, own[None]), image[None], generator=run.generator) for image, own in pairs]
            maps = torch.cat([normalised(each) for each in found])
            check_maps(maps, images)  # as `run.maps` does of those that it makes
            return maps

        made[f"{config.reads}, of {config.guided}"] = of_guided
    return made


def main(config: Config) -> list[dict[str, Any]]:
    """Make and judge the maps of every run; prints and writes the table, returns its rows."""
    for name in {config.default, *([] if config.guided is None else [config.reads])} - config.methods.keys():
        raise ConfigError(f"no method {name!r}; there are {', '.join(config.methods)}.")
    judged: dict[str, list[dict[str, np.ndarray]]] = {}
    patients: list[str] = []
    for folder in config.runs:
        run = AcatRun(folder)
        lesions = Lesions.of(run, config)
        patients += lesions.scans.patients
        for name, make in track(maps_by_method(run, lesions, config).items(), description=str(folder)):
            judged.setdefault(name, []).append(lesions.figures(make()))
    cases = {
        name: {key: np.concatenate([one[key] for one in runs]) for key in runs[0]} for name, runs in judged.items()
    }
    ours, rows = cases[config.default], []
    for name, own in cases.items():
        gains = (
            {f"{key}_gain": ours[key] - own[key] for key in own if key != "chance"} if name != config.default else {}
        )
        row = {"method": name, "data": config.name, "split": config.split, "n": len(patients), "runs": len(config.runs)}
        row |= mean_row(own | gains, patients, resamples=config.resamples, seed=config.seed)
        rows.append(row | {"default": name == config.default})
    write_result(__file__, config, "Where saliency maps lie (paper 003, section 4.4 and Table 5)", rows)
    return rows


if __name__ == "__main__":
    run_script(main, Config)
