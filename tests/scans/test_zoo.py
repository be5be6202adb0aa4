"""Real files of the two zoos: every one is read or refused for the reason stated here."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from diffcf.errors import ScanError
from diffcf.scans import read_scan, write_nifti

pytestmark = pytest.mark.data

DICOM = {
    # file: (modality asked for, shape | what the refusal says)
    "bad/ct_empty_rescale.dcm": ("CT", r"RescaleSlope \(0028,1053\) is empty"),
    "bad/ct_file_truncated.dcm": ("CT", r"PixelData \(7FE0,0010\) is truncated.*348959 vs 524288 bytes"),
    "bad/ct_missing_geometry.dcm": ("CT", r"PixelSpacing \(0028,0030\) is missing"),
    "bad/ct_missing_rescale.dcm": ("CT", r"RescaleSlope \(0028,1053\) is missing"),
    "bad/ct_monochrome1.dcm": ("CT", (1, 512, 512)),
    "bad/ct_short_pixeldata.dcm": ("CT", r"PixelData \(7FE0,0010\) is truncated.*262144 vs 524288 bytes"),
    "bad/ct_unsigned_intercept-3072_sameHU_as_693_UNCR.dcm": ("CT", (1, 512, 512)),
    "bad/empty.dcm": ("CT", "empty, 0 bytes"),
    "bad/not_dicom.dcm": ("CT", "not DICOM"),
    "files/693_J2KI.dcm": ("CT", (1, 512, 512)),
    "files/693_J2KR.dcm": ("CT", (1, 512, 512)),
    "files/693_UNCR.dcm": ("CT", (1, 512, 512)),
    "files/CT_small.dcm": ("CT", (1, 128, 128)),
    "files/JPEG2000.dcm": ("NM", r"ImageOrientationPatient \(0020,0037\) is missing"),
    "files/MR_small.dcm": ("MR", (1, 64, 64)),
    "files/MR_small_RLE.dcm": ("MR", (1, 64, 64)),
    "files/MR_small_jpeg_ls_lossless.dcm": ("MR", (1, 64, 64)),
    "files/MR_truncated.dcm": ("MR", r"PixelData \(7FE0,0010\) is truncated"),
    "files/emri_small_RLE.dcm": ("MR", r"\(frame 1\): ImageOrientationPatient \(0020,0037\) is missing"),
    "files/image_dfl.dcm": ("OT", r"ImageOrientationPatient \(0020,0037\) is missing"),
    "files/liver_deflate.dcm": ("SEG", r"PixelData.*Transfer Syntax UID.*not supported"),
    "files/no_meta.dcm": ("CT", "no 'DICM' prefix and no file meta"),
}
NIFTI = {
    "sts010_ref_int16.nii.gz": (24, 164, 185),
    "sts010_RAS.nii.gz": (24, 164, 185),
    "sts010_PSR.nii.gz": (24, 164, 185),
    "sts010_oblique15.nii.gz": (24, 164, 185),
    "sts010_uint16_slope1_inter-1024.nii": (24, 164, 185),
    "sts010_2d.nii.gz": (1, 164, 185),
    "sts010_4d.nii.gz": r"4D, shape \(185, 164, 24, 2\)",
    "sts010_float64_HUdiv1000.nii.gz": r"from -1 to 1\.513 cannot be HU.*multiply them by 1000",
    "sts010_nan.nii.gz": "100 of 728160 voxels are NaN",
    "sts010_noaffine.nii.gz": "no affine: sform_code and qform_code are both 0",
    "sts010_truncated.nii.gz": "truncated",
}
SAME_CT = [name for name, shape in NIFTI.items() if shape == (24, 164, 185)]


@pytest.fixture
def zoo(data_root: Path) -> Path:
    return data_root / "dicom_zoo"


def test_no_file_of_the_zoos_is_forgotten(data_root, zoo):
    found = {f"{path.parent.name}/{path.name}" for kind in ("bad", "files") for path in (zoo / kind).iterdir()}
    assert found == set(DICOM)
    assert {path.name for path in (data_root / "nifti_zoo").iterdir()} == set(NIFTI)


@pytest.mark.parametrize("name", DICOM)
def test_dicom_file(zoo, name):
    modality, expected = DICOM[name]
    if isinstance(expected, str):
        with pytest.raises(ScanError, match=expected) as caught:
            read_scan(zoo / name, modality=modality)
        assert Path(name).name in str(caught.value)
    else:
        assert read_scan(zoo / name, modality=modality).volume.shape == expected
    if modality != "CT":
        with pytest.raises(ScanError, match=rf"Modality \(0008,0060\) is {modality}, expected CT"):
            read_scan(zoo / name)


def test_the_same_ct_in_other_forms(zoo):
    original = read_scan(zoo / "files/693_UNCR.dcm")
    assert (original.volume.min(), original.volume.max()) == (-3024, 1468)
    for name in (
        "bad/ct_monochrome1.dcm",
        "bad/ct_unsigned_intercept-3072_sameHU_as_693_UNCR.dcm",
        "files/693_J2KR.dcm",
    ):
        scan = read_scan(zoo / name)
        np.testing.assert_array_equal(scan.volume, original.volume)
        np.testing.assert_array_equal(scan.affine, original.affine)
    lossy = read_scan(zoo / "files/693_J2KI.dcm")
    body = original.volume > -900  # around it the fill value -3024 rings
    change = (lossy.volume - original.volume)[body]  # compressed 339 : 1: blurred, but with the same zero and scale
    assert abs(change.mean()) < 2
    assert np.corrcoef(lossy.volume[body], original.volume[body])[0, 1] > 0.95
    assert any("339:1" in note for note in lossy.provenance.notes)


def test_the_same_mr_in_other_forms(zoo):
    original = read_scan(zoo / "files/MR_small.dcm", modality="MR")
    for name in ("MR_small_RLE", "MR_small_jpeg_ls_lossless"):
        np.testing.assert_array_equal(read_scan(zoo / f"files/{name}.dcm", modality="MR").volume, original.volume)


def test_series_with_contours_beside_it(zoo):
    scan = read_scan(zoo / "series/rtutils_2slice")
    assert scan.volume.shape == (2, 512, 512)
    assert scan.spacing == pytest.approx((5, 0.488281, 0.488281))
    assert any("1 RTSTRUCT" in note for note in scan.provenance.notes)


def test_tilted_series(zoo, tmp_path):
    folder = zoo / "series/ge_head_tilt18"
    with pytest.raises(ScanError, match=r"gantry tilt: GantryDetectorTilt \(0018,1120\) is 18\.5.*leans 18\.5 degrees"):
        read_scan(folder)
    with pytest.raises(ScanError, match=r"14\.dcm and .*15\.dcm: uneven steps: ImagePositionPatient"):
        read_scan(folder, allow_tilt=True)
    for k in range(1, 15):  # the part with even steps
        shutil.copy(folder / f"{k:02}.dcm", tmp_path)
    scan = read_scan(tmp_path, allow_tilt=True)
    assert scan.volume.shape == (14, 512, 512)
    np.testing.assert_allclose(scan.affine[:3, 2], [0, 0, 4.22], atol=1e-6)


@pytest.mark.parametrize("name", NIFTI)
def test_nifti_file(data_root, name):
    path, expected = data_root / "nifti_zoo" / name, NIFTI[name]
    if isinstance(expected, str):
        with pytest.raises(ScanError, match=expected) as caught:
            read_scan(path)
        assert name in str(caught.value)
    else:
        assert read_scan(path).volume.shape == expected


@pytest.mark.parametrize("name", SAME_CT)
def test_same_voxels_in_the_same_places_and_back(data_root, tmp_path, name):
    path = data_root / "nifti_zoo" / name
    reference, scan = read_scan(data_root / "nifti_zoo" / "sts010_ref_int16.nii.gz"), read_scan(path)
    np.testing.assert_array_equal(scan.volume, reference.volume)
    source = nib.load(path)
    if "oblique" not in name:  # that one was turned in space on purpose
        np.testing.assert_allclose(scan.affine, reference.affine, atol=1e-3)
    # Independently of the reader's own bookkeeping: nibabel's value at the world position of each voxel.
    values = source.get_fdata()
    back = np.linalg.inv(source.affine)
    rng = np.random.default_rng(0)
    for z, y, x in rng.integers(0, scan.volume.shape, (50, 3)):
        i, j, k = np.rint((back @ scan.affine @ [x, y, z, 1])[:3]).astype(int)
        assert scan.volume[z, y, x] == values[i, j, k]
    written = nib.load(write_nifti(scan.volume, scan, tmp_path / "back.nii.gz"))
    np.testing.assert_array_equal(written.get_fdata(), values)
    np.testing.assert_array_equal(written.affine, source.affine)


def test_the_2d_form_is_a_slice_of_the_reference(data_root, tmp_path):
    reference = read_scan(data_root / "nifti_zoo" / "sts010_ref_int16.nii.gz")
    scan = read_scan(data_root / "nifti_zoo" / "sts010_2d.nii.gz")
    assert any(np.array_equal(scan.volume[0], plane) for plane in reference.volume)
    written = nib.load(write_nifti(scan.volume, scan, tmp_path / "back.nii"))
    assert written.shape == nib.load(data_root / "nifti_zoo" / "sts010_2d.nii.gz").shape
