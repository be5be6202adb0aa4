"""CBIS-DDSM (Lee et al. 2017), breast masses with experts' outlines, as grey pictures, masks and a manifest.

    python -m diffcf.data.cbis_ddsm --source CBIS-DDSM --out runs/data/cbis

The folder holds the download of TCIA, mass_case_description_train_set.csv and mass_case_description_test_set.csv, and
anywhere below it the DICOM folders that they point to. One row is one line of these files: a mass on one mammogram, so
that a mass seen from two sides is two rows. --calc adds the calcifications, from calc_case_description_*_set.csv.

A picture is a square cut from the full mammogram around the mask: as long as the mask's longer extent and --margin (a
quarter) of it on either side, moved inwards at the mammogram's edge, and padded by its lowest level where it is larger.
It keeps its size, in pixels (the files say no spacing), and its levels, in PNG of 16 bits: a model takes it with field
"resize" and a window of centre 32767.5 and width 65535.

The label is malignant (1) against benign or benign without callback (0). Attributes are those of paper 001 (section
5.1), which does not say how it codes them; here `subtlety` is the rating from 1 to 5 (0: not rated), `shape` the most
irregular of ROUND 1, OVAL 2, LOBULATED 3 and IRREGULAR 4 (blank where the shape names no outline, such as
ARCHITECTURAL_DISTORTION alone), and `circumscription`, `obscuration`, `ill_definiteness` and `spiculation` are 1 where
`mass margins` has the word CIRCUMSCRIBED, OBSCURED, ILL_DEFINED or SPICULATED, otherwise 0 (MICROLOBULATED alone: all
0), and blank where it is blank. The words themselves are notes.

Splits are the published ones; val are 15% of the training patients, by `hash_split`. A patient who is in files of both
is one of test with everything, and a warning says how many there are. Lines that cannot be used, such as a mask of
another size than its mammogram, are refused together; with --skip they are left out, and skipped.txt lists them.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffcf.data.cbis_dicom import Download, square_around
from diffcf.data.manifest import Manifest, ManifestRow, Split, hash_split
from diffcf.data.regions import Cases, add_common_options, existing_folder, run_loader, write_picture
from diffcf.errors import ConfigError, ScanError
from diffcf.folders import whole_folder

LABELS = {"BENIGN": 0, "BENIGN_WITHOUT_CALLBACK": 0, "MALIGNANT": 1}
OUTLINES = {"ROUND": 1.0, "OVAL": 2.0, "LOBULATED": 3.0, "IRREGULAR": 4.0}
NO_OUTLINES = (
    *("ARCHITECTURAL_DISTORTION", "ASYMMETRIC_BREAST_TISSUE", "FOCAL_ASYMMETRIC_DENSITY", "LYMPH_NODE", "TUBULAR"),
)
MARGINS = {
    "circumscription": "CIRCUMSCRIBED",
    "obscuration": "OBSCURED",
    "ill_definiteness": "ILL_DEFINED",
    "spiculation": "SPICULATED",
}
NO_ATTRIBUTE = ("MICROLOBULATED",)  # a margin that paper 001 has no attribute for
BLANK = ("", "N/A", "NAN")
PATHS = ("image file path", "cropped image file path", "roi mask file path")
COMMON = ("patient id", "left or right breast", "image view", "abnormality id", "pathology", "subtlety", *PATHS)
COLUMNS = {"mass": (*COMMON, "mass shape", "mass margins"), "calc": COMMON}
NOTED = {  # column -> note
    "left or right breast": "breast",
    "image view": "view",
    "abnormality id": "abnormality",
    "pathology": "pathology",
    "assessment": "assessment",
    "breast density": "density",
    "mass shape": "shape",
    "mass margins": "margins",
    "calc type": "type",
    "calc distribution": "distribution",
}
VAL = 0.15  # of the training patients


@dataclass(frozen=True)
class Abnormality:
    """A line of the CSV files. where: file and line. cells: by column, in lower case with spaces for underscores."""

    kind: str
    part: Split
    where: str
    cells: dict[str, str]

    @property
    def name(self) -> str:
        """Of its files; what a table says cannot lead out of the folder."""
        columns = ("patient id", "left or right breast", "image view", "abnormality id")
        return re.sub(r"[^\w.-]", "-", "_".join([self.kind, *(self.cells[column] for column in columns)]))


def read_table(path: Path, kind: str, part: Split) -> list[Abnormality]:
    """The lines of one CSV file. Errors: ConfigError for a missing column, no lines, a line cut off, no patient."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [_column(name) for name in reader.fieldnames or []]
            lines = [(reader.line_num, list(row.values())) for row in reader]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); fetch it again.") from error
    absent = [column for column in COLUMNS[kind] if column not in columns]
    if absent or not lines:
        lacks = f"the column(s) {', '.join(absent)}" if absent else "lines"
        raise ConfigError(
            f"{path} lacks {lacks}; it has the columns {', '.join(columns) or 'none'}. Expected the file that TCIA "
            "gives with CBIS-DDSM; fetch it again."
        )
    found = []
    for number, values in lines:
        if len(values) != len(columns) or None in values:
            raise ConfigError(f"{path}, line {number}: not as many values as columns; fetch it again.")
        cells = dict(zip(columns, (value.strip() for value in values), strict=True))  # paths end in line breaks
        if not cells["patient id"]:
            raise ConfigError(f"{path}, line {number}: no patient, so the split cannot be by patient. Fetch it again.")
        found.append(Abnormality(kind, part, f"{path.name}, line {number}", cells))
    return found


