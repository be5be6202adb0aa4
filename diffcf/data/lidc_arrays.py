"""Lung nodules of LIDC-IDRI from ready-made arrays: a folder with `lidc_nodules.npz` and `nodules.csv`."""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange

from diffcf.data.lidc_nodules import RATED, ScoreThree, crop_scan, equivalent_diameter, file_name, label_of
from diffcf.data.manifest import Manifest, ManifestRow, Split, hash_split
from diffcf.errors import ConfigError
from diffcf.scans.grid import LPS_TO_RAS
from diffcf.scans.write import write_nifti
from diffcf.types import Scan

ARRAYS, TABLE = "lidc_nodules.npz", "nodules.csv"
COLUMNS = ("nodule_id", "patient", "series_uid", "z_mm", "pixel_spacing_mm", "malignancy_mean", "n_raters", "mask_ok")
NUMBERS = ("z_mm", "pixel_spacing_mm", "malignancy_mean", "n_raters")  # of COLUMNS; RATED may be blank
THICKNESS = 1.0  # mm, nominal: the table does not say how thick the slice was


@dataclass(frozen=True)
class NoduleArrays:
    """The nodules of such a folder, row by row.

    hu: int16 "n h w" at the pixel spacing of the table, the nodule in the middle. mask: uint8 "n h w", what one
    radiologist outlined. table: the CSV's rows as text.
    """

    hu: np.ndarray
    mask: np.ndarray
    table: tuple[dict[str, str], ...]

    @classmethod
    def read(cls, source: str | Path) -> NoduleArrays:
        """Read the folder.

        Errors: ConfigError where a file, array, column or number is missing, the arrays are damaged or pickled, or rows
        and arrays do not match.
        """
        source = Path(source)
        for name in (ARRAYS, TABLE):
            if not (source / name).is_file():
                raise ConfigError(f"{source} holds no {name}; expected the folder of the nodule arrays.")
        with (source / TABLE).open(encoding="utf-8", newline="") as file:
            table = tuple(csv.DictReader(file))
        hu, mask, identity = read_npz(source / ARRAYS, ("hu", "mask", "nodule_id"))
        absent = {*COLUMNS, *RATED} - set(table[0] if table else ())
        if absent:
            raise ConfigError(f"{source / TABLE} lacks rows or the column(s) {', '.join(sorted(absent))}.")
        _check_cells(table, source / TABLE)
        named = [row["nodule_id"] for row in table] == [str(one) for one in np.atleast_1d(identity).tolist()]
        if hu.shape != mask.shape or hu.ndim != 3 or len(hu) != len(table) or not named:
            raise ConfigError(
                f"{source}: arrays of shape {hu.shape} and {mask.shape} and {len(table)} rows of {TABLE} do not "
                "describe the same nodules in the same order."
            )
        return cls(hu, mask, table)

    def __len__(self) -> int:
        return len(self.table)

    def row(self, index: int) -> dict[str, str]:
        """The table's row. Errors: ConfigError for an index that does not exist."""
        if not 0 <= index < len(self):
            raise ConfigError(f"there is no nodule {index}; the table has 0 to {len(self) - 1}.")
        return self.table[index]

    def scan(self, index: int) -> Scan:
        """One nodule as a scan of one slice.

        Pixel spacing and the height z in the patient are the nodule's. Where in its slice it lay the arrays do not
        say, so the crop's middle pixel is put at x = y = 0; nor how thick the slice was: 1 mm, nominal.
        """
        row = self.row(index)
        pixel = float(row["pixel_spacing_mm"])
        height, width = self.hu.shape[1:]
        affine = LPS_TO_RAS @ np.diag([pixel, pixel, THICKNESS, 1.0])
        affine[:3, 3] = [pixel * (width // 2), pixel * (height // 2), float(row["z_mm"])]
        source = f"LIDC-IDRI nodule {row['nodule_id']} of {row['patient']}"
        return crop_scan(rearrange(self.hu[index], "h w -> 1 h w"), (THICKNESS, pixel, pixel), affine, source)

    def region(self, index: int) -> np.ndarray | None:
        """The outlined region as uint8 "1 h w"; None where the table calls it approximate (`mask_ok` 0)."""
        if self.row(index)["mask_ok"] != "1" or not self.mask[index].any():
            return None
        return rearrange(self.mask[index], "h w -> 1 h w")


def write_nodule(source: str | Path | NoduleArrays, index: int, path: str | Path) -> Path:
    """Write one nodule of the arrays as NIfTI (int16 HU, one slice), to be explained with `--scan`.

    Its geometry is that of `NoduleArrays.scan`. Errors: ConfigError for an index that does not exist.
    """
    nodules = source if isinstance(source, NoduleArrays) else NoduleArrays.read(source)
    scan = nodules.scan(index)
    return write_nifti(scan.volume, scan, path)


def write_arrays(source: str | Path, out: str | Path, *, score_3: ScoreThree = "benign", seed: int = 0) -> Manifest:
    """Write every nodule of the arrays as NIfTI, its region beside it, and `manifest.csv` over them.

    Regions: those that the table does not call approximate. Attributes: seven ratings of the radiologist whose outline
    it is, the mean malignancy, the number of raters, and the outlined region's diameter in mm. Splits are by patient:
    where the table's column `split` names test patients they are the test set, and the others are split into train
    and val by `hash_split` (0.85, 0.15); otherwise all are (0.70, 0.15, 0.15).
    """
    from rich.console import Console
    from rich.progress import track

    nodules, out = NoduleArrays.read(source), Path(out)
    given_test = any(row.get("split") == "test" for row in nodules.table)
    rows = []
    console = Console(stderr=True)
    for index, row in enumerate(track(nodules.table, description="nodules", console=console, transient=True)):
        name = file_name(row["patient"], f"{index:04d}")
        scan, region = nodules.scan(index), nodules.region(index)
        rows.append(
            ManifestRow(
                path=write_nifti(scan.volume, scan, out / "scans" / name),
                patient=row["patient"],
                label=label_of(float(row["malignancy_mean"]), score_3),
                split=_split(row, given_test, seed),
                mask=None if region is None else write_nifti(region, scan, out / "masks" / name),
                attributes=_attributes(row, None if region is None else int(np.count_nonzero(region))),
                notes={"nodule": row["nodule_id"], "series": row["series_uid"]},
            )
        )
    manifest = Manifest(rows, str(out / "manifest.csv"))
    manifest.write(out / "manifest.csv")
    return manifest


def read_npz(path: Path, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Arrays of an .npz by name. Errors: ConfigError where one is missing, damaged or pickled."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            absent = set(names) - set(stored)
            if not absent:
                return tuple(stored[name] for name in names)
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(
            f"{path}: not an .npz of plain numbers ({error}). Pickled objects are never read; fetch the file again."
        ) from error
    raise ConfigError(f"{path} lacks the array(s) {', '.join(sorted(absent))}.")


def _check_cells(table: Sequence[Mapping[str, str | None]], path: Path) -> None:
    for index, row in enumerate(table):
        if not row["patient"]:
            raise ConfigError(f"{path}: nodule {index} has no patient; without it the split cannot be by patient.")
        for name in (*NUMBERS, *RATED):
            text = row[name]
            if not text and name in RATED:
                continue
            try:
                value = float(text or "")
            except ValueError:
                value = math.nan
            if not math.isfinite(value) or (name == "pixel_spacing_mm" and value <= 0):
                raise ConfigError(f"{path}: {name} of nodule {index} is {text!r}; expected a number.")


def _split(row: dict[str, str], given_test: bool, seed: int) -> Split:
    if given_test:
        return "test" if row["split"] == "test" else hash_split(row["patient"], seed, test=0.0)
    return hash_split(row["patient"], seed)


def _attributes(row: dict[str, str], pixels: int | None) -> dict[str, float | None]:
    values: dict[str, float | None] = {name: float(row[name]) if row[name] else None for name in RATED}
    values["malignancy"] = float(row["malignancy_mean"])
    values["raters"] = float(row["n_raters"])
    pixel = float(row["pixel_spacing_mm"])
    values["diameter_mm"] = None if pixels is None else round(equivalent_diameter(pixels, (pixel, pixel)), 3)
    return values
