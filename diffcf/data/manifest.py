"""The manifest: one CSV that says which scans there are, whose they are and what they may be used for.

Every training and evaluation script takes one. Splits are by patient and cannot be got wrong: a manifest in which a
patient lies in two splits does not load, and rows are handed out by split (or fold) only. The columns are described in
docs/manifest.md.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from diffcf.errors import ConfigError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
REQUIRED = ("path", "patient", "label")
OPTIONAL = ("mask", "split", "slices", "centre", "allow_tilt")
ATTRIBUTE, NOTE = "attr_", "note_"
SHOWN = 20  # problems that one error message lists


@dataclass(frozen=True)
class ManifestRow:
    """One scan of a manifest.

    path: absolute, a file or a DICOM folder. label: class index, None = unlabelled. mask: absolute, non-zero = region.
    slices: as for `--slices`, "10,20,30" or "12.5mm,30mm". centre: RAS (x, y, z) in mm of the field that a model with
    field "crop" sees. allow_tilt: slices of a tilted gantry are taken as they are. attributes: rated or measured
    quantities, None = not rated. notes: text that nothing reads. index: position in the manifest, from 0; `Manifest`
    sets it. folder: of the manifest's file, where it was read.
    """

    path: Path
    patient: str
    label: int | None
    split: Split
    mask: Path | None = None
    slices: str | None = None
    centre: tuple[float, float, float] | None = None
    allow_tilt: bool = False
    attributes: Mapping[str, float | None] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    index: int = -1
    folder: Path | None = None


class Manifest:
    """Checked rows, handed out by split.

    Errors (ConfigError, all problems in one message): a patient in two splits, one scan under two patients, the same
    scan with the same slices twice, an unknown split, a label below 0, no rows.
    """

    def __init__(self, rows: Iterable[ManifestRow], source: str = "manifest") -> None:
        self._rows = tuple(dataclasses.replace(row, index=index) for index, row in enumerate(rows))
        self.source = source
        _refuse(_conflicts(self._rows, [f"row {index}" for index in range(len(self._rows))]), source)

    @classmethod
    def read(cls, path: str | Path, *, seed: int = 0) -> Manifest:
        """Read and check a CSV file. Without a column `split`, patients are split by `hash_split` with `seed`.

        Errors: ConfigError that lists, by line of the file, what is wrong: columns missing or unknown, values that are
        not what the column takes, files that do not exist, and everything the class refuses.
        """
        path = Path(path)
        lines, rows = _parse(path, seed)
        _refuse(_conflicts(rows, [f"line {line}" for line in lines]), str(path))
        return cls(rows, str(path))

    @classmethod
    def read_all(cls, paths: Sequence[str | Path], *, seed: int = 0) -> Manifest:
        """Several files as one manifest: a patient who is in train of one and in val of another is refused."""
        read = [cls.read(path, seed=seed) for path in paths]
        return read[0] if len(read) == 1 else cls([row for one in read for row in one._rows], "manifests together")

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.split(name))} {name}" for name in SPLITS)
        return f"Manifest({self.source}: {counts})"

    def split(self, name: str) -> list[ManifestRow]:
        """The rows of one split, in the manifest's order; empty where it has none. Errors: ConfigError for a name."""
        if name not in SPLITS:
            raise ConfigError(f"there is no split {name!r}; a manifest has {', '.join(SPLITS)}.")
        return [row for row in self._rows if row.split == name]

    def redrawn(self, seed: int) -> Manifest:
        """The same rows under other splits, `hash_split` of each patient with `seed`: for runs over several splits.

        What was the test split is not kept apart; figures of such runs are over their own test patients. A manifest of
        test rows alone stays as it is: no run has learnt from it.
        """
        if all(row.split == "test" for row in self._rows):
            return self
        rows = [dataclasses.replace(row, split=hash_split(row.patient, seed)) for row in self._rows]
        return Manifest(rows, self.source)

    def folds(self, k: int, seed: int = 0) -> list[tuple[list[ManifestRow], list[ManifestRow]]]:
        """k pairs (train, val) over the splits train and val together; test is never part of it.

        Each patient is in exactly one val part. Classes are balanced over the folds as patients allow: patients, the
        most uneven first and otherwise in an order drawn from `seed`, go where the class shares stay most equal.

        Errors: ConfigError for k < 2, and for a class with fewer patients than folds (a fold without it has no AUC).
        """
        rows = [row for row in self._rows if row.split != "test"]
        if k < 2:
            raise ConfigError(f"{k} fold(s); cross-validation needs at least 2.")
        fold_of = _stratified_folds(rows, k, seed, self.source)
        return [
            (
                [row for row in rows if fold_of[row.patient] != fold],
                [row for row in rows if fold_of[row.patient] == fold],
            )
            for fold in range(k)
        ]

    def class_counts(self, split: str) -> dict[int | None, int]:
        """Rows of each class in a split, in order of the class; None counts the unlabelled ones, last."""
        counts = Counter(row.label for row in self.split(split))
        return {label: counts[label] for label in sorted(counts, key=_class_order)}

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the attributes (without `attr_`) that any row has, in order of appearance."""
        return tuple(dict.fromkeys(name for row in self._rows for name in row.attributes))

    def write(self, path: str | Path) -> Path:
        """Write as CSV; what lies below the file's folder is written relative to it. Whole or not at all."""
        path = Path(path)
        notes = tuple(dict.fromkeys(name for row in self._rows for name in row.notes))
        base = Path(os.path.abspath(path.parent))
        lines = [_cells(row, base) for row in self._rows]
        columns = [*REQUIRED, *(key for key in OPTIONAL if key == "split" or any(line[key] for line in lines))]
        columns += [ATTRIBUTE + name for name in self.attribute_names] + [NOTE + name for name in notes]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path


