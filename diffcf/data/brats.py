"""BraTS (2020, 2021), MRI of brain tumours with experts' regions, as axial slices, masks and a manifest.

    python -m diffcf.data.brats --source BRATS --out runs/data/brats
    python -m diffcf.data.brats --source BRATS --label grade --modality t1ce --out runs/data/grades

BRATS (MICCAI_BraTS2020_TrainingData, say) holds one folder a patient, BraTS20_Training_001/ with NIfTI files
BraTS20_Training_001_flair.nii.gz, ..._t1.nii.gz, ..._t1ce.nii.gz, ..._t2.nii.gz and ..._seg.nii.gz (.nii will do), and
that of 2020 name_mapping.csv with the grades. The label is whether the slice shows tumour (1) or not (0), or with
--label grade the patient's grade, HGG (1) or LGG (0), on slices that show tumour.

Which slices: those whose brain (voxels that are not 0) has at least half the area of the largest one of the volume;
they show tumour where it covers --min-area or more, and none where not one voxel is tumour; slices between are not
taken. Of either kind --count are taken, the middles of as many equal parts, all where there are fewer. The region is
the whole tumour: necrosis, oedema and enhancing tumour. A slice without tumour has no mask, so that alignment
(train/align.py), which needs a region of every scan, takes the grades.

Intensities of MRI have no unit. Those of a volume are mapped linearly such that the 1st percentile of its brain becomes
0 and the 99th becomes 1; nothing is clipped here, and `note_percentiles` says both, so that the map can be undone. A
model takes the slices with a window of centre 0.5 and width 1. They are NIfTI of one slice, where it lay in the world.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from einops import reduce

from diffcf.data.manifest import Manifest, ManifestRow, hash_split
from diffcf.data.regions import Cases, add_common_options, existing_folder, run_loader
from diffcf.errors import ConfigError, ScanError
from diffcf.folders import whole_folder
from diffcf.scans import read_scan, write_nifti
from diffcf.scans.grid import spacing_of, world
from diffcf.scans.prepare import even_places
from diffcf.types import Provenance, Scan

Modality = Literal["flair", "t1", "t1ce", "t2"]
Label = Literal["tumour", "grade"]
GRADES = ("LGG", "HGG")  # in the order of the labels
MAPPING = "name_mapping.csv"
TISSUES = (0, 1, 2, 3, 4)  # none, necrosis, oedema, enhancing (4, in other copies 3)
PERCENTILES = (1, 99)  # of the brain
BRAIN = 0.5  # of the largest area of brain on a slice
ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Volume:
    """One patient's modality, its intensities mapped, and the tumour on its grid.

    scan: volume float32 "z y x" as the module says. brain, tumour: bool "z y x". percentiles: what became 0 and 1.
    """

    scan: Scan
    brain: np.ndarray
    tumour: np.ndarray
    percentiles: tuple[float, float]


def find_patients(source: Path) -> list[Path]:
    """The patients' folders, by name: those right below `source` that hold NIfTI. Errors: ConfigError for none."""
    existing_folder(source, "BraTS, one folder a patient")
    folders = sorted(path for path in source.iterdir() if path.is_dir() and _volumes(path))
    if not folders:
        raise ConfigError(
            f"{source}: no folder right below it holds NIfTI files; expected one a patient, such as "
            "BraTS20_Training_001/BraTS20_Training_001_seg.nii.gz. Give the folder that holds the patients' folders."
        )
    return folders


def _volumes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS) and not path.name.startswith("."))


def read_grades(source: Path) -> dict[str, str]:
    """The grade of each patient, as `name_mapping.csv` words it. Errors: ConfigError for no such file or column."""
    path = source / MAPPING
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist; BraTS 2020 says the grades there, and BraTS 2021 says none: use --label tumour."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or [])
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); fetch it again.") from error
    names = [column for column in columns if column.startswith("BraTS_") and column.endswith("_subject_ID")]
    if "Grade" not in columns or not names:
        raise ConfigError(
            f"{path} has the column(s) {', '.join(columns) or 'none'}; expected Grade and BraTS_2020_subject_ID. Fetch "
            "it again."
        )
    return {row[name]: row["Grade"] for row in rows for name in names if row[name]}


