"""A scan written as a DICOM series: read back the same, by this reader and by highdicom; nothing of now in it."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffcf.errors import ConfigError, ScanError
from diffcf.scans import read_scan
from diffcf.scans.write_dicom import write_dicom_series
from diffcf.types import Provenance, Scan


def scan_at(volume: np.ndarray, spacing=(2.5, 0.7, 0.8), origin=(30.0, 40.0, -12.5)) -> Scan:
    z, y, x = spacing
    affine = np.diag([-x, -y, z, 1.0])
    affine[:3, 3] = origin
    return Scan(np.asarray(volume, np.float32), spacing, affine, Provenance("memory", "array", "CT"))


@pytest.fixture
def scan(hounsfield: np.ndarray) -> Scan:
    return scan_at(hounsfield)


def test_what_is_written_is_read_back(tmp_path: Path, scan: Scan) -> None:
    folder = write_dicom_series(scan, tmp_path / "series")
    assert folder == tmp_path / "series"
    assert sorted(path.name for path in folder.iterdir()) == [f"{k:04d}.dcm" for k in range(1, 7)]
    back = read_scan(folder)
    np.testing.assert_array_equal(back.volume, scan.volume)
    np.testing.assert_allclose(back.affine, scan.affine, atol=1e-9)
    assert back.spacing == pytest.approx(scan.spacing)
    assert back.provenance.notes == ()  # in order, evenly spaced, no doubt about anything
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


def test_an_independent_reader_agrees(tmp_path: Path, scan: Scan) -> None:
    datasets = [pydicom.dcmread(path) for path in sorted(write_dicom_series(scan, tmp_path / "s").iterdir())]
    volume = highdicom.get_volume_from_series(datasets)
    canonical = volume.to_patient_orientation("HPL")  # slices to the head, rows to the back, columns to the left
    np.testing.assert_array_equal(canonical.array, scan.volume)
    lps = np.diag([-1.0, -1, 1, 1]) @ scan.affine  # (x, y, z) index; highdicom's is (z, y, x)
    np.testing.assert_allclose(canonical.affine, lps[:, [2, 1, 0, 3]], atol=1e-6)


def test_it_is_a_valid_ct_slice_without_a_date(tmp_path: Path, scan: Scan) -> None:
    files = sorted(write_dicom_series(scan, tmp_path / "s").iterdir())
    datasets = [pydicom.dcmread(path) for path in files]
    first = datasets[0]
    assert first.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert first.SOPClassUID == pydicom.uid.CTImageStorage == first.file_meta.MediaStorageSOPClassUID
    assert first.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID
    assert (first.RescaleSlope, first.RescaleIntercept, first.RescaleType) == (1, -1024, "HU")
    assert (first.PatientName, first.PatientID, first.PatientPosition) == ("PHANTOM", "PHANTOM", "HFS")
    assert [float(part) for part in first.PixelSpacing] == [0.7, 0.8]  # rows, then columns
    assert float(first.SliceThickness) == float(first.SpacingBetweenSlices) == 2.5
    assert [float(part) for part in first.ImagePositionPatient] == [-30, -40, -12.5]  # LPS
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == 6
    assert len({dataset.SeriesInstanceUID for dataset in datasets}) == 1
    assert [dataset.InstanceNumber for dataset in datasets] == [1, 2, 3, 4, 5, 6]
    for element in first.iterall():
        if element.VR in ("DA", "TM", "DT"):
            assert not element.value
        if element.VR == "UI":
            assert pydicom.uid.UID(element.value).is_valid


def bytes_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_same_seed_same_bytes(tmp_path: Path, scan: Scan) -> None:
    one, same = (bytes_of(write_dicom_series(scan, tmp_path / name, seed=4)) for name in ("a", "b"))
    assert one == same
    other = write_dicom_series(scan, tmp_path / "c", seed=5)
    moved = write_dicom_series(scan_at(scan.volume, origin=(0, 0, 0)), tmp_path / "d", seed=4)
    series = {
        pydicom.dcmread(sorted(folder.iterdir())[0]).SeriesInstanceUID for folder in (tmp_path / "a", other, moved)
    }
    assert len(series) == 3


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    spacing=st.tuples(st.floats(0.5, 60), st.floats(0.1, 6), st.floats(0.1, 6)),
    origin=st.tuples(*[st.floats(-900, 900)] * 3),
    seed=st.integers(0, 1000),
)
def test_any_straight_grid_survives(tmp_path_factory: pytest.TempPathFactory, shape, spacing, origin, seed) -> None:
    volume = np.random.default_rng(seed).integers(-2000, 3072, shape)
    volume.flat[0] = -1000  # values that are all positive are no CT, the reader says
    scan = scan_at(volume, spacing, origin)
    back = read_scan(write_dicom_series(scan, tmp_path_factory.mktemp("dicom")))
    np.testing.assert_array_equal(back.volume, volume)
    np.testing.assert_allclose(back.affine, scan.affine, atol=1e-6)


def test_hu_are_rounded(tmp_path: Path, scan: Scan) -> None:
    back = read_scan(write_dicom_series(scan_at(scan.volume + 0.3), tmp_path / "s"))
    np.testing.assert_array_equal(back.volume, scan.volume)


def test_never_into_a_folder_with_files(tmp_path: Path, scan: Scan) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_dicom_series(scan, tmp_path)
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_dicom_series(scan, tmp_path / "note.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.full((2, 4, 4), 40000.0), "40000: a CT series holds -33792 to 31743"),
        (np.full((2, 4, 4), -40000.0), "from -40000"),
        (np.full((2, 4, 4), np.nan), "NaN"),
    ],
)
def test_values_that_cannot_be_stored(tmp_path: Path, volume: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_dicom_series(scan_at(volume), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def turned(kind: str) -> np.ndarray:
    affine = scan_at(np.zeros((1, 2, 2))).affine
    if kind == "sheared":
        affine[1, 2] = 0.5
    elif kind == "oblique":
        angle = np.radians(10)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affine = turn @ affine
    elif kind == "coronal":
        affine = affine[[0, 2, 1, 3]]
    elif kind == "mirrored":
        affine[:, 0] *= -1
    return affine


@pytest.mark.parametrize("kind", ["sheared", "oblique", "coronal", "mirrored"])
def test_a_grid_that_is_not_axial_is_refused(tmp_path: Path, scan: Scan, kind: str) -> None:
    other = Scan(scan.volume, scan.spacing, turned(kind), scan.provenance)
    with pytest.raises(ConfigError, match="is not axial"):
        write_dicom_series(other, tmp_path / "s")


def test_only_a_ct_with_a_place(tmp_path: Path, scan: Scan) -> None:
    mr = Scan(scan.volume, scan.spacing, scan.affine, Provenance("memory", "dicom", "MR"))
    with pytest.raises(ConfigError, match="a MR scan"):
        write_dicom_series(mr, tmp_path / "s")
    np.save(tmp_path / "bare.npy", scan.volume[0])
    with pytest.raises(ScanError, match="needs millimetres"):
        write_dicom_series(read_scan(tmp_path / "bare.npy"), tmp_path / "s")
