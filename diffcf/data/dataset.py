"""Scans of a manifest as tensors: read, cut to a model's field, windowed, kept in memory.

Reading a CT series takes seconds and is the same every time, so the cut field is kept on disk in HU, in a file named by
a hash of what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import Dataset

from diffcf.cards import Preparation
from diffcf.data.manifest import Manifest, ManifestRow
from diffcf.data.masks import mask_of_patch
from diffcf.errors import ConfigError, DiffcfError, ScanError
from diffcf.folders import read_array, write_array
from diffcf.scans import Patch, parse_slices, prepare, read_scan
from diffcf.types import Scan

UNLABELLED = -1
CACHE_FOLDER = ".cache"
CACHE_VERSION = 1  # raise it when `prepare` or `mask_of_patch` give other values than before
KEPT_AS = {"hu": np.float32, "mask": np.uint8}
PROGRESS_FROM = 200  # files; fewer are read before a bar would be of use
SHOWN = 20  # bad files that one error message lists


class ScanDataset(Dataset[dict[str, Any]]):
    """The scans of a split (or of any rows) as one tensor, cut by one preparation.

    Attributes:
        images: float32 "n s c h w" in [-1, 1] of the preparation's window, clipped; c = 1.
        labels: int64 "n", -1 = unlabelled.
        indices: int64 "n", each row's position in its manifest; noise keyed by it is the same in every subset.
        masks: float32 "n s 1 h w" of 0 and 1, or None unless asked for; zeros for a row without a mask.
        has_mask: bool "n", which rows have one (without `mask`: none).
        attributes: float32 "n a" in the order of `attribute_names`, NaN = not rated.
        patients: of each row. rows: the rows themselves.

    An item is a dict of `image`, `index`, `label` (with `label`), `mask` and `has_mask` (with `mask`).
    """

    def __init__(
        self,
        rows: Manifest | Sequence[ManifestRow],
        preparation: Preparation,
        label: bool = True,
        *,
        split: str | None = None,
        mask: bool = False,
        cache: str | Path | bool = True,
        workers: int | None = None,
    ) -> None:
        """Read every scan, or take it from the cache.

        rows: what `Manifest.split` or `Manifest.folds` gave, or a manifest with `split`. cache: its folder; True is
        `.cache` in the manifest's folder, False keeps nothing on disk. workers: threads that read; None is one a core,
        at most 8.

        Errors: ScanError that lists every row that cannot be read or cut, and why; ConfigError for no rows, and for a
        manifest without a split.
        """
        if isinstance(rows, Manifest):
            if split is None:
                raise ConfigError(
                    "a manifest holds the test split too: say which one, ScanDataset(..., split='train')."
                )
            rows = rows.split(split)
        elif split is not None:
            raise ConfigError("rows are of a split already; give `split` only with a manifest.")
        if not rows:
            raise ConfigError("there are no rows to load; check the manifest's split column.")
        self.rows = tuple(rows)
        self.preparation = preparation
        self.label, self.mask = label, mask
        fields = load_fields(self.rows, preparation, mask, cache, workers)
        window = preparation.window
        images = np.stack([hu for hu, _ in fields])
        images = np.clip(window.to_unit(images), -1.0, 1.0, out=images)
        self.images = rearrange(torch.from_numpy(images), "n s h w -> n s 1 h w")
        self.masks = None
        if mask:
            empty = np.zeros(images.shape[1:], dtype=np.uint8)
            masks = torch.from_numpy(np.stack([empty if region is None else region for _, region in fields]))
            self.masks = rearrange(masks.float(), "n s h w -> n s 1 h w")
        self.has_mask = torch.tensor([region is not None for _, region in fields])
        self.labels = torch.tensor([UNLABELLED if row.label is None else row.label for row in self.rows])
        self.indices = torch.tensor([row.index for row in self.rows])
        self.patients = [row.patient for row in self.rows]
        self.attribute_names = tuple(dict.fromkeys(name for row in self.rows for name in row.attributes))
        self.attributes = torch.tensor(
            [[_or_nan(row.attributes.get(name)) for name in self.attribute_names] for row in self.rows]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        item: dict[str, Any] = {"image": self.images[position], "index": int(self.indices[position])}
        if self.label:
            item["label"] = int(self.labels[position])
        if self.masks is not None:
            item |= {"mask": self.masks[position], "has_mask": bool(self.has_mask[position])}
        return item


class SliceDataset(Dataset[dict[str, Any]]):
    """Each slice of each scan as a sample "c h w"; shares the memory of the scans' tensor.

    A generator trains on these. images: "(n s) c h w". indices: row index * s + slice, as stable as the row's.
    labels and patients are those of the slice's scan. Items are those of `ScanDataset`.
    """

    def __init__(self, scans: ScanDataset) -> None:
        self.scans = scans
        self.slices = scans.images.shape[1]
        self.images = rearrange(scans.images, "n s c h w -> (n s) c h w")
        self.masks = None if scans.masks is None else rearrange(scans.masks, "n s c h w -> (n s) c h w")
        self.labels = scans.labels.repeat_interleave(self.slices)
        self.has_mask = scans.has_mask.repeat_interleave(self.slices)
        within = torch.arange(self.slices)
        self.indices = rearrange(scans.indices[:, None] * self.slices + within, "n s -> (n s)")
        self.patients = [patient for patient in scans.patients for _ in range(self.slices)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> dict[str, Any]:
        item: dict[str, Any] = {"image": self.images[position], "index": int(self.indices[position])}
        if self.scans.label:
            item["label"] = int(self.labels[position])
        if self.masks is not None:
            item |= {"mask": self.masks[position], "has_mask": bool(self.has_mask[position])}
        return item


Field = tuple[np.ndarray, np.ndarray | None]  # HU float32 "s h w", and the region uint8 "s h w"


def load_fields(
    rows: Sequence[ManifestRow],
    preparation: Preparation,
    mask: bool = False,
    cache: str | Path | bool = True,
    workers: int | None = None,
) -> list[Field]:
    """Every row's field in HU (and its region, with `mask`), in order; arguments as of `ScanDataset`.

    Errors: ScanError that lists every row that cannot be read or cut, and why.
    """
    from rich.console import Console
    from rich.progress import track

    def attempt(row: ManifestRow) -> Field | str:
        try:
            return _field(row, preparation, mask, cache)
        except (DiffcfError, OSError) as error:
            return f"row {row.index} ({row.path.name}): {error}"

    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
        results = track(
            pool.map(attempt, rows),
            description="scans",
            total=len(rows),
            disable=len(rows) <= PROGRESS_FROM,
            console=Console(stderr=True),
            transient=True,
        )
        done = list(results)
    problems = [result for result in done if isinstance(result, str)]
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ScanError(f"{len(problems)} of {len(rows)} scans cannot be loaded:{shown}{more}")
    return [result for result in done if not isinstance(result, str)]


def _field(row: ManifestRow, preparation: Preparation, mask: bool, cache: str | Path | bool) -> Field:
    wants_mask = mask and row.mask is not None
    names = {"hu": _key(row, preparation, None)}
    if wants_mask:
        names["mask"] = _key(row, preparation, row.mask)
    folder = _cache_folder(row, cache)
    shape = (preparation.slices, preparation.size, preparation.size)
    if folder is not None:
        kept = {kind: read_array(folder / f"{name}.npy", shape, KEPT_AS[kind]) for kind, name in names.items()}
        if all(array is not None for array in kept.values()):
            return kept["hu"], kept.get("mask")  # type: ignore[return-value]
    scan = read_scan(row.path, allow_tilt=row.allow_tilt, modality=preparation.modality)
    patch = _cut(row, scan, preparation)
    made = {"hu": patch.hu}
    if wants_mask:
        region = read_scan(row.mask, allow_tilt=row.allow_tilt, modality="other")  # type: ignore[arg-type]
        made["mask"] = mask_of_patch(region, scan, patch)
    if folder is not None:
        for kind, name in names.items():
            _write_cached(folder / f"{name}.npy", made[kind])
    return made["hu"], made.get("mask")


def _cache_folder(row: ManifestRow, cache: str | Path | bool) -> Path | None:
    if isinstance(cache, bool):
        return row.folder / CACHE_FOLDER if cache and row.folder else None
    return Path(cache)


def _cut(row: ManifestRow, scan: Scan, preparation: Preparation) -> Patch:
    slices = parse_slices(row.slices) if row.slices else None
    centre = row.centre if preparation.field == "crop" else None  # a model of the whole slice has no centre
    return prepare(scan, preparation, slices=slices, centre_mm=centre)


def _key(row: ManifestRow, preparation: Preparation, mask: Path | None) -> str:
    """A hash of what a field is made from. The window is no part of it: the field is kept in HU."""
    cut = {
        "size": preparation.size,
        "slices": preparation.slices,
        "field": preparation.field,
        "spacing": preparation.spacing,
        "modality": preparation.modality,
    }
    parts = [CACHE_VERSION, _stamp(row.path), cut, row.slices, row.centre, _stamp(mask) if mask else None]
    parts += ["tilted"] if row.allow_tilt else []
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _stamp(path: Path) -> list[Any]:
    """Path, size and time of a file; of every file in a folder."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if CACHE_FOLDER not in file.parts and file.is_file())
    stats = [(str(file), file.stat()) for file in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _write_cached(path: Path, array: np.ndarray) -> None:
    """A folder that cannot be written to costs time, not the run: it is warned of."""
    try:
        write_array(path, array)
    except OSError as error:
        warnings.warn(f"scans are read anew each time: no cache in {path.parent} ({error.strerror}).", stacklevel=2)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