def hash_split(patient: str, seed: int = 0, *, val: float = 0.15, test: float = 0.15) -> Split:
    """The split of a patient: a number in [0, 1) from SHA-256 of "seed:patient"; below `test`, then below `test + val`.

    It depends on nothing but the patient's name and the seed, so adding patients never moves another one. The shares
    are met on average; with a handful of patients a split may stay empty: name the splits yourself there.
    """
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if draw < test else "val" if draw < test + val else "train"


def _parse(path: Path, seed: int) -> tuple[list[int], list[ManifestRow]]:
    """The file's rows, each checked by itself, with the lines they end on."""
    if not path.is_file():
        raise ConfigError(f"there is no manifest at {path}; docs/manifest.md says how to write one.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # a spreadsheet puts a byte order mark in front
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); save it as 'CSV UTF-8'.") from error
    base = Path(os.path.abspath(path.parent))
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = list(reader.fieldnames or [])
    _refuse(_column_problems(columns), str(path))
    lines, rows, problems = [], [], []
    for cells in reader:
        here: list[str] = []
        row = _row(cells, base, seed, "split" in columns, here)
        problems += [f"line {reader.line_num}: {problem}" for problem in here]
        if row is not None:
            lines.append(reader.line_num)
            rows.append(row)
    _refuse(problems, str(path))
    return lines, rows


def _column_problems(columns: Sequence[str]) -> Iterator[str]:
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        found = ", ".join(columns) or "none"
        hint = " Separate columns by commas." if len(columns) == 1 and ";" in columns[0] else ""
        yield f"missing column(s) {', '.join(missing)}; found: {found}.{hint}"
        return
    for column in columns:
        if column not in (*REQUIRED, *OPTIONAL) and not column.startswith((ATTRIBUTE, NOTE)):
            yield (
                f"unknown column {column!r}: expected {', '.join((*REQUIRED, *OPTIONAL))}, {ATTRIBUTE}NAME for a "
                f"number or {NOTE}NAME for text that nothing reads."
            )
    yield from (f"column {column!r} appears twice" for column, count in Counter(columns).items() if count > 1)


def _row(cells: dict, base: Path, seed: int, has_split: bool, problems: list[str]) -> ManifestRow | None:
    """One row from its cells; what is wrong with it goes to `problems`."""
    if None in cells or None in cells.values():
        problems.append("not as many values as the header has columns (a value with commas needs quotes)")
        return None
    cells = {key: value.strip() for key, value in cells.items()}
    patient = cells["patient"]
    if not patient:
        problems.append("patient is blank; without it the split cannot be by patient")
    split = cells["split"] if has_split else hash_split(patient, seed)
    return ManifestRow(
        path=_existing(cells["path"], base, "path", problems),
        patient=patient,
        label=_label(cells["label"], problems),
        split=split,  # type: ignore[arg-type]  # an unknown one is refused with the conflicts
        mask=_existing(cells["mask"], base, "mask", problems) if cells.get("mask") else None,
        slices=cells.get("slices") or None,
        centre=_centre(cells.get("centre", ""), problems),
        allow_tilt=_flag(cells.get("allow_tilt", ""), "allow_tilt", problems),
        attributes={
            key.removeprefix(ATTRIBUTE): _number(value, key, problems)
            for key, value in cells.items()
            if key.startswith(ATTRIBUTE)
        },
        notes={key.removeprefix(NOTE): value for key, value in cells.items() if key.startswith(NOTE)},
        folder=base,
    )


def _existing(text: str, base: Path, column: str, problems: list[str]) -> Path:
    path = Path(os.path.abspath(base / Path(text).expanduser()))
    if not text:
        problems.append(f"{column} is blank")
    elif not path.exists():
        problems.append(f"{column} {text!r}: no such file or folder (looked at {path})")
    return path


