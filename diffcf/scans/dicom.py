"""DICOM: a folder of slices, or one file (single- or multi-frame), as a scan."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from diffcf.errors import ScanError
from diffcf.scans.dicom_geometry import stack
from diffcf.scans.dicom_tags import Frame, frames_of, optional_numbers, tag, text
from diffcf.scans.grid import canonical_scan, check_affine
from diffcf.scans.values import check_values
from diffcf.types import Provenance, Scan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom import Dataset

# What lies beside a scan but is none: contours, plans, doses, reports, presentation states, registrations.
BESIDE_A_SCAN = (
    *("RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTIMAGE", "SEG", "SR", "PR", "KO", "REG", "FID", "DOC", "PLAN"),
    *("RWV", "M3D", "AU", "ECG", "ANN"),
)
DICOMDIR = "1.2.840.10008.1.3.10"
SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class _Header:
    path: Path
    dataset: Dataset

    @property
    def series(self) -> str:
        return text(self.dataset, "SeriesInstanceUID")

    @property
    def modality(self) -> str:
        return text(self.dataset, "Modality")

    @property
    def is_beside(self) -> bool:
        """Whether it is no image of a scan: contours, reports, the index of a medium, ..."""
        return self.modality in BESIDE_A_SCAN or text(self.dataset.file_meta, "MediaStorageSOPClassUID") == DICOMDIR

    @property
    def is_localizer(self) -> bool:
        """Whether it is an overview picture (also called scout or topogram)."""
        return "LOCALIZER" in text(self.dataset, "ImageType").upper()  # one value, or the list of them as text


def read_dicom_folder(folder: Path, *, series_uid: str | None, allow_tilt: bool, modality: str) -> Scan:
    """Read the one image series below a folder (or the one that `series_uid` names).

    Localizers, objects that are no images (contours, reports, ...) and files that are not DICOM are left out, and the
    notes say so. Errors: ScanError, as `read_scan` lists them.
    """
    notes: list[str] = []
    headers, strangers = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        header = _header(path)
        if header is not None:
            headers.append(header)
        elif path.suffix.lower() in SUFFIXES:
            raise ScanError(
                f"{path}: named like DICOM but {_why_not(path)}. Fetch the file again, or remove it if it is no slice."
            )
        else:
            strangers.append(path)
    _check_strangers(strangers, headers)
    if strangers:
        notes.append(f"left out {len(strangers)} file(s) that are not DICOM: {_few(strangers)}")
    if not headers:
        there = f" (there is {_few(strangers)})" if strangers else ""
        raise ScanError(
            f"{folder}: no DICOM file in it{there}. Give the file itself if the scan is NIfTI, a picture or an array."
        )
    beside = [header for header in headers if header.is_beside]
    images = [header for header in headers if not header.is_beside]
    if beside:
        kinds = Counter(header.modality or "DICOMDIR" for header in beside)
        notes.append("left out what is no scan: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    localizers = [header for header in images if header.is_localizer]
    images = [header for header in images if not header.is_localizer]
    if localizers:
        notes.append(f"dropped {len(localizers)} localizer(s): {_few(header.path for header in localizers)}")
    if not images:
        raise ScanError(f"{folder}: no slice of a scan in it; {'; '.join(notes)}.")
    chosen = _one_series(folder, images, series_uid)
    if len(chosen) < len(images):
        notes.append(f"left out {len(images) - len(chosen)} file(s) of other series")
    return _read(chosen, folder, notes, allow_tilt=allow_tilt, modality=modality)


def read_dicom_file(path: Path, *, series_uid: str | None, allow_tilt: bool, modality: str) -> Scan:
    """Read one DICOM file: a slice, or a multi-frame volume whose every frame states its position."""
    header = _header(path)
    if header is None:
        raise ScanError(f"{path}: {_why_not(path)}. Export the scan again as DICOM part 10 files.")
    if header.modality == "RTSTRUCT":
        raise ScanError(
            f"{path}: contours (RTSTRUCT), no voxels. Convert them to a NIfTI mask on the grid of the scan."
        )
    if header.is_localizer:
        raise ScanError(f"{path}: {tag('ImageType')} says LOCALIZER: an overview picture, not a slice of the scan.")
    return _read(_one_series(path, [header], series_uid), path, [], allow_tilt=allow_tilt, modality=modality)


def _header(path: Path) -> _Header | None:
    """A file's header without its pixels, None where the file is not DICOM."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that are checked here one by one
            return _Header(path, pydicom.dcmread(path, stop_before_pixels=True))
    except InvalidDicomError:
        return None
    except Exception as error:  # pydicom raises many kinds on damaged headers
        raise ScanError(f"{path}: the DICOM header is truncated or damaged ({error}). Copy the file again.") from error


