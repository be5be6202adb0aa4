"""NIfTI files, read from their content, so that a name in an unusual form does not matter."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import numpy as np

from diffcf.errors import ScanError
from diffcf.scans.grid import canonical_scan, check_affine
from diffcf.scans.values import check_values
from diffcf.types import Provenance, Scan

GZIP_MAGIC = b"\x1f\x8b"
METRE_OR_MICRON = {1: "metres", 3: "microns"}  # spatial codes of xyzt_units that are not mm


def is_nifti(head: bytes) -> bool:
    """Whether the first bytes (of a gzip: of what it holds) are a NIfTI-1 or NIfTI-2 header; 352 are needed."""
    if head[:2] == GZIP_MAGIC:
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 352)
        except zlib.error:
            return False
    return head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2")


def read_nifti(path: Path, *, allow_tilt: bool, modality: str) -> Scan:
    """Read one NIfTI file as a scan. NIfTI does not say its modality: under "CT" the values must be able to be HU.

    A 2D file is one slice. Errors: ScanError for a truncated file, a missing affine (both form codes 0), more than
    three axes, a length unit other than mm, NaN, and values that cannot be HU.
    """
    image = _load(path)
    header = image.header
    if len(image.shape) < 2 or any(size != 1 for size in image.shape[3:]):
        raise ScanError(
            f"{path}: {len(image.shape)}D, shape {image.shape}; a scan has three axes. Save the volume you mean as a "
            "file of its own (time points, channels and vectors are not chosen for you)."
        )
    notes: list[str] = []
    if header.get_data_dtype().names is not None:
        raise ScanError(f"{path}: a colour NIfTI (datatype {header['datatype']}); a scan has one value a voxel.")
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise ScanError(
            f"{path}: no affine: sform_code and qform_code are both 0, so spacing, orientation and position are "
            "unknown. Convert the scan again from its DICOM files, or set the sform."
        )
    unit = METRE_OR_MICRON.get(int(header["xyzt_units"]) & 7)
    if unit:
        raise ScanError(f"{path}: xyzt_units says {unit}; expected mm. Scale the affine to mm and set xyzt_units to 2.")
    if int(header["sform_code"]) and int(header["qform_code"]) and not _forms_agree(header):
        notes.append("sform and qform differ: the sform was used")
    affine = np.asarray(image.affine, dtype=np.float64)
    notes.extend(check_affine(affine, str(path), allow_tilt=allow_tilt))
    array = _voxels(image, path)
    check_values(array, str(path), modality)
    if len(image.shape) == 2:
        notes.append("2D file: read as one slice")
    shape = tuple(image.shape)
    provenance = Provenance(
        path=str(path),
        format="nifti",
        modality="unknown" if modality == "CT" else modality,
        files=(str(path),),
        notes=tuple(notes),
        grid_shape=shape,
    )
    array = array.reshape((*shape, 1)[:3])  # a 2D file gains its slice axis; trailing axes of length 1 go
    return canonical_scan(array, affine, provenance)


def _load(path: Path):
    """The NIfTI-1 or NIfTI-2 image in a file, its voxels not read yet."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    content = path.read_bytes()
    if content[:2] == GZIP_MAGIC:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ScanError(f"{path}: truncated or damaged gzip ({error}). Copy the file again.") from error
    if b"ni" in (content[344:346], content[4:6]):
        raise ScanError(f"{path}: a .hdr/.img pair; save the scan as a single file (.nii or .nii.gz).")
    kind = nib.Nifti2Image if content[4:7] == b"n+2" else nib.Nifti1Image
    try:
        return kind.from_stream(io.BytesIO(content))
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError, OSError) as error:
        raise ScanError(f"{path}: the NIfTI header cannot be read ({error}). Convert the scan again.") from error


def _voxels(image, path: Path) -> np.ndarray:
    """The voxels with the header's slope and intercept applied; integers stay integers where there is neither."""
    try:
        return np.asanyarray(image.dataobj)
    except (ValueError, OSError, EOFError) as error:
        raise ScanError(
            f"{path}: truncated: fewer voxels than the header announces ({error}). Copy it again."
        ) from error


def _forms_agree(header) -> bool:
    """Whether both forms are the same; a qform that is none (its quaternion has no angle) agrees with nothing."""
    from nibabel.spatialimages import HeaderDataError

    try:
        return bool(np.allclose(header.get_sform(), header.get_qform(), atol=0.01))
    except (ValueError, HeaderDataError):
        return False