def read_volume(folder: Path, modality: Modality) -> Volume:
    """One modality of a patient, normalised, and the tumour.

    Errors: ScanError for a file that is missing or damaged, a segmentation on another grid, with other values than
    BraTS has, or empty, and for a volume without brain or contrast.
    """
    paths = {what: _file(folder, what) for what in (modality, "seg")}
    scan, tissue = (read_scan(path, modality="other") for path in paths.values())
    if tissue.volume.shape != scan.volume.shape or not np.allclose(tissue.affine, scan.affine, atol=1e-3):
        raise ScanError(
            f"{paths['seg']}: a segmentation of {_grid(tissue)}, and {paths[modality].name} has {_grid(scan)}; "
            "expected the same grid. Fetch both again."
        )
    found = np.unique(tissue.volume)
    if not np.isin(found, TISSUES).all():
        raise ScanError(
            f"{paths['seg']}: values {', '.join(f'{value:g}' for value in found[:8])}; a segmentation of BraTS has "
            f"{', '.join(map(str, TISSUES))}. Fetch it again."
        )
    if not found.any():
        raise ScanError(f"{paths['seg']}: an empty segmentation; every patient of BraTS has a tumour. Fetch it again.")
    brain = scan.volume != 0
    if not brain.any():
        raise ScanError(f"{paths[modality]}: no brain in it, all voxels are 0. Fetch it again.")
    low, high = (float(value) for value in np.percentile(scan.volume[brain], PERCENTILES))
    if low == high:
        raise ScanError(
            f"{paths[modality]}: percentiles {PERCENTILES[0]} and {PERCENTILES[1]} of the brain are both {low:g}, so "
            "there is no contrast to normalise. Fetch it again."
        )
    mapped = ((scan.volume - low) / (high - low)).astype(np.float32)
    scan = Scan(mapped, scan.spacing, scan.affine, Provenance(str(paths[modality]), "nifti", "MR"))
    return Volume(scan, brain, tissue.volume != 0, (low, high))


def _file(folder: Path, what: str) -> Path:
    names = [f"{folder.name}_{what}{ending}" for ending in ENDINGS]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    there = ", ".join(path.name for path in _volumes(folder))
    if found:
        raise ScanError(f"{folder}: both {names[0]} and {names[1]} are there; remove one of them.")
    hint = " Cases for validation come without: give the training data." if what == "seg" else ""
    raise ScanError(
        f"{folder}: there is no {names[0]} (nor {names[1]}), only {there}; rename the file, or fetch it again.{hint}"
    )


def _grid(scan: Scan) -> str:
    return f"{' x '.join(map(str, scan.volume.shape))} voxels (z, y, x) from {np.round(scan.affine[:3, 3], 1).tolist()}"


def choose_slices(volume: Volume, count: int, min_area: float) -> tuple[list[int], list[int]]:
    """Slices with tumour and slices without, by the module's rule.

    count: of each kind, 0 for all. min_area: of tumour, in mm2, for a slice to show it.
    """
    brain = reduce(volume.brain.astype(int), "z y x -> z", "sum")
    area = areas(volume)
    enough = brain >= BRAIN * brain.max()
    return (
        _spread(np.flatnonzero(enough & (area >= min_area) & (area > 0)), count),
        _spread(np.flatnonzero(enough & (area == 0)), count),
    )


def areas(volume: Volume) -> np.ndarray:
    """Area of the tumour on each slice in mm2, "z"."""
    _, height, width = spacing_of(volume.scan.affine)
    return reduce(volume.tumour.astype(int), "z y x -> z", "sum") * height * width


def _spread(slices: np.ndarray, count: int) -> list[int]:
    """The middles of `count` equal parts; all where there are no more, or for 0."""
    if count == 0 or len(slices) <= count:
        return slices.tolist()
    return slices[list(even_places(len(slices), count))].tolist()