def _why_not(path: Path) -> str:
    if path.stat().st_size == 0:
        return "empty, 0 bytes"
    return "not DICOM: no 'DICM' prefix and no file meta, so its transfer syntax is unknown"


def _check_strangers(strangers: list[Path], headers: list[_Header]) -> None:
    """An empty file that is named as the slices are may be a slice that was lost: it is not left out in silence."""
    suffixes = {header.path.suffix for header in headers}
    for path in strangers:
        if path.suffix in suffixes and path.stat().st_size == 0 and not path.name.startswith("."):
            raise ScanError(f"{path}: empty, 0 bytes, and named as the slices are. Fetch it again, or remove it.")


def _few(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _one_series(source: Path, images: list[_Header], series_uid: str | None) -> list[_Header]:
    series: dict[str, list[_Header]] = {}
    for header in images:
        if not header.series:
            raise ScanError(
                f"{header.path}: {tag('SeriesInstanceUID')} is missing: which scan it belongs to is unknown."
            )
        series.setdefault(header.series, []).append(header)
    listing = "\n".join(
        f"  {uid}  {len(headers)} file(s), {headers[0].modality}, {text(headers[0].dataset, 'SeriesDescription')!r}"
        for uid, headers in sorted(series.items())
    )
    if series_uid is not None:
        if series_uid not in series:
            raise ScanError(f"{source}: no series {series_uid} in it; there is:\n{listing}")
        return series[series_uid]
    if len(series) > 1:
        raise ScanError(
            f"{source}: {len(series)} series, told apart by {tag('SeriesInstanceUID')}:\n{listing}\n"
            "Say which one with --series-uid UID (read_scan: series_uid)."
        )
    return images


def _read(headers: list[_Header], source: Path, notes: list[str], *, allow_tilt: bool, modality: str) -> Scan:
    for header in headers:
        if modality not in ("other", header.modality):
            raise ScanError(
                f"{header.path}: {tag('Modality')} is {header.modality or 'missing'}, expected {modality}. Give a "
                f"{modality} scan, or a model that was trained on {header.modality or 'this modality'}."
            )
    frames = [frame for header in headers for frame in frames_of(header.dataset, header.path)]
    found = headers[0].modality
    frames, affine, remarks = stack(frames, allow_tilt=allow_tilt, modality=found)
    notes = [*notes, *remarks]
    check_affine(affine, str(source), allow_tilt=allow_tilt)
    lossy = [header for header in headers if text(header.dataset, "LossyImageCompression") == "01"]
    if lossy:
        ratio = optional_numbers(lossy[0].dataset, "LossyImageCompressionRatio", str(lossy[0].path))
        by = f" of about {ratio[-1]:.0f}:1" if ratio else ""
        notes.append(f"{tag('LossyImageCompression')} is 01: values were changed by lossy compression{by}")
    volume = _pixels(frames)  # "k r c"
    check_values(volume, str(source), modality)
    provenance = Provenance(
        path=str(source),
        format="dicom",
        modality=found or "unknown",
        series_uid=headers[0].series,
        files=tuple(dict.fromkeys(str(frame.path) for frame in frames)),
        notes=tuple(notes),
    )
    return canonical_scan(rearrange(volume, "k r c -> c r k"), affine, provenance, keep_grid=False)


def _pixels(frames: list[Frame]) -> np.ndarray:
    """Rescaled values of the frames in their order, float32 "k r c"."""
    volume = np.empty((len(frames), *frames[0].shape), dtype=np.float32)
    opened: Path | None = None
    stored = np.empty(0)
    for k, frame in enumerate(frames):
        if frame.path != opened:  # the frames of one file follow one another
            opened, stored = frame.path, _stored(frame.path)
        values = stored if frame.index is None else stored[frame.index]
        volume[k] = values * np.float64(frame.slope) + frame.intercept
    return volume


def _stored(path: Path) -> np.ndarray:
    """Stored pixel values of a file; ScanError where they are missing, short or in a form that cannot be decoded."""
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(path).pixel_array
    except Exception as error:  # each decoder raises its own kinds
        raise ScanError(
            f"{path}: {tag('PixelData')} is truncated, missing or cannot be decoded ({error}). Copy the file again; if "
            "it is whole, store it uncompressed, as JPEG 2000, JPEG-LS or RLE."
        ) from error
