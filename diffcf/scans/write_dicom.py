"""Writing a scan as a CT series in DICOM: for demonstrations and tests, without anything of a real patient."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from diffcf.errors import ConfigError
from diffcf.scans.grid import LPS_TO_RAS, require_geometry
from diffcf.types import Scan

if TYPE_CHECKING:
    from pydicom import Dataset

INTERCEPT = -1024
STORED = np.iinfo(np.int16)
LOWEST, HIGHEST = STORED.min + INTERCEPT, STORED.max + INTERCEPT  # HU that the pixels can hold
STRAIGHT = 1e-5  # relative; how far an axis may lean off the patient's


def write_dicom_series(scan: Scan, folder: str | Path, *, seed: int = 0) -> Path:
    """Write a scan as a CT series, one file a slice from inferior to superior; returns the folder.

    Explicit VR Little Endian, CT Image Storage, int16 with slope 1 and intercept -1024, HU rounded to whole numbers.
    Position, orientation and spacing are those of the scan's affine. The patient is called PHANTOM, no date or time is
    stated, and UIDs follow from the seed and the content: the same scan and seed give the same bytes. The folder
    appears whole or not at all.

    Errors: ConfigError for a folder that is not empty, a scan that is no CT, HU that cannot be stored, voxels that are
    not finite and a grid whose axes are not those of the patient; ScanError for a scan without geometry.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder; a series must not mix with other files. Name another one.")
    require_geometry(scan, "a DICOM series")
    if scan.provenance.modality not in ("CT", "unknown"):
        raise ConfigError(f"a {scan.provenance.modality} scan cannot be written as a CT series; give a scan in HU.")
    pixels, affine = _pixels(scan), _straight(scan)
    depth = pixels.shape[0]
    content = hashlib.sha256(pixels.tobytes() + affine.round(6).tobytes()).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    digits = max(4, len(str(depth)))
    try:
        temporary.mkdir()
        for k in range(depth):
            _slice(scan, pixels, affine, k, [content, str(seed)]).save_as(
                temporary / f"{k + 1:0{digits}d}.dcm", enforce_file_format=False
            )
        if folder.exists():
            folder.rmdir()  # empty, as checked: some systems do not rename onto a folder
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _pixels(scan: Scan) -> np.ndarray:
    """Stored values, little-endian int16 "z y x"."""
    volume = np.asarray(scan.volume)
    if not np.isfinite(volume).all():
        raise ConfigError("the scan holds NaN or infinity; a DICOM series cannot. Replace them (air is -1000 HU).")
    lowest, highest = float(volume.min()), float(volume.max())
    if lowest < LOWEST or highest > HIGHEST:
        raise ConfigError(
            f"HU from {lowest:g} to {highest:g}: a CT series holds {LOWEST} to {HIGHEST}. Clip the scan first."
        )
    return (np.rint(volume).astype(np.int32) - INTERCEPT).astype("<i2")


def _straight(scan: Scan) -> np.ndarray:
    """The affine into LPS mm. Errors: ConfigError unless x, y and z run to the left, the back and the head."""
    affine = LPS_TO_RAS @ scan.affine
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or (lengths <= 0).any() or np.abs(axes / lengths - np.eye(3)).max() > STRAIGHT:
        raise ConfigError(
            f"affine\n{scan.affine}\nis not axial: columns must run to the patient's left, rows to the back, slices to "
            "the head, without shear. Resample the scan to such a grid first."
        )
    return affine


def _slice(scan: Scan, pixels: np.ndarray, affine: np.ndarray, k: int, source: list[str]) -> Dataset:
    """The file of slice k. source: what its UIDs are derived from."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

    def uid(what: str) -> UID:
        return generate_uid(entropy_srcs=[*source, what])

    between_slices, between_rows, between_columns = (_decimal(length) for length in scan.spacing)
    position = (affine @ np.array([0.0, 0.0, k, 1.0]))[:3]
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid(f"slice {k}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = generate_uid(entropy_srcs=["diffcf"])
    meta.ImplementationVersionName = "DIFFCF"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.Modality, dataset.Manufacturer = "CT", "diffcf"
    dataset.SeriesDescription = "synthetic"
    dataset.PatientName = dataset.PatientID = "PHANTOM"
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.SliceThickness, dataset.KVP, dataset.SpacingBetweenSlices = between_slices, None, between_slices
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series")
    dataset.StudyID, dataset.SeriesNumber = "", 1
    dataset.AcquisitionNumber, dataset.InstanceNumber = None, k + 1
    dataset.ImagePositionPatient = [_decimal(part) for part in position]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = uid("frame of reference"), ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[1:]
    dataset.PixelSpacing = [between_rows, between_columns]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.WindowCenter, dataset.WindowWidth = -600, 1600
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = INTERCEPT, 1, "HU"
    dataset.PixelData = rearrange(pixels[k], "h w -> (h w)").tobytes()
    return dataset


def _decimal(value: float) -> str:
    """A number as DICOM's decimal string, which has at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(round(float(value), 10) + 0.0)  # + 0.0: no negative zero
