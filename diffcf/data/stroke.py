"""Coded CT of the brain after a stroke, as IST-3 has it: a folder of DICOM series and a table of what readers saw.

    python -m diffcf.data.stroke --source SCANS --table labels.csv --out runs/data/stroke

The table is a CSV with a row a scan; other columns are not read:

    scan       name of the series' folder below SCANS
    patient    whose it is: a patient's scans are in one split
    side       none, left, right or both: where there is a lesion
    grade      optional, its size: 0 (no lesion) to 4, blank where not coded
    territory  optional, of the artery: "left MCA" or "MCA left", and so ACA and PCA; blank where not coded

Labels are 0 no lesion, 1 left, 2 right, 3 both (paper 003), or with --label lesion whether there is one (1) or not (0).

The scans stay where they are, and the manifest names them by their path. Its column `slices` says which a model sees,
--slices many (default 11, as in paper 003, which has them at 400 x 500 pixels), evenly spaced. A model takes them with
a window for the brain, of centre 40 and width 80, say. Scans of a tilted gantry, as many of the head are, are refused
unless --allow-tilt takes their slices as they are.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from diffcf.data.manifest import Manifest, ManifestRow, hash_split
from diffcf.data.phantom.brain import TERRITORIES
from diffcf.data.regions import SHOWN, Cases, add_common_options, even_slices, existing_folder, run_loader
from diffcf.errors import ConfigError, ScanError
from diffcf.folders import whole_folder
from diffcf.scans import read_scan

Label = Literal["side", "lesion"]
SIDES = ("none", "left", "right", "both")  # in the order of the labels
REQUIRED = ("scan", "patient", "side")
GRADES = ("0", "1", "2", "3", "4")


@dataclass(frozen=True)
class Coded:
    """A row of the table. grade: 0 to 4. territory: index in `TERRITORIES`. None where it is not coded."""

    scan: str
    patient: str
    side: str
    grade: int | None
    territory: int | None


def read_table(path: Path) -> list[Coded]:
    """The table's rows, in its order.

    Errors: ConfigError that lists, by line, what is wrong: columns missing, a scan twice, no scan or patient, words
    that are none of the module's, and what contradicts itself: no lesion with a size or territory, a lesion of size 0,
    a territory of the other side. ConfigError too for no file and no rows.
    """
    if not path.is_file():
        raise ConfigError(f"there is no table at {path}; expected a CSV with the columns {', '.join(REQUIRED)}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lines = [(reader.line_num, row) for row in reader]
            columns = list(reader.fieldnames or [])
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); save it as 'CSV UTF-8'.") from error
    absent = [column for column in REQUIRED if column not in columns]
    if absent or not lines:
        raise ConfigError(
            f"{path} has {len(lines)} row(s) and the column(s) {', '.join(columns) or 'none'}; expected at least one "
            f"row and {', '.join(REQUIRED)}, separated by commas."
        )
    rows: dict[str, Coded] = {}
    problems = []
    for line, cells in lines:
        try:
            row = _coded({key: (cells.get(key) or "").strip() for key in (*REQUIRED, "grade", "territory")})
            if row.scan in rows:
                raise ValueError(f"scan {row.scan!r} is in the table twice")
            rows[row.scan] = row
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ConfigError(f"{path}: {len(problems)} row(s) cannot be used; correct them.{shown}{more}")
    return list(rows.values())


def _coded(cells: Mapping[str, str]) -> Coded:
    """One row. Errors: ValueError that says what is wrong with it."""
    scan, patient, side, grade = cells["scan"], cells["patient"], cells["side"].lower(), cells["grade"]
    if not scan or not patient:
        raise ValueError(f"scan {scan!r} of patient {patient!r}: neither may be blank")
    if Path(scan).name != scan or scan == "..":
        raise ValueError(f"scan {scan!r} is not the name of a folder right below the source")
    if side not in SIDES:
        raise ValueError(f"side {cells['side']!r}; expected {', '.join(SIDES)}")
    if grade and grade not in GRADES:
        raise ValueError(f"grade {grade!r}; expected 0 to 4, or blank")
    territory = _territory(cells["territory"])
    if side == "none" and (grade not in ("", "0") or territory is not None):
        raise ValueError(f"side none, but grade {grade or 'blank'} and territory {cells['territory'] or 'blank'}")
    if side != "none" and grade == "0":
        raise ValueError(f"side {side}, but grade 0, no lesion")
    if territory is not None and side != "both" and not TERRITORIES[territory].startswith(side):
        raise ValueError(f"side {side}, but territory {TERRITORIES[territory]}")
    return Coded(scan, patient, side, int(grade) if grade else None, territory)


def _territory(text: str) -> int | None:
    words = set(text.lower().split())
    for index, name in enumerate(TERRITORIES):
        if words == set(name.lower().split()):
            return index
    if text:
        raise ValueError(f"territory {text!r}; expected {', '.join(TERRITORIES)}, or blank")
    return None


def write_stroke(
    source: str | Path,
    table: str | Path,
    out: str | Path,
    *,
    label: Label = "side",
    slices: int = 11,
    seed: int = 0,
    skip: bool = False,
    allow_tilt: bool = False,
) -> Manifest:
    """Write `manifest.csv` into a new folder, whole or not at all, once every scan that it names was read.

    label, slices: as the module says. skip: leave out scans that cannot be used and list them in `skipped.txt`.
    allow_tilt: take slices of a tilted gantry as they are, here and by the manifest's column of that name.
    Attributes: `grade` and `territory` (index in `TERRITORIES`, -1 without a lesion), as the territory phantoms have
    them. Patients are split by `hash_split`. Errors: ConfigError as in `read_table`, for settings that cannot be meant
    and a folder that is not empty; ScanError that lists the scans that cannot be used.
    """
    from rich.console import Console
    from rich.progress import track

    source, out = existing_folder(Path(source), "the DICOM series, one folder each").absolute(), Path(out)
    if label not in get_args(Label) or slices < 1:
        raise ConfigError(f"label {label!r}, {slices} slices: expected {' or '.join(get_args(Label))}, and 1 or more.")
    coded = read_table(Path(table))
    with whole_folder(out, ()) as folder:
        cases, rows = Cases(source, skip=skip), []
        for row in track(coded, description="scans", console=Console(stderr=True), transient=True):
            with cases.case():
                path = source / row.scan
                if not path.is_dir():
                    raise ScanError(f"{path}: there is no such folder, and the table names it.")
                rows.append(
                    _row(
                        row, path, even_slices(read_scan(path, allow_tilt=allow_tilt), slices), label, seed, allow_tilt
                    )
                )
        cases.settle(folder)
        Manifest(rows, str(out)).write(folder / "manifest.csv")
    return Manifest.read(out / "manifest.csv")


def _row(coded: Coded, path: Path, slices: str, label: Label, seed: int, allow_tilt: bool) -> ManifestRow:
    lesion = coded.side != "none"
    grade = coded.grade if lesion else 0
    territory = coded.territory if lesion else -1
    return ManifestRow(
        path=path,
        patient=coded.patient,
        label=SIDES.index(coded.side) if label == "side" else int(lesion),
        split=hash_split(coded.patient, seed),
        slices=slices,
        allow_tilt=allow_tilt,
        attributes={
            "grade": None if grade is None else float(grade),
            "territory": None if territory is None else float(territory),
        },
        notes={"side": coded.side},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.stroke", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser, "the scans: one folder of DICOM files each")
    parser.add_argument("--table", type=Path, required=True, help="CSV of what was coded, a row a scan")
    parser.add_argument("--label", choices=get_args(Label), default="side", help="the class (default side)")
    parser.add_argument("--slices", type=int, default=11, help="of a scan, evenly spaced (default 11)")
    parser.add_argument("--allow-tilt", action="store_true", help="take scans of a tilted gantry slice by slice")
    options = parser.parse_args(arguments)
    return run_loader(
        lambda: write_stroke(
            options.source,
            options.table,
            options.out,
            label=options.label,
            slices=options.slices,
            seed=options.seed,
            skip=options.skip,
            allow_tilt=options.allow_tilt,
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
