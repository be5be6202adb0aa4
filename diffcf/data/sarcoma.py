"""Soft-tissue sarcomas of the limbs (Vallieres et al. 2015), CT volumes with the tumour's region, as stacks of slices.

    python -m diffcf.data.sarcoma --source STS --out runs/data/sarcoma

STS holds NIfTI files in HU, NAME_ct.nii.gz and NAME_mask.nii.gz of every patient, as they are made of TCIA's
Soft-tissue-Sarcoma. A row of the manifest is a stack of --slices neighbouring slices (default 4, as in paper 004), and
no slice lies in two. The label is whether they show tumour: 1 where it covers --min-area or more on each of them, 0
where not a voxel of them is tumour; stacks between are left out. The volumes stay where they are.

Where a stack lies says something of its label, since scans reach beyond the tumour on both sides: the attribute `place`
is its middle as a share of the volume, 0 to 1 from inferior to superior, and |place - 1/2| is the rule that a
classifier has to be better than.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange, reduce

from diffcf.data.manifest import Manifest, ManifestRow, hash_split
from diffcf.data.regions import Cases, add_common_options, existing_folder, read_region, run_loader
from diffcf.errors import ConfigError, ScanError
from diffcf.folders import whole_folder
from diffcf.scans import read_scan
from diffcf.scans.grid import spacing_of

SCAN, MASK = "_ct.nii.gz", "_mask.nii.gz"


def find_patients(source: Path) -> dict[str, Path]:
    """The scan of every patient, by name. Errors: ConfigError for none, and for a scan or a mask without the other."""
    existing_folder(source, "STS, which holds STS_001_ct.nii.gz and so on")
    scans, masks = (
        {path.name.removesuffix(ending): path for path in sorted(source.glob(f"*{ending}"))} for ending in (SCAN, MASK)
    )
    alone = sorted(scans.keys() ^ masks.keys())
    if alone or not scans:
        came = f"of {alone[0]} there is only one of both files" if alone else "there is no such file"
        raise ConfigError(f"{source}: expected NAME{SCAN} and NAME{MASK} of every patient, and {came}.")
    return scans


def stacks(areas: np.ndarray, slices: int, min_area: float) -> list[tuple[int, int]]:
    """(first slice, label) of the stacks of a volume, from the tumour's areas "z" in mm2.

    They are laid end to end, with what is left over shared between both ends.
    """
    count = len(areas) // slices
    first = (len(areas) - count * slices) // 2
    of_stack = rearrange(areas[first : first + count * slices], "(n s) -> n s", s=slices)
    shows, none = reduce(of_stack >= min_area, "n s -> n", "all"), reduce(of_stack == 0, "n s -> n", "all")
    return [(first + slices * int(place), int(shows[place])) for place in np.flatnonzero(shows | none)]


def write_sarcoma(
    source: str | Path,
    out: str | Path,
    *,
    slices: int = 4,
    min_area: float = 100.0,
    seed: int = 0,
    skip: bool = False,
) -> Manifest:
    """Write `manifest.csv` into a new folder, whole or not at all, once every volume that it names was read.

    slices, min_area (mm2): as the module says. skip: leave out what cannot be used and list it in `skipped.txt`.
    Attributes: `place`, and `tumour_mm2`, the mean over the stack. Patients are split by `hash_split`. Errors:
    ConfigError for what is not the data set, settings that cannot be meant and a folder that is not empty; ScanError
    that lists the patients that cannot be used.
    """
    from rich.console import Console
    from rich.progress import track

    source, out = Path(source).absolute(), Path(out)
    if slices < 1 or not 0 < min_area < np.inf:
        raise ConfigError(f"{slices} slices, min_area {min_area} mm2: expected 1 or more, and an area above 0.")
    patients = find_patients(source)
    with whole_folder(out, ()) as folder:
        cases, rows = Cases(source, skip=skip), []
        for name, path in track(patients.items(), description="patients", console=Console(stderr=True), transient=True):
            with cases.case():
                rows += _rows(name, path, slices, min_area, seed)
        cases.settle(folder)
        Manifest(rows, str(out)).write(folder / "manifest.csv")
    return Manifest.read(out / "manifest.csv")


def _rows(name: str, path: Path, slices: int, min_area: float, seed: int) -> list[ManifestRow]:
    scan = read_scan(path)
    mask = path.with_name(f"{name}{MASK}")
    _, height, width = spacing_of(scan.affine)
    areas = reduce(read_region(mask, scan).astype(int), "z y x -> z", "sum") * height * width
    found = stacks(areas, slices, min_area)
    if not found:
        raise ScanError(
            f"{path}: no {slices} neighbouring slices that all show {min_area:g} mm2 of tumour, or none; lower "
            "--min-area or --slices."
        )
    return [
        ManifestRow(
            path=path,
            patient=name,
            label=label,
            split=hash_split(name, seed),
            mask=mask if label else None,
            slices=",".join(map(str, range(first, first + slices))),
            attributes={
                "place": round((first + slices / 2) / len(areas), 4),
                "tumour_mm2": round(float(areas[first : first + slices].mean()), 1),
            },
        )
        for first, label in found
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.sarcoma", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser, "STS: NAME_ct.nii.gz and NAME_mask.nii.gz")
    parser.add_argument("--slices", type=int, default=4, help="of a stack (default 4)")
    parser.add_argument("--min-area", type=float, default=100.0, help="mm2 of tumour on each slice (default 100)")
    options = parser.parse_args(arguments)
    return run_loader(
        lambda: write_sarcoma(
            options.source,
            options.out,
            slices=options.slices,
            min_area=options.min_area,
            seed=options.seed,
            skip=options.skip,
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
