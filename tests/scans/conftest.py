"""Small scans with a known content, and DICOM series written from scratch, so that every refusal has its own case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from diffcf.types import Provenance, Scan

SERIES = "1.2.826.0.1.3680043.8.498.1"


@pytest.fixture(scope="session")
def hounsfield() -> np.ndarray:
    """A volume "z y x" of 6 x 8 x 10 whole HU, every voxel different, with air and bone."""
    return np.arange(480, dtype=np.float32).reshape(6, 8, 10) * 4 - 1000


@pytest.fixture(scope="session")
def slices_of() -> Callable[..., list[FileDataset]]:
    """Turn a volume "k r c" in HU into CT slices: pixels of 0.8 (rows) x 0.7 (columns) mm, steps of 2.5 mm."""

    def build(
        volume: np.ndarray,
        *,
        orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
        origin: tuple[float, ...] = (-3, -4, 50),
        step: tuple[float, ...] | None = None,
        **tags: Any,
    ) -> list[FileDataset]:
        normal = np.cross(orientation[:3], orientation[3:])
        move = np.array(step) if step is not None else normal * 2.5
        slices = []
        for k, plane in enumerate(volume):
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID = CTImageStorage
            meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(k)])
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
            dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
            dataset.Modality, dataset.SeriesInstanceUID = "CT", SERIES
            dataset.FrameOfReferenceUID, dataset.InstanceNumber = SERIES + ".1", k + 1
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            dataset.Rows, dataset.Columns = plane.shape
            dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.7], 2.5
            dataset.ImageOrientationPatient = [float(part) for part in orientation]
            dataset.ImagePositionPatient = [float(part) for part in np.array(origin) + k * move]
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
            dataset.PixelData = (plane + 1024).astype("<i2").tobytes()
            for keyword, value in tags.items():
                setattr(dataset, keyword, value)
            slices.append(dataset)
        return slices

    return build


@pytest.fixture(scope="session")
def save() -> Callable[..., Path]:
    """Save slices as 000.dcm, 001.dcm, ... into a folder, in the given order."""

    def write(slices: list[FileDataset], folder: Path, names: list[str] | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for k, dataset in enumerate(slices):
            dataset.save_as(folder / (names[k] if names else f"{k:03}.dcm"))
        return folder

    return write


@pytest.fixture(scope="session")
def scan_of() -> Callable[..., Scan]:
    """A scan in memory, axial, its first voxel at the RAS origin."""

    def build(volume: np.ndarray, spacing: tuple[float, float, float] = (2.5, 0.8, 0.8), modality: str = "CT") -> Scan:
        z, y, x = spacing
        affine = np.diag([-x, -y, z, 1.0])
        return Scan(np.asarray(volume, dtype=np.float32), spacing, affine, Provenance("memory", "dicom", modality))

    return build
