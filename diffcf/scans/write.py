"""Writing a volume back on the grid of the file that a scan was read from."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from diffcf.errors import ConfigError
from diffcf.types import Scan

RAS_CODE = 1  # "scanner anatomical"


def write_nifti(volume: Any, scan: Scan, path: str | Path) -> Path:
    """Write a volume "z y x" of a scan's grid as NIfTI on the grid of its source: same axis order, shape and affine.

    A DICOM series, which has no axis order of its own, is written in the canonical order of `Scan`. Whole numbers
    within int16 are stored as int16, anything else as float32; no scale factor either way, so that what `read_scan`
    read comes back voxel for voxel. A scan without geometry (picture, .npy) gets the form codes 0, "unknown". The file
    appears whole or not at all. Returns the path. Errors: ConfigError for another shape, for values that are not finite
    and for a name that is not .nii or .nii.gz.
    """
    import nibabel as nib
    from nibabel import orientations

    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ConfigError(f"{path}: a NIfTI file ends in .nii or .nii.gz; give such a name.")
    volume = np.asarray(volume)
    if volume.shape != scan.volume.shape:
        raise ConfigError(
            f"volume of shape {volume.shape} does not lie on the scan's grid {scan.volume.shape} (z, y, x)."
        )
    if not np.isfinite(volume).all():
        raise ConfigError(f"the volume for {path} holds NaN or infinity; nothing was written.")
    source = scan.provenance
    array = rearrange(volume, "z y x -> x y z")
    if source.to_grid is not None:
        array = orientations.apply_orientation(array, source.to_grid)
    if source.grid_shape:
        array = array.reshape(source.grid_shape)
    placed = source.grid_affine is not None or not source.grid_shape
    affine = scan.affine if source.grid_affine is None else source.grid_affine
    array = _compact(array)
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=RAS_CODE if placed else 0)
    image.set_qform(affine, code=0)  # a sheared or very oblique grid has no quaternion form: the sform alone speaks
    content = image.to_bytes()
    # No name and no time in the gzip header: the same volume gives the same bytes.
    _replace(gzip.compress(content, compresslevel=6, mtime=0) if path.suffix == ".gz" else content, path)
    return path


def _compact(array: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int16)
    whole = (
        array.size > 0 and limits.min <= array.min() and array.max() <= limits.max and (array == np.rint(array)).all()
    )
    return array.astype(np.int16 if whole else np.float32)


def _replace(content: bytes, path: Path) -> None:
    """Write beside the target, then rename over it: a crash leaves the old file or none, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
