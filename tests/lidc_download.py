"""A download of LIDC-IDRI in small: CT series as DICOM, and the XML of their radiologists in the collection's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from scipy.ndimage import binary_dilation, generate_binary_structure

from diffcf.scans.write_dicom import write_dicom_series
from diffcf.types import Provenance, Scan

SHAPE = (6, 40, 48)
SPACING = (2.0, 0.5, 0.8)  # mm between slices, rows and columns
ORIGIN = (11.0, 23.0, -100.0)  # RAS mm of the first voxel's centre
RATINGS = {
    "subtlety": 5,
    "internalStructure": 1,
    "calcification": 6,
    "sphericity": 3,
    "margin": 4,
    "lobulation": 1,
    "spiculation": 2,
    "texture": 5,
    "malignancy": 4,
}


@dataclass(frozen=True)
class WrittenSeries:
    """A series as it was written: its volume "z y x" in HU, and what its files say; slices from inferior to superior.

    rotated: rows and columns of the files run the other way round, as those of a patient who lies on the face.
    """

    folder: Path
    volume: np.ndarray
    uid: str
    slices: tuple[str, ...]  # SOP instance UIDs
    rotated: bool = False

    def roi(self, z: int, points: Sequence[tuple[int, int]], inclusion: str = "TRUE") -> str:
        """An outline on slice z; points (x, y) are columns and rows of the volume."""
        _, height, width = self.volume.shape
        if self.rotated:
            points = [(width - 1 - x, height - 1 - y) for x, y in points]
        return roi(self.slices[z], points, inclusion)


def distinct(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A volume of whole HU, every voxel different, so that a value says where it came from."""
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape) - 1000


def affine() -> np.ndarray:
    """4x4, voxel index (x, y, z) -> RAS mm: columns to the patient's left, rows to the back."""
    z, y, x = SPACING
    matrix = np.diag([-x, -y, z, 1.0])
    matrix[:3, 3] = ORIGIN
    return matrix


def write_series(
    folder: Path,
    patient: str = "LIDC-IDRI-0001",
    *,
    volume: np.ndarray | None = None,
    seed: int = 0,
    turn: bool = False,
) -> WrittenSeries:
    """Write a volume as a CT series of a patient; turn: with rows and columns reversed, at the same place."""
    volume = distinct() if volume is None else volume
    scan = Scan(volume, SPACING, affine(), Provenance("made", "array", "CT"))
    write_dicom_series(scan, folder, seed=seed)
    uids = []
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = patient
        if turn:
            x, y, z = (float(part) for part in dataset.ImagePositionPatient)
            dataset.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
            dataset.ImagePositionPatient = [
                x + (dataset.Columns - 1) * SPACING[2],
                y + (dataset.Rows - 1) * SPACING[1],
                z,
            ]
            dataset.PixelData = dataset.pixel_array[::-1, ::-1].tobytes()
        dataset.save_as(path)
        uids.append(
            (float(dataset.ImagePositionPatient[2]), str(dataset.SOPInstanceUID), str(dataset.SeriesInstanceUID))
        )
    return WrittenSeries(folder, volume, uids[0][2], tuple(uid for _, uid, _ in sorted(uids)), turn)


def box(top: int, left: int, bottom: int, right: int) -> list[tuple[int, int]]:
    """The closed outline (x, y) around the pixels of rows top to bottom and columns left to right, both included."""
    first, last = left - 1, right + 1
    above, below = top - 1, bottom + 1
    points = [(x, above) for x in range(first, last + 1)] + [(last, y) for y in range(top, below + 1)]
    points += [(x, below) for x in range(right, first - 1, -1)] + [(first, y) for y in range(bottom, above - 1, -1)]
    return points


def around(region: np.ndarray) -> list[tuple[int, int]]:
    """The closed outline (x, y) of a convex region "h w": the pixels beside it, in the order of their angle."""
    outside = binary_dilation(region, generate_binary_structure(2, 1)) & ~region
    y, x = np.nonzero(outside)
    middle = np.argwhere(region).mean(axis=0)
    order = np.argsort(np.arctan2(y - middle[0], x - middle[1]))
    points = [(int(x[k]), int(y[k])) for k in order]
    return [*points, points[0]]


def disc(row: float, column: float, radius: float, shape: tuple[int, int] = SHAPE[1:]) -> np.ndarray:
    """Bool "h w": the pixels within a radius, in pixels, of a point."""
    y, x = np.indices(shape)
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def roi(sop_uid: str, points: Sequence[tuple[int, int]], inclusion: str = "TRUE") -> str:
    """An outline on one slice."""
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>\n" for x, y in points)
    return (
        f"<roi><imageZposition>-100.0</imageZposition><imageSOP_UID>{sop_uid}</imageSOP_UID>"
        f"<inclusion>{inclusion}</inclusion>\n{edges}</roi>"
    )


def nodule(name: str, *rois: str, **ratings: int | str) -> str:
    """A nodule of 3 mm or more; ratings that are not given are those of `RATINGS`."""
    cells = "".join(f"<{key}>{value}</{key}>" for key, value in (RATINGS | ratings).items())
    return (
        f"<unblindedReadNodule><noduleID>{name}</noduleID>\n<characteristics>{cells}</characteristics>\n"
        f"{''.join(rois)}</unblindedReadNodule>"
    )


def small_nodule(name: str, sop_uid: str, x: int, y: int) -> str:
    """A nodule below 3 mm: one point and no characteristics."""
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{roi(sop_uid, [(x, y)])}</unblindedReadNodule>"


def non_nodule(name: str, sop_uid: str, x: int, y: int) -> str:
    """A mark that says: this is no nodule."""
    return (
        f"<nonNodule><nonNoduleID>{name}</nonNoduleID><imageZposition>-100.0</imageZposition>"
        f"<imageSOP_UID>{sop_uid}</imageSOP_UID><locus><xCoord>{x}</xCoord><yCoord>{y}</yCoord></locus></nonNodule>"
    )


def message(series_uid: str, *sessions: Sequence[str]) -> str:
    """The file of one series: of each radiologist, what was marked."""
    read = "".join(
        "<readingSession><annotationVersion>3.12</annotationVersion>"
        f"<servicingRadiologistID>anonymous</servicingRadiologistID>\n{''.join(marks)}</readingSession>\n"
        for marks in sessions
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<LidcReadMessage uid="1.3.6.1.4.1.14519.5.2.1.6279.6001.1.0" xmlns="http://www.nih.gov"\n'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n'
        "<ResponseHeader><Version>1.7</Version><MessageId>1</MessageId>"
        "<TaskDescription>Second unblinded read</TaskDescription><CtImageFile>removed</CtImageFile>\n"
        f"<SeriesInstanceUid>{series_uid}</SeriesInstanceUid><StudyInstanceUID>1.2.3</StudyInstanceUID>\n"
        f"</ResponseHeader>\n{read}</LidcReadMessage>\n"
    )
