"""The DICOM tree of CBIS-DDSM: which file is the mammogram, which the mask, and the square around a region."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffcf.errors import ScanError

CASE_FOLDER = re.compile(r"(Mass|Calc)-(Training|Test)_P_\d+_\w+")  # one a mammogram, and one an abnormality on it


@dataclass(frozen=True)
class Square:
    """A square of whole pixels on a picture; `top` and `left` may be negative, and it may end beyond the picture."""

    top: int
    left: int
    side: int

    def cut(self, array: np.ndarray, padding: int | bool) -> np.ndarray:
        """The square out of a picture "h w"; `padding` where it reaches beyond."""
        made = np.full((self.side, self.side), padding, dtype=array.dtype)
        height, width = array.shape
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.side, height), min(self.left + self.side, width)
        made[top - self.top : bottom - self.top, left - self.left : right - self.left] = array[top:bottom, left:right]
        return made


def square_around(region: np.ndarray, margin: float) -> Square:
    """The square around a region "h w" whose side is that of its longer extent and `margin` times it on either side.

    The region's bounding box is in the middle (of two middles the upper left one). Where the square would reach beyond
    the picture it is moved inwards; one that is larger than the picture is centred on it along that axis.
    """
    edges = []
    for axis in (1, 0):
        found = np.flatnonzero(region.any(axis=axis))
        edges.append((int(found[0]), int(found[-1]) + 1))
    side = int(np.ceil(max(last - first for first, last in edges) * (1 + 2 * margin) - 1e-9))
    starts = []
    for (first, last), length in zip(edges, region.shape, strict=True):
        start = (first + last - side) // 2
        starts.append(min(max(start, 0), length - side) if side <= length else (length - side) // 2)
    return Square(starts[0], starts[1], side)


class Download:
    """The case folders below a folder, wherever the download put them, and the CSV files.

    The CSV files point to CASE/STUDY/SERIES/000000.dcm, CASE being the name of a mammogram or of an abnormality on it.
    The tree has the same CASE folders, but below them names of its own (date and description, or UIDs) and files
    1-1.dcm and 1-2.dcm. So a file is found by CASE, and by the series that its header names where there are several.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.cases: dict[str, list[Path]] = defaultdict(list)
        self.tables: dict[str, list[Path]] = defaultdict(list)
        self._last: tuple[Path, np.ndarray] | None = None
        for root, folders, files in os.walk(source):
            for folder in sorted(folders):
                if CASE_FOLDER.fullmatch(folder):
                    self.cases[folder].append(Path(root, folder))
            folders[:] = sorted(folder for folder in folders if not CASE_FOLDER.fullmatch(folder))
            for file in sorted(files):
                if file.endswith(".csv") and not file.startswith("."):
                    self.tables[file].append(Path(root, file))

    def mammogram(self, reference: str) -> np.ndarray:
        """The full mammogram that `image file path` points to, uint16 "h w"; kept until the next one is asked for.

        Errors: ScanError where it is missing, not the only one, damaged, or no grey picture of 16 bits.
        """
        files = self._files([reference])
        if len(files) > 1:
            raise ScanError(f"{_case(reference)}: {len(files)} files, {_names(files)}; expected one full mammogram.")
        if self._last is None or self._last[0] != files[0]:
            self._last = (files[0], read_levels(files[0]))
        levels = self._last[1]
        if levels.dtype != np.uint16:
            raise ScanError(f"{files[0]}: a picture of {levels.dtype}; expected a mammogram of 16 bits. Fetch it anew.")
        return levels

    def region(self, references: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
        """The mask among the files that `ROI mask file path` and `cropped image file path` point to, bool "h w".

        The two columns are swapped for many abnormalities, so that they do not tell which is which. The mask is the
        one of as many rows and columns as the mammogram, `shape`, that holds two values; the higher is the region.

        Errors: ScanError where there is none (with what there is), where there are several that differ, and where it is
        empty.
        """
        files = self._files(references)
        pictures = [(path, read_levels(path)) for path in files]
        flat = [(path, levels) for path, levels in pictures if _two_values(levels)]
        masks = [(path, levels) for path, levels in flat if levels.shape == shape]
        if not masks:
            found = flat or pictures
            listed = ", ".join(f"{path.name} of {_size(levels.shape)}" for path, levels in found)
            what = "a mask of another size than its mammogram" if flat else "no mask of two values"
            raise ScanError(
                f"{files[0].parent}: {what}: {listed}; expected a mask of {_size(shape)} (rows x columns). Fetch the "
                "series anew; if it comes like that, it cannot be placed."
            )
        path, levels = masks[0]
        if any((other != levels).any() for _, other in masks[1:]):
            raise ScanError(f"{path.parent}: {len(masks)} masks that differ, {_names([path for path, _ in masks])}.")
        if levels.min() == levels.max():
            raise ScanError(f"{path}: an empty mask, every pixel is {levels.min()}; expected a region. Fetch it anew.")
        return levels == levels.max()

    def _files(self, references: Sequence[str]) -> list[Path]:
        """DICOM files of the case folders that are pointed to; of their series alone, where one is there."""
        found: dict[Path, str] = {}
        for reference in references:
            case = _case(reference)
            if case not in self.cases:
                raise ScanError(f"{self.source}: there is no folder {case} below it. Fetch that case.")
            for folder in self.cases[case]:
                paths = (path for path in sorted(folder.rglob("*.dcm")) if not path.name.startswith("."))
                found |= {path: _series(path) for path in paths if path not in found}
        if not found:
            raise ScanError(f"{self.source}: the folder {_case(references[0])} holds no DICOM file. Fetch that case.")
        wanted = {reference.split("/")[-2] for reference in references}
        named = [path for path, series in found.items() if series in wanted]
        return named or list(found)


def read_levels(path: Path) -> np.ndarray:
    """The stored values of a DICOM picture, uint8 or uint16 "h w".

    Errors: ScanError where it is damaged, has colours, several frames or negative values, or shows low values bright.
    """
    import pydicom

    try:
        dataset = pydicom.dcmread(path)
        kind = str(dataset.get("PhotometricInterpretation", "nothing"))
        levels = dataset.pixel_array
    except Exception as error:  # pydicom and its decoders raise many kinds
        raise ScanError(f"{path}: a damaged DICOM file, or none ({error}). Fetch it anew.") from error
    if kind != "MONOCHROME2" or levels.ndim != 2 or levels.dtype not in (np.uint8, np.uint16):
        raise ScanError(
            f"{path}: shape {levels.shape} of {levels.dtype}, PhotometricInterpretation {kind}; expected one grey "
            "picture of 8 or 16 bits without sign, MONOCHROME2. Fetch it anew."
        )
    return levels


def _series(path: Path) -> str:
    import pydicom

    try:
        return str(pydicom.dcmread(path, specific_tags=["SeriesInstanceUID"]).get("SeriesInstanceUID", ""))
    except Exception as error:  # pydicom raises many kinds on damaged headers
        raise ScanError(f"{path}: a damaged DICOM file, or none ({error}). Fetch it anew.") from error


def _case(reference: str) -> str:
    parts = reference.split("/")
    if len(parts) < 3 or not CASE_FOLDER.fullmatch(parts[0]):
        raise ScanError(f"path {reference!r}: expected Mass-Training_P_00001_LEFT_CC/STUDY/SERIES/000000.dcm.")
    return parts[0]


def _two_values(levels: np.ndarray) -> bool:
    low, high = levels.min(), levels.max()
    return bool(((levels == low) | (levels == high)).all())


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths)
