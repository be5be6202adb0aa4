"""Lung nodules of LIDC-IDRI: from several radiologists' readings to one nodule, its label and its region."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffcf.data.lidc_xml import Outline, Reading
from diffcf.errors import ScanError
from diffcf.types import Provenance, Scan

ScoreThree = Literal["benign", "malignant", "blank"]
RATED = ("subtlety", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture")


def label_of(malignancy: float, score_3: ScoreThree = "benign") -> int | None:
    """Class of a mean rating: 1 malignant (above 3), 0 benign (below); at exactly 3 as asked, "blank" being None."""
    if malignancy == 3:
        return {"benign": 0, "malignant": 1, "blank": None}[score_3]
    return int(malignancy > 3)


def file_name(*parts: str) -> str:
    """Name of a nodule's NIfTI files; what a header or a table calls a patient cannot lead out of the folder."""
    return re.sub(r"[^\w.-]", "-", "_".join(parts)) + ".nii.gz"


def crop_scan(volume: np.ndarray, spacing: tuple[float, float, float], affine: np.ndarray, source: str) -> Scan:
    """A block "z y x" of HU cut from a scan, as a scan of its own on the canonical grid `affine`."""
    provenance = Provenance(path=source, format="array", modality="CT")
    return Scan(volume=np.asarray(volume, dtype=np.float32), spacing=spacing, affine=affine, provenance=provenance)


def equivalent_diameter(pixels: int, spacing: tuple[float, float]) -> float:
    """Diameter in mm of the disc that covers as much as so many pixels."""
    return 2 * float(np.sqrt(pixels * spacing[0] * spacing[1] / np.pi))


def voxels_of(
    reading: Reading, placement: Mapping[str, np.ndarray], shape: tuple[int, int, int], source: str
) -> np.ndarray:
    """The voxels of a nodule as one radiologist outlined it: sorted flat indices into a volume "z y x".

    placement: SOP instance UID -> 4x4, pixel (x, y, 0, 1) of that slice -> voxel index (x, y, z, 1). An outline's own
    pixels are outside the nodule (outlines of holes too), unless it encloses none: then they are all there is of it.

    Errors: ScanError where an outline lies on a slice that the series does not have.
    """
    planes: dict[int, np.ndarray] = {}
    for outline in sorted(reading.outlines, key=lambda outline: not outline.inclusion):  # holes last
        if outline.sop_uid not in placement:
            raise ScanError(
                f"{source}: nodule {reading.name!r} has an outline on slice {outline.sop_uid}, which the series lacks. "
                "Fetch the whole series."
            )
        points = np.array([(x, y, 0, 1) for x, y in outline.points]) @ placement[outline.sop_uid].T
        line = np.rint(points[:, :3]).astype(int)
        plane = planes.setdefault(int(line[0, 2]), np.zeros(shape[1:], dtype=bool))
        enclosed = _enclosed([(int(x), int(y)) for x, y, _ in line], outline, shape[1:])
        plane[enclosed] = outline.inclusion
    flat = [z * shape[1] * shape[2] + np.flatnonzero(plane) for z, plane in sorted(planes.items())]
    voxels = np.concatenate(flat)
    if not len(voxels):
        raise ScanError(f"{source}: the outlines of nodule {reading.name!r} enclose nothing.")
    return voxels


def _enclosed(line: list[tuple[int, int]], outline: Outline, shape: tuple[int, int]) -> np.ndarray:
    """Bool "h w": the pixels inside a closed line; of a hole, the line's own too."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (shape[1], shape[0]))
    draw = ImageDraw.Draw(picture)
    if len(line) > 2:
        draw.polygon(line, fill=1)
    own = 0 if outline.inclusion else 1
    draw.line([*line, line[0]], fill=own)
    draw.point(line, fill=own)
    enclosed = np.asarray(picture) > 0
    if outline.inclusion and not enclosed.any():
        draw.line([*line, line[0]], fill=1)
        draw.point(line, fill=1)
        enclosed = np.asarray(picture) > 0
    return enclosed


@dataclass(frozen=True)
class Nodule:
    """One nodule: the readings that are taken to mean it, and the voxels of their consensus (sorted flat indices)."""

    readings: tuple[Reading, ...]
    voxels: np.ndarray

    def rating(self, name: str) -> float | None:
        """Mean over the radiologists who rated it; None where nobody did."""
        given = [reading.ratings[name] for reading in self.readings if name in reading.ratings]
        return sum(given) / len(given) if given else None


def group_readings(readings: Sequence[Reading], voxels: Sequence[np.ndarray], scan: Scan) -> list[Nodule]:
    """Which readings mean the same nodule.

    Two readings of different radiologists can mean the same nodule if they share a voxel, or if their centres are
    no further apart than the radius of the smaller one (the radius of a ball of its volume). Such pairs are joined,
    the greatest overlap (intersection over union) first, then the nearest, as long as no nodule would hold two
    readings of one radiologist, who meant two nodules by them. The consensus region are the voxels that at least half
    of the nodule's readers included; all voxels where there are none of those.
    """
    shape = scan.volume.shape
    voxel_volume = float(np.prod(scan.spacing))
    radii = [float(np.cbrt(3 * len(own) * voxel_volume / (4 * np.pi))) for own in voxels]
    centres = [np.mean(np.unravel_index(own, shape), axis=1) * scan.spacing for own in voxels]
    pairs = []
    for i, j in itertools.combinations(range(len(readings)), 2):
        if readings[i].reader == readings[j].reader:
            continue
        shared = len(np.intersect1d(voxels[i], voxels[j], assume_unique=True))
        distance = float(np.linalg.norm(centres[i] - centres[j]))
        if shared or distance <= min(radii[i], radii[j]):
            pairs.append((-shared / (len(voxels[i]) + len(voxels[j]) - shared), distance, i, j))
    group = {i: [i] for i in range(len(readings))}
    for _, _, i, j in sorted(pairs):
        if group[i] is group[j]:
            continue
        joined = sorted(group[i] + group[j])
        if len({readings[k].reader for k in joined}) == len(joined):
            group.update(dict.fromkeys(joined, joined))
    return [
        Nodule(tuple(readings[k] for k in members), _consensus([voxels[k] for k in members]))
        for first, members in group.items()
        if members[0] == first
    ]


def _consensus(voxels: Sequence[np.ndarray]) -> np.ndarray:
    every, count = np.unique(np.concatenate(voxels), return_counts=True)
    agreed = every[2 * count >= len(voxels)]
    return agreed if len(agreed) else every
