"""Voxel grids: from a file's own axis order to the canonical one, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from diffcf.errors import ScanError
from diffcf.types import Provenance, Scan

if TYPE_CHECKING:
    from collections.abc import Sequence

CANONICAL = ("L", "P", "S")  # x to the patient's left, y to posterior, z to superior: an axial slice as displayed
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LEAN_DEGREES = 5.0  # of slices from axial; a head is held so at times
TILT_DEGREES = 0.5  # axes further from a right angle than this are a tilt, nearer is rounding of the header


def shear_degrees(affine: np.ndarray) -> float:
    """How far the most skewed pair of grid axes is from a right angle, in degrees; `affine` is 4x4."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(np.clip(cosines.max(), 0.0, 1.0))))


def check_affine(affine: np.ndarray, source: str, *, allow_tilt: bool) -> tuple[str, ...]:
    """Refuse an affine that is not finite, is singular, or is sheared without `allow_tilt`; returns notes."""
    if not np.isfinite(affine).all():
        raise ScanError(f"{source}: the affine holds NaN or infinity:\n{affine}\nWrite the file again from its source.")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths <= 0).any() or abs(np.linalg.det(affine[:3, :3] / np.maximum(lengths, 1e-12))) < 1e-3:
        raise ScanError(f"{source}: the affine is singular, its axes do not span space:\n{affine}\nCorrect the header.")
    shear = shear_degrees(affine)
    if shear <= TILT_DEGREES:
        return ()
    if not allow_tilt:
        raise ScanError(
            f"{source}: the axes of the grid are {shear:.1f} degrees from a right angle (a gantry tilt): a slice here "
            "is not the axial slice a model was trained on. Correct the tilt, or pass allow_tilt (--allow-tilt; a "
            "manifest's column) to take the slices as they are."
        )
    return (f"grid sheared by {shear:.1f} degrees (gantry tilt), taken as it is because allow_tilt was set",)


def canonical_scan(array: np.ndarray, affine: np.ndarray, provenance: Provenance, *, keep_grid: bool = True) -> Scan:
    """Turn a grid the nearest way into the canonical orientation; voxels are moved, never interpolated.

    array: "i j k" in the source's axis order. affine: 4x4, source voxel index -> RAS mm. keep_grid: results are
    written back in the source's axis order (`Provenance.to_grid`); otherwise in the canonical one, as "x y z".
    """
    import dataclasses

    from nibabel import orientations

    source = orientations.io_orientation(affine)
    canonical = orientations.axcodes2ornt(CANONICAL)
    turn = orientations.ornt_transform(source, canonical)
    turned = affine @ orientations.inv_ornt_aff(turn, array.shape)
    lean = _lean_degrees(turned)
    if lean > LEAN_DEGREES and shear_degrees(turned) <= TILT_DEGREES:
        note = f"slices lean {lean:.0f} degrees from axial, taken as they are"
        provenance = dataclasses.replace(provenance, notes=(*provenance.notes, note))
    volume = rearrange(orientations.apply_orientation(array, turn), "x y z -> z y x")
    volume = np.ascontiguousarray(volume, dtype=np.float32)
    if keep_grid:
        provenance = dataclasses.replace(
            provenance,
            grid_shape=provenance.grid_shape or array.shape,
            grid_affine=affine,
            to_grid=orientations.ornt_transform(canonical, source),
        )
    else:
        provenance = dataclasses.replace(provenance, grid_shape=volume.shape[::-1], grid_affine=turned, to_grid=None)
    return Scan(volume=volume, spacing=spacing_of(turned), affine=turned, provenance=provenance)


def _lean_degrees(affine: np.ndarray) -> float:
    """The angle between the normal of the slices of a canonical grid and the patient's long axis."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return float(np.degrees(np.arccos(np.clip(abs(normal[2]) / np.linalg.norm(normal), 0.0, 1.0))))


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel size in mm along (z, y, x) of a canonical grid's affine."""
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return (z, y, x)


def unplaced_scan(array: np.ndarray, provenance: Provenance) -> Scan:
    """A scan from an array "z y x" that comes without geometry: pixels of nominal size 1 at the origin.

    `Provenance.grid_affine` stays None; whatever needs millimetres refuses such a scan (`require_geometry`).
    """
    import dataclasses

    provenance = dataclasses.replace(
        provenance,
        grid_shape=array.shape[::-1],
        notes=(*provenance.notes, "no spacing and no position in the file: lengths are in pixels"),
    )
    volume = np.ascontiguousarray(array, dtype=np.float32)
    return Scan(volume=volume, spacing=(1.0, 1.0, 1.0), affine=LPS_TO_RAS.copy(), provenance=provenance)


def has_geometry(scan: Scan) -> bool:
    """Whether lengths in mm are known; they are not for a picture or a bare array read from a file."""
    source = scan.provenance
    return not (source.format in ("image", "array") and source.grid_shape and source.grid_affine is None)


def require_geometry(scan: Scan, purpose: str) -> None:
    """Refuse a scan whose file came without a spacing, where `purpose` needs millimetres."""
    source = scan.provenance
    if not has_geometry(scan):
        raise ScanError(
            f"{source.path}: {purpose} needs millimetres, and a plain {source.format} file has no spacing. Give the "
            "scan as NIfTI or DICOM, or as an .npz with the arrays `volume` (z, y, x) and `spacing` (z, y, x in mm)."
        )


def world(scan: Scan, index: Sequence[float]) -> np.ndarray:
    """RAS position in mm of a voxel index (z, y, x)."""
    z, y, x = index
    return (scan.affine @ np.array([x, y, z, 1.0]))[:3]
