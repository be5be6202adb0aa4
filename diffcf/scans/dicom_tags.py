"""Reading DICOM attributes: every missing, empty or malformed one is refused by file and tag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcf.errors import ScanError

if TYPE_CHECKING:
    from pydicom import Dataset

HU_TYPES = ("", "HU", "HU_MOD", "US")  # RescaleType of CT; US = unspecified, HU by the definition of CT Image Storage


@dataclass(frozen=True)
class Frame:
    """One slice: where its pixels are stored, where it lies and how its values become HU.

    position: LPS mm of the first pixel's centre. rows, columns: unit vectors in LPS along a row (rising column index)
    and along a column (rising row index). pixel_spacing: mm between (rows, columns), as in the tag.
    """

    path: Path
    index: int | None  # frame of a multi-frame file, None for a single-frame one
    shape: tuple[int, int]
    position: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    pixel_spacing: tuple[float, float]
    slope: float
    intercept: float
    thickness: float | None
    step: float | None  # SpacingBetweenSlices, as the file claims it
    tilt: float
    reference: str  # FrameOfReferenceUID

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.path) if self.index is None else f"{self.path} (frame {self.index + 1})"


def tag(keyword: str) -> str:
    """A keyword with its tag, as in "RescaleSlope (0028,1053)"."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    return f"{keyword} {Tag(tag_for_keyword(keyword) or 0)}"


def text(dataset: Dataset, keyword: str) -> str:
    """An attribute as text, empty where it is missing."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def numbers(dataset: Dataset, keyword: str, count: int, source: str, *, remedy: str) -> tuple[float, ...]:
    """`count` finite numbers of an attribute; ScanError where it is missing, empty or malformed."""
    values = optional_numbers(dataset, keyword, source)
    if not values:
        state = "empty" if keyword in dataset else "missing"
        raise ScanError(f"{source}: {tag(keyword)} is {state}. {remedy}")
    if len(values) != count or not np.isfinite(values).all():
        raise ScanError(f"{source}: {tag(keyword)} is {values}; expected {count} finite number(s). {remedy}")
    return values


def optional_numbers(dataset: Dataset, keyword: str, source: str) -> tuple[float, ...]:
    """The numbers of an attribute, () where it is missing or empty; ScanError where they are no numbers."""
    try:
        value: Any = dataset.get(keyword)
        if value is None or value == "":
            return ()
        return tuple(float(item) for item in np.atleast_1d(np.asarray(value, dtype=object)))
    except (ValueError, TypeError, OverflowError) as error:
        raise ScanError(
            f"{source}: {tag(keyword)} cannot be read as numbers ({error}). Export the scan again."
        ) from error


def _group(dataset: Dataset, index: int | None, sequence: str) -> Dataset:
    """The functional group of an enhanced multi-frame file that holds a frame's attributes; else the file itself."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    own = [per_frame[index or 0]] if (index or 0) < len(per_frame) else []
    for group in [*own, *shared]:
        if group.get(sequence):
            return group[sequence][0]
    return dataset


def frames_of(dataset: Dataset, path: Path) -> list[Frame]:
    """Every frame of an image file, from its header; ScanError where geometry or, for CT, rescale is not stated."""
    source = str(path)
    count = int((optional_numbers(dataset, "NumberOfFrames", source) or (1,))[0])
    if count < 1:
        raise ScanError(f"{source}: {tag('NumberOfFrames')} is {count}. Export the scan again.")
    _check_pixel_layout(dataset, source)
    if count == 1:
        return [_frame(dataset, path, None)]
    return [_frame(dataset, path, index) for index in range(count)]


def _check_pixel_layout(dataset: Dataset, source: str) -> None:
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):  # which of the two only says how values are displayed
        raise ScanError(
            f"{source}: {tag('PhotometricInterpretation')} is {photometric or 'missing'}; a scan has one grey value a "
            "pixel (MONOCHROME1 or MONOCHROME2). Leave screenshots and colour overlays out."
        )


def _frame(dataset: Dataset, path: Path, index: int | None) -> Frame:
    source = str(path) if index is None else f"{path} (frame {index + 1})"
    whole = "Export the scan again with its geometry; without it slices cannot be put in order or in place."
    measures = _group(dataset, index, "PixelMeasuresSequence")
    plane = _group(dataset, index, "PlaneOrientationSequence")
    place = _group(dataset, index, "PlanePositionSequence")
    size = [numbers(dataset, keyword, 1, source, remedy="Export the scan again.")[0] for keyword in ("Rows", "Columns")]
    orientation = np.array(numbers(plane, "ImageOrientationPatient", 6, source, remedy=whole))
    rows, columns = orientation[:3], orientation[3:]
    if not np.allclose([rows @ rows, columns @ columns, rows @ columns], [1, 1, 0], atol=1e-3):
        raise ScanError(
            f"{source}: {tag('ImageOrientationPatient')} {orientation} is not two perpendicular unit vectors."
        )
    spacing = numbers(measures, "PixelSpacing", 2, source, remedy=whole)
    if min(spacing) <= 0:
        raise ScanError(f"{source}: {tag('PixelSpacing')} is {spacing}; expected two positive numbers in mm.")
    tilt = optional_numbers(_group(dataset, index, "CTAcquisitionDetailsSequence"), "GantryDetectorTilt", source)
    slope, intercept = _rescale(dataset, _group(dataset, index, "PixelValueTransformationSequence"), source)
    return Frame(
        path=path,
        index=index,
        shape=(int(size[0]), int(size[1])),
        position=np.array(numbers(place, "ImagePositionPatient", 3, source, remedy=whole)),
        rows=rows / np.linalg.norm(rows),
        columns=columns / np.linalg.norm(columns),
        pixel_spacing=(spacing[0], spacing[1]),
        slope=slope,
        intercept=intercept,
        thickness=_positive(measures, "SliceThickness", source),
        step=_positive(measures, "SpacingBetweenSlices", source),
        tilt=(tilt or optional_numbers(dataset, "GantryDetectorTilt", source) or (0.0,))[0],
        reference=text(dataset, "FrameOfReferenceUID"),
    )


def _positive(dataset: Dataset, keyword: str, source: str) -> float | None:
    values = optional_numbers(dataset, keyword, source)
    return values[0] if values and np.isfinite(values[0]) and values[0] > 0 else None


def _rescale(dataset: Dataset, group: Dataset, source: str) -> tuple[float, float]:
    """Slope and intercept. CT must state both, in HU; other modalities may leave both out (values as stored)."""
    if text(dataset, "Modality") != "CT":
        if "RescaleSlope" not in group and "RescaleIntercept" not in group:
            return 1.0, 0.0
        remedy = "State both rescale attributes or neither."
    else:
        remedy = (
            "Without it stored values cannot be turned into HU, and -1024 or 0 is not assumed. Export the scan again."
        )
    slope = numbers(group, "RescaleSlope", 1, source, remedy=remedy)[0]
    intercept = numbers(group, "RescaleIntercept", 1, source, remedy=remedy)[0]
    if slope == 0:
        raise ScanError(f"{source}: {tag('RescaleSlope')} is 0, every voxel would be the same. Export the scan again.")
    kind = text(group, "RescaleType")
    if text(dataset, "Modality") == "CT" and kind.upper() not in HU_TYPES:
        raise ScanError(f"{source}: {tag('RescaleType')} is {kind}, expected HU: give the series in Hounsfield units.")
    return slope, intercept