def _label(text: str, problems: list[str]) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        problems.append(f"label {text!r} is not a class index: expected 0, 1, ..., or blank for unlabelled")
        return None
    return int(text)


def _number(text: str, column: str, problems: list[str]) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        problems.append(f"{column} {text!r} is not a finite number; leave it blank where it is not known")
        return None
    return value


def _flag(text: str, column: str, problems: list[str]) -> bool:
    if text not in ("", "0", "1"):
        problems.append(f"{column} {text!r}: expected 1, 0 or blank")
    return text == "1"


def _centre(text: str, problems: list[str]) -> tuple[float, float, float] | None:
    if not text:
        return None
    try:
        x, y, z = (float(part) for part in text.split())
    except ValueError:
        x = y = z = math.nan
    if not all(math.isfinite(value) for value in (x, y, z)):
        problems.append(f"centre {text!r}: expected 'x y z', three numbers in mm (RAS) with spaces between")
        return None
    return (x, y, z)


def _conflicts(rows: Sequence[ManifestRow], names: Sequence[str]) -> Iterator[str]:
    """What is wrong between rows; `names` says where each one stands."""
    if not rows:
        yield "no rows"
    splits: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    owners: dict[Path, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    seen: dict[Hashable, list[str]] = defaultdict(list)
    for row, name in zip(rows, names, strict=True):
        if row.split not in SPLITS:
            yield f"{name}: unknown split {row.split!r}; expected {', '.join(SPLITS)}"
        if row.label is not None and row.label < 0:
            yield f"{name}: label {row.label} is not a class index; expected 0, 1, ..., or None"
        file = row.path.resolve()
        splits[row.patient][row.split].append(name)
        owners[file][row.patient].append(name)
        seen[(file, row.slices, row.centre)].append(name)
    for patient, places in splits.items():
        if len(places) > 1:
            where = "; ".join(f"{split} ({_some(names)})" for split, names in places.items())
            yield f"patient {patient!r} is in {len(places)} splits: {where}. Put all scans of a patient in one split"
    for file, patients in owners.items():
        if len(patients) > 1:
            where = "; ".join(f"{patient!r} ({_some(names)})" for patient, names in patients.items())
            yield f"{file} belongs to {len(patients)} patients: {where}"
    for key, places in seen.items():
        if len(places) > 1:
            yield f"duplicate path {key[0]} with the same slices and centre: {_some(places)}"  # type: ignore[index]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _refuse(problems: Iterable[str], source: str) -> None:
    problems = list(problems)
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ConfigError(f"{source}: {len(problems)} problem(s); see docs/manifest.md.{shown}{more}")


def _cells(row: ManifestRow, base: Path) -> dict[str, str]:
    cells = {
        "path": _relative(row.path, base),
        "patient": row.patient,
        "label": "" if row.label is None else str(row.label),
        "mask": _relative(row.mask, base) if row.mask else "",
        "split": row.split,
        "slices": row.slices or "",
        "centre": " ".join(map(_plain, row.centre)) if row.centre else "",
        "allow_tilt": "1" if row.allow_tilt else "",
    }
    cells |= {ATTRIBUTE + name: "" if value is None else _plain(value) for name, value in row.attributes.items()}
    return cells | {NOTE + name: value for name, value in row.notes.items()}


def _relative(path: Path, base: Path) -> str:
    path = Path(os.path.abspath(path))
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def _plain(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _class_order(label: int | None) -> float:
    return math.inf if label is None else label


def _stratified_folds(rows: Sequence[ManifestRow], k: int, seed: int, source: str) -> dict[str, int]:
    """Patient -> fold, the classes (unlabelled is one) spread evenly, then the rows."""
    classes = sorted({row.label for row in rows}, key=_class_order)
    counts = {patient: np.zeros(len(classes)) for patient in dict.fromkeys(row.patient for row in rows)}
    for row in rows:
        counts[row.patient][classes.index(row.label)] += 1
    if len(counts) < k:
        raise ConfigError(f"{source}: {len(counts)} patient(s) in train and val, too few for {k} folds.")
    for position, label in enumerate(classes):
        owners = sum(count[position] > 0 for count in counts.values())
        if label is not None and owners < k:
            raise ConfigError(
                f"{source}: class {label} has {owners} patient(s) in train and val, too few for {k} folds."
            )
    total = np.sum(list(counts.values()), axis=0)
    order = sorted(counts)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda patient: -float(np.std(counts[patient] / total)))  # stable: ties stay in the drawn order
    filled = np.zeros((k, len(classes)))
    fold_of = {}
    for patient in order:
        spread = []
        for fold in range(k):
            trial = filled.copy()
            trial[fold] += counts[patient]
            spread.append((round(float((trial / total).std(axis=0).mean()), 12), trial[fold].sum()))
        fold_of[patient] = min(range(k), key=spread.__getitem__)
        filled[fold_of[patient]] += counts[patient]
    return fold_of