def write_brats(
    source: str | Path,
    out: str | Path,
    *,
    modality: Modality = "flair",
    label: Label = "tumour",
    count: int = 4,
    min_area: float = 100.0,
    seed: int = 0,
    skip: bool = False,
) -> Manifest:
    """Write slices and tumours as NIfTI and `manifest.csv` into a new folder, whole or not at all.

    count, min_area: as in `choose_slices`. skip: leave out patients who cannot be used and list them in `skipped.txt`.
    Attribute: area of the tumour on the slice in mm2. Patients are split by `hash_split`. Errors: ConfigError for what
    is not BraTS, settings that cannot be meant and a folder that is not empty; ScanError that lists the patients.
    """
    from rich.console import Console
    from rich.progress import track

    source, out = Path(source), Path(out)
    if modality not in get_args(Modality) or label not in get_args(Label):
        raise ConfigError(
            f"modality {modality!r}, label {label!r}: expected {', '.join(get_args(Modality))}, and "
            f"{' or '.join(get_args(Label))}."
        )
    if count < 0 or not 0 <= min_area < np.inf:
        raise ConfigError(f"count {count}, min_area {min_area} mm2: expected 0 (all) or more slices, at 0 mm2 or more.")
    with whole_folder(out, ()) as folder:
        grades = read_grades(source) if label == "grade" else {}
        cases, rows = Cases(source, skip=skip), []
        found = find_patients(source)
        for patient in track(found, description="patients", console=Console(stderr=True), transient=True):
            with cases.case():
                grade = _grade(patient.name, grades, source) if label == "grade" else None
                volume = read_volume(patient, modality)
                with_tumour, without = choose_slices(volume, count, min_area)
                if not with_tumour:
                    raise ScanError(
                        f"{patient}: the tumour covers {areas(volume).max():g} mm2 at most, and {min_area:g} are "
                        "expected on a slice with at least half of the largest brain; lower --min-area."
                    )
                for z in sorted(with_tumour + ([] if label == "grade" else without)):
                    name = f"{patient.name}_{modality}_z{z:03d}.nii.gz"
                    rows.append(_write_slice(volume, z, folder, name, patient.name, grade, seed))
        cases.settle(folder)
        Manifest(rows, str(out)).write(folder / "manifest.csv")
    return Manifest.read(out / "manifest.csv")


def _grade(patient: str, grades: dict[str, str], source: Path) -> int:
    grade = grades.get(patient)
    if grade not in GRADES:
        came = "does not name the patient" if grade is None else f"says {grade!r} of the patient"
        raise ScanError(f"{source / patient}: {MAPPING} {came}; expected {' or '.join(GRADES)}. Correct it.")
    return GRADES.index(grade)


def _write_slice(
    volume: Volume, z: int, folder: Path, name: str, patient: str, grade: int | None, seed: int
) -> ManifestRow:
    scan, tumour = volume.scan, volume.tumour[z : z + 1]
    affine = scan.affine.copy()
    affine[:3, 3] = world(scan, (z, 0, 0))
    plane = Scan(scan.volume[z : z + 1], scan.spacing, affine, scan.provenance)
    shows = bool(tumour.any())
    return ManifestRow(
        path=write_nifti(plane.volume, plane, folder / "scans" / name),
        patient=patient,
        label=int(shows) if grade is None else grade,
        split=hash_split(patient, seed),
        mask=write_nifti(tumour.astype(np.uint8), plane, folder / "masks" / name) if shows else None,
        attributes={"tumour_mm2": round(float(areas(volume)[z]), 3)},
        notes={"slice": str(z), "percentiles": "{:g} {:g}".format(*volume.percentiles)},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.brats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser, "BraTS: one folder a patient")
    parser.add_argument("--modality", choices=get_args(Modality), default="flair", help="which volume (default flair)")
    parser.add_argument("--label", choices=get_args(Label), default="tumour", help="the class (default tumour)")
    parser.add_argument("--count", type=int, default=4, help="slices of either kind a patient (default 4; 0: all)")
    parser.add_argument("--min-area", type=float, default=100.0, help="mm2 of tumour on a slice (default 100)")
    options = parser.parse_args(arguments)
    return run_loader(
        lambda: write_brats(
            options.source,
            options.out,
            modality=options.modality,
            label=options.label,
            count=options.count,
            min_area=options.min_area,
            seed=options.seed,
            skip=options.skip,
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