def _column(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def label_of(one: Abnormality) -> int:
    """The class of an abnormality. Errors: ScanError for an unknown pathology."""
    pathology = one.cells["pathology"].upper()
    if pathology not in LABELS:
        raise ScanError(f"{one.where}: pathology {pathology!r}; expected {', '.join(LABELS)}. Correct the file.")
    return LABELS[pathology]


def attributes_of(one: Abnormality) -> dict[str, float | None]:
    """The six attributes, coded as the module says; None where one is not known. Errors: ScanError for other words."""
    rating = one.cells["subtlety"]
    if rating.upper() not in (*BLANK, *"012345"):
        raise ScanError(f"{one.where}: subtlety {rating!r}; expected a rating from 1 to 5 (0: none). Correct the file.")
    shapes = _words(one, "mass shape", (*OUTLINES, *NO_OUTLINES))
    margins = _words(one, "mass margins", (*MARGINS.values(), *NO_ATTRIBUTE))
    found: dict[str, float | None] = {
        "subtlety": float(rating) if rating.isdecimal() and rating != "0" else None,
        "shape": max((OUTLINES[word] for word in shapes if word in OUTLINES), default=None),
    }
    return found | {name: float(word in margins) if margins else None for name, word in MARGINS.items()}


def _words(one: Abnormality, column: str, known: Sequence[str]) -> list[str]:
    """The words of a cell, joined there by hyphens."""
    text = one.cells.get(column, "").upper()
    words = [] if text in BLANK else [word.strip() for word in text.split("-")]
    unknown = [word for word in words if word not in known]
    if unknown:
        raise ScanError(
            f"{one.where}: {column} {text!r} has the unknown word {unknown[0]!r}; expected {', '.join(known)}, joined "
            "by hyphens. Correct the file."
        )
    return words


def splits_of(found: Sequence[Abnormality], seed: int) -> dict[str, Split]:
    """The split of each patient: test where any line of test has them, otherwise train or val."""
    tested = {one.cells["patient id"] for one in found if one.part == "test"}
    patients = {one.cells["patient id"] for one in found}
    return {name: "test" if name in tested else hash_split(name, seed, val=VAL, test=0.0) for name in patients}


def write_cbis_ddsm(
    source: str | Path,
    out: str | Path,
    *,
    calc: bool = False,
    margin: float = 0.25,
    seed: int = 0,
    skip: bool = False,
) -> Manifest:
    """Write crops and masks as PNG and `manifest.csv` into a new folder, whole or not at all.

    calc: with the calcifications, whose attributes are blank but for the subtlety. margin: on either side of the mask,
    of its longer extent. seed: of the choice of val. skip: leave out lines that cannot be used and list them in
    `skipped.txt`. Errors: ConfigError for what is not CBIS-DDSM, a margin below 0 and a folder that is not empty;
    ScanError that lists the lines that cannot be used.
    """
    from rich.console import Console
    from rich.progress import track

    source, out = Path(source), Path(out)
    if not 0 <= margin < math.inf:
        raise ConfigError(f"margin {margin}: expected 0 or more, of the mask's longer extent.")
    with whole_folder(out, ()) as folder:
        download = Download(existing_folder(source, "CBIS-DDSM as TCIA gives it"))
        found = _read_tables(download, ("mass", "calc") if calc else ("mass",))
        splits = splits_of(found, seed)
        both = {one.cells["patient id"] for one in found if one.part != "test"}
        both = {patient for patient in both if splits[patient] == "test"}
        if both:
            warnings.warn(f"{len(both)} patient(s) of both training and test files are in test.", stacklevel=2)
        cases, rows = Cases(source, skip=skip), []
        names: dict[str, str] = {}
        for one in track(found, description="abnormalities", console=Console(stderr=True), transient=True):
            with cases.case():
                if one.name in names:
                    raise ScanError(f"{one.where}: {one.name} is {names[one.name]} already. Remove one of the lines.")
                names[one.name] = one.where
                rows.append(_write(one, download, folder, splits[one.cells["patient id"]], margin))
        cases.settle(folder)
        Manifest(rows, str(out)).write(folder / "manifest.csv")
    return Manifest.read(out / "manifest.csv")


def _read_tables(download: Download, kinds: Sequence[str]) -> list[Abnormality]:
    found = []
    parts: dict[str, Split] = {"train": "train", "test": "test"}
    for kind in kinds:
        for part, split in parts.items():
            name = f"{kind}_case_description_{part}_set.csv"
            paths = download.tables[name]
            if len(paths) != 1:
                came = f"{len(paths)} files {name}, {', '.join(map(str, paths))}" if paths else f"no {name}"
                raise ConfigError(f"{download.source}: {came} below it; expected the one that TCIA gives.")
            found += read_table(paths[0], kind, split)
    return found


def _write(one: Abnormality, download: Download, folder: Path, split: Split, margin: float) -> ManifestRow:
    """Write one abnormality; everything is read and cut before the first file is written."""
    label, attributes = label_of(one), attributes_of(one)
    image, cropped, roi = (one.cells[column].replace("\\", "/") for column in PATHS)
    try:
        levels = download.mammogram(image)
        region = download.region([roi, cropped], levels.shape)
    except ScanError as error:
        raise ScanError(f"{one.where}: {error}") from error
    square = square_around(region, margin)
    crop, mask = square.cut(levels, int(levels.min())), square.cut(region, False)
    notes = {note: one.cells[column] for column, note in NOTED.items() if column in one.cells}
    box = (square.top, square.left, square.top + square.side, square.left + square.side)
    return ManifestRow(
        path=write_picture(crop, folder / "images" / f"{one.name}.png"),
        patient=one.cells["patient id"],
        label=label,
        split=split,
        mask=write_picture(mask, folder / "masks" / f"{one.name}.png"),
        attributes=attributes,
        notes={"kind": one.kind, **notes, "box": " ".join(map(str, box))},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.cbis_ddsm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(parser, "CBIS-DDSM: the CSV files and the DICOM tree")
    parser.add_argument("--calc", action="store_true", help="with the calcifications")
    parser.add_argument("--margin", type=float, default=0.25, help="around the mask, of its extent (default 0.25)")
    options = parser.parse_args(arguments)
    return run_loader(
        lambda: write_cbis_ddsm(
            options.source,
            options.out,
            calc=options.calc,
            margin=options.margin,
            seed=options.seed,
            skip=options.skip,
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
