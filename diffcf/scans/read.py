"""`read_scan`: one door for every kind of scan. What a file is, its content decides, not its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffcf.errors import ScanError
from diffcf.types import Scan, unit_of


def read_scan(
    path: str | Path, *, series_uid: str | None = None, allow_tilt: bool = False, modality: str = "CT"
) -> Scan:
    """Read a DICOM folder or file, a NIfTI file, a picture or a NumPy array as a scan in HU.

    series_uid: which series, where a folder holds several. allow_tilt: take slices of a tilted gantry as they are.
    modality: what the scan must be, as DICOM calls it; under "CT" values must be HU. "other" takes any modality and its
    values as they are.

    Nothing is guessed: a scan with a missing or doubled slice, several series, mixed or absent rescale, truncated
    pixels, NaN, a fourth axis or no geometry is refused. Errors: ScanError, naming file, tag and remedy.
    """
    if not str(path):
        raise ScanError("the path of the scan is empty (a shell variable that is not set?).")
    path = Path(path)
    if not path.exists():
        raise ScanError(f"{path}: there is no such file or folder.")
    if path.is_dir():
        from diffcf.scans.dicom import read_dicom_folder

        return read_dicom_folder(path, series_uid=series_uid, allow_tilt=allow_tilt, modality=modality)
    return _read_file(path, series_uid=series_uid, allow_tilt=allow_tilt, modality=modality)


def _read_file(path: Path, *, series_uid: str | None, allow_tilt: bool, modality: str) -> Scan:
    from diffcf.scans.image import NPY_MAGIC, ZIP_MAGIC, read_array, read_picture
    from diffcf.scans.nifti import is_nifti, read_nifti

    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise ScanError(f"{path}: empty, 0 bytes. Copy the file again from its source.")
    suffixes = "".join(path.suffixes[-2:]).lower()
    if head[128:132] == b"DICM":
        from diffcf.scans.dicom import read_dicom_file

        return read_dicom_file(path, series_uid=series_uid, allow_tilt=allow_tilt, modality=modality)
    if series_uid is not None:
        raise ScanError(f"{path}: no DICOM file, so it has no series {series_uid}; leave the series out.")
    if is_nifti(head):
        return read_nifti(path, allow_tilt=allow_tilt, modality=modality)
    if suffixes.endswith((".dcm", ".dicom", ".ima")):
        raise ScanError(
            f"{path}: not DICOM: no 'DICM' prefix and no file meta, so its transfer syntax is unknown. Export the scan "
            "again as DICOM part 10 files."
        )
    if suffixes.endswith((".nii", ".nii.gz")):
        raise ScanError(f"{path}: not NIfTI: the header's magic is missing or the file is damaged. Convert it again.")
    if head.startswith((NPY_MAGIC, ZIP_MAGIC)):
        return read_array(path, modality=modality)
    return read_picture(path, modality=modality)


def describe(scan: Scan) -> list[tuple[str, str]]:
    """What a scan is, as pairs (field, text): for `diffcf check` and for reports."""
    import numpy as np

    from diffcf.scans.grid import has_geometry

    source = scan.provenance
    z, y, x = scan.volume.shape
    placed = has_geometry(scan)
    unit = f" {unit_of(source.modality)}"
    first, last = scan.affine[:3, 3], (scan.affine @ np.array([x - 1, y - 1, z - 1, 1.0]))[:3]
    percentiles = ", ".join(f"{value:.0f}" for value in np.percentile(scan.volume, [1, 50, 99]))
    axes = f", axes {_axes(source.grid_affine)}" if source.grid_affine is not None else ""
    lines = [
        ("path", source.path),
        ("format", source.format),
        ("modality", source.modality),
        ("files", str(len(source.files))),
        ("shape", f"{z} slices of {y} x {x} (rows x columns)"),
        ("spacing", "{:.4g} x {:.4g} x {:.4g} mm (z, y, x)".format(*scan.spacing) if placed else "unknown"),
        ("extent", f"RAS {np.round(first, 1).tolist()} to {np.round(last, 1).tolist()} mm" if placed else "unknown"),
        ("source grid", " x ".join(map(str, source.grid_shape)) + axes),
        ("values", f"{scan.volume.min():g} to {scan.volume.max():g}{unit}, percentiles 1, 50, 99: {percentiles}"),
    ]
    if source.series_uid:
        lines.insert(3, ("series", source.series_uid))
    return [*lines, *(("note", note) for note in source.notes)]


def _axes(affine: Any) -> str:
    from nibabel.orientations import aff2axcodes

    return "".join(str(code) for code in aff2axcodes(affine))
