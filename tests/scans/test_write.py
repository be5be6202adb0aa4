"""Results on the source grid: whole files or none, the same bytes for the same volume."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from diffcf.errors import ConfigError
from diffcf.scans import read_scan, resample, write_nifti


def test_dicom_is_written_in_the_canonical_order(tmp_path, hounsfield, slices_of, save):
    scan = read_scan(save(slices_of(hounsfield), tmp_path / "dicom"))
    image = nib.load(write_nifti(scan.volume, scan, tmp_path / "deep" / "scan.nii.gz"))
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), hounsfield.transpose(2, 1, 0))
    np.testing.assert_allclose(image.affine, scan.affine, atol=1e-5)
    again = read_scan(tmp_path / "deep" / "scan.nii.gz")
    np.testing.assert_array_equal(again.volume, scan.volume)
    np.testing.assert_allclose(again.affine, scan.affine, atol=1e-5)


def test_a_scan_made_in_memory_and_a_resampled_one(tmp_path, hounsfield, scan_of):
    for name, scan in (("made", scan_of(hounsfield)), ("finer", resample(scan_of(hounsfield), (1.0, None, 0.4)))):
        again = read_scan(write_nifti(scan.volume, scan, tmp_path / f"{name}.nii"))
        np.testing.assert_array_equal(again.volume, scan.volume)
        np.testing.assert_allclose(again.affine, scan.affine, atol=1e-5)


def test_types(tmp_path, hounsfield, scan_of):
    scan = scan_of(hounsfield)
    for change, dtype in ((0, np.int16), (0.25, np.float32), (40000, np.float32)):
        image = nib.load(write_nifti(hounsfield + change, scan, tmp_path / "scan.nii"))
        assert image.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), (hounsfield + change).transpose(2, 1, 0))


def test_same_volume_same_bytes_and_nothing_left_behind(tmp_path, hounsfield, scan_of):
    scan = scan_of(hounsfield)
    first = write_nifti(hounsfield + 0.5, scan, tmp_path / "a.nii.gz").read_bytes()
    assert write_nifti(hounsfield + 0.5, scan, tmp_path / "b.nii.gz").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_failed_write_leaves_the_old_file(tmp_path, hounsfield, scan_of, monkeypatch):
    scan = scan_of(hounsfield)
    old = write_nifti(hounsfield, scan, tmp_path / "a.nii").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("diffcf.scans.write.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_nifti(hounsfield + 1, scan, tmp_path / "a.nii")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]
    assert (tmp_path / "a.nii").read_bytes() == old


def test_refusals(tmp_path, hounsfield, scan_of):
    scan = scan_of(hounsfield)
    broken = hounsfield.copy()
    broken[0, 0, 0] = np.nan
    for volume, name, message in [
        (hounsfield[:1], "a.nii", r"shape \(1, 8, 10\) does not lie on the scan's grid"),
        (broken, "a.nii", "NaN or infinity"),
        (hounsfield, "a.png", r"ends in \.nii"),
    ]:
        with pytest.raises(ConfigError, match=message):
            write_nifti(volume, scan, tmp_path / name)
    assert not list(tmp_path.iterdir())
