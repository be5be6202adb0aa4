"""NIfTI: every orientation gives the same voxels in the same places, and what cannot be trusted is refused."""

from __future__ import annotations

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel import orientations

from diffcf.errors import ScanError
from diffcf.scans import read_scan, write_nifti

LPS = np.array([[-0.7, 0, 0, 30], [0, -0.8, 0, 40], [0, 0, 2.5, -50], [0, 0, 0, 1]])
ORIENTATIONS = [
    "".join(letters)
    for axes in itertools.permutations(("LR", "PA", "SI"))
    for letters in itertools.product(*axes)
]  # fmt: skip


def _save(array, affine, path, *, sform=1, qform=0, kind=nib.Nifti1Image, **header):
    image = kind(array, None, dtype=array.dtype)
    image.header.set_sform(affine, code=sform)
    image.header.set_qform(affine if qform else None, code=qform)
    for name, value in header.items():
        image.header[name] = value
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content, compresslevel=1) if path.name.endswith(".gz") else content)
    return path


def _turned(volume, code, affine=LPS):
    """A canonical volume "z y x" as an array and affine in the orientation `code`."""
    array = volume.transpose(2, 1, 0)
    turn = orientations.ornt_transform(orientations.axcodes2ornt("LPS"), orientations.axcodes2ornt(code))
    return orientations.apply_orientation(array, turn), affine @ orientations.inv_ornt_aff(turn, array.shape)


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_every_orientation_gives_the_same_scan_and_is_written_back_as_it_was(tmp_path, hounsfield, code):
    array, affine = _turned(hounsfield.astype(np.int16), code)
    path = _save(array, affine, tmp_path / "scan.nii")
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.volume, hounsfield)
    np.testing.assert_allclose(scan.affine, LPS, atol=1e-4)
    assert scan.spacing == pytest.approx((2.5, 0.8, 0.7))
    written, source = nib.load(write_nifti(scan.volume, scan, tmp_path / "back.nii.gz")), nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), array)
    np.testing.assert_array_equal(written.affine, source.affine)
    assert written.get_data_dtype() == np.int16


@given(
    code=st.sampled_from(ORIENTATIONS),
    angle=st.floats(-30, 30),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_any_oblique_grid(tmp_path_factory, code, angle, spacing, shape):
    volume = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    volume.flat[0] = -1000
    turn = np.radians(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-spacing[2], -spacing[1], spacing[0]])
    affine[:3, 3] = (10, -20, 30)
    array, turned = _turned(volume, code, affine)
    folder = tmp_path_factory.mktemp("oblique")
    scan = read_scan(_save(array, turned, folder / "scan.nii"))
    np.testing.assert_array_equal(scan.volume, volume)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
    again = read_scan(write_nifti(scan.volume, scan, folder / "again.nii"))
    np.testing.assert_array_equal(again.volume, volume)
    np.testing.assert_array_equal(again.affine, scan.affine)


@pytest.mark.parametrize(("degrees", "said"), [(0, False), (4, False), (30, True)])
def test_slices_that_lean_are_said(tmp_path, hounsfield, degrees, said):
    turn = np.eye(4)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[1:3, 1:3] = [[cos, -sin], [sin, cos]]
    affine = turn @ np.diag([-0.8, -0.8, 2.5, 1])
    nib.save(nib.Nifti1Image(np.transpose(hounsfield).astype(np.int16), affine), tmp_path / "scan.nii")
    notes = read_scan(tmp_path / "scan.nii").provenance.notes
    assert ("slices lean 30 degrees from axial, taken as they are" in notes) == said


def test_a_file_that_is_no_dicom_has_no_series(tmp_path, hounsfield):
    nib.save(nib.Nifti1Image(np.transpose(hounsfield).astype(np.int16), np.diag([-1.0, -1, 2, 1])), tmp_path / "a.nii")
    with pytest.raises(ScanError, match=r"no DICOM file, so it has no series 1\.2\.3"):
        read_scan(tmp_path / "a.nii", series_uid="1.2.3")


@pytest.mark.parametrize("name", [".nii", "a.b-c.1024.nii", "scan.nii.gz", "SCAN.NII", "no_suffix"])
def test_the_content_decides_not_the_name(tmp_path, hounsfield, name):
    array, affine = _turned(hounsfield.astype(np.int16), "RAS")
    np.testing.assert_array_equal(read_scan(_save(array, affine, tmp_path / name)).volume, hounsfield)


def test_storage_forms_agree(tmp_path, hounsfield):
    array, affine = _turned(hounsfield.astype(np.int16), "LAS")
    offset = _save((array + 1024).astype(np.uint16), affine, tmp_path / "offset.nii", scl_slope=1, scl_inter=-1024)
    real = _save(array.astype(np.float64), affine, tmp_path / "real.nii")
    second = _save(array, affine, tmp_path / "second.nii", kind=nib.Nifti2Image)
    qform = _save(array, affine, tmp_path / "qform.nii", sform=0, qform=1)
    last = _save(array[..., None], affine, tmp_path / "last.nii")
    for path in (offset, real, second, qform, last):
        scan = read_scan(path)
        np.testing.assert_array_equal(scan.volume, hounsfield)
        written = nib.load(write_nifti(scan.volume, scan, tmp_path / f"back_{path.name}"))
        np.testing.assert_array_equal(np.squeeze(np.asanyarray(written.dataobj)), array)
        assert written.shape == nib.load(path).shape


def test_a_2d_file_is_one_slice_and_is_written_back_as_2d(tmp_path, hounsfield):
    array, affine = _turned(hounsfield[:1].astype(np.int16), "RPS")
    path = _save(array[..., 0], affine, tmp_path / "flat.nii")
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.volume, hounsfield[:1])
    written = nib.load(write_nifti(scan.volume, scan, tmp_path / "back.nii"))
    assert written.shape == (10, 8)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), array[..., 0])


SHEARED = LPS.copy()
SHEARED[1, 2] = 0.8
SINGULAR = LPS.copy()
SINGULAR[:3, 2] = 0
REFUSALS = {
    "colour": (
        lambda a: np.zeros(a.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), LPS, {}, "a colour NIfTI"
    ),
    "4D": (lambda a: np.stack([a, a], -1), LPS, {}, r"4D, shape \(10, 8, 6, 2\)"),
    "no affine": (lambda a: a, LPS, {"sform": 0}, "no affine: sform_code and qform_code are both 0"),
    "singular": (lambda a: a, SINGULAR, {}, "singular"),
    "tilt": (lambda a: a, SHEARED, {}, r"17\.7 degrees from a right angle"),
    "metres": (lambda a: a, LPS, {"xyzt_units": 1}, "metres; expected mm"),
    "NaN": (lambda a: np.where(a == a.max(), np.nan, a).astype(np.float32), LPS, {}, "1 of 480 voxels are NaN"),
    "infinite": (lambda a: np.where(a == a.max(), np.inf, a).astype(np.float32), LPS, {}, "1 of 480 voxels are NaN or"),
    "HU/1000": (lambda a: a / 1000.0, LPS, {}, r"from -1 to 0\.916 cannot be HU.*multiply them by 1000"),
    "windowed": (lambda a: np.clip(a / 500.0, 0, 1), LPS, {}, r"from 0 to 1 cannot be HU.*windowed"),
    "constant": (lambda a: np.zeros_like(a), LPS, {}, "from 0 to 0 cannot be HU"),
    "grey levels": (lambda a: ((a + 1000) / 8).astype(np.uint8), LPS, {}, "nothing below 0 HU"),
    "offset": (lambda a: (a + 1024).astype(np.uint16), LPS, {}, "nothing below 0 HU.*1024"),
    "fill value": (lambda a: np.where(a == a.max(), -32768, a).astype(np.int16), LPS, {}, "beyond any HU scale"),
    "wrapped": (lambda a: a.astype(np.int16).view(np.uint16).astype(np.int32) - 1, LPS, {}, "beyond any HU scale"),
    "complex": (lambda a: a.astype(np.complex64), LPS, {}, "type complex64"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_with_cause(tmp_path, hounsfield, case):
    change, affine, header, message = REFUSALS[case]
    array = change(_turned(hounsfield, "LPS")[0])
    if case == "wrapped":
        array[0, 0, 0] = -5
    with pytest.raises(ScanError, match=message) as caught:
        read_scan(_save(array, affine, tmp_path / "scan.nii", **header))
    assert "scan.nii" in str(caught.value)


def test_what_is_refused_as_hu_is_read_as_other(tmp_path, hounsfield):
    path = _save(_turned(hounsfield / 1000, "RAS")[0], _turned(hounsfield, "RAS")[1], tmp_path / "scan.nii")
    scan = read_scan(path, modality="other")
    np.testing.assert_array_equal(scan.volume, (hounsfield / 1000).astype(np.float32))
    assert scan.provenance.modality == "other"


def test_tilt_when_allowed(tmp_path, hounsfield):
    path = _save(_turned(hounsfield, "LPS")[0], SHEARED, tmp_path / "scan.nii")
    scan = read_scan(path, allow_tilt=True)
    np.testing.assert_array_equal(scan.volume, hounsfield)
    assert any("allow_tilt" in note for note in scan.provenance.notes)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_file_cut_off_at_any_place_is_refused(tmp_path, hounsfield, name):
    array, affine = _turned(hounsfield.astype(np.int16), "LPS")
    content = _save(array, affine, tmp_path / name).read_bytes()
    for length in range(0, len(content) - 1, 41):
        path = tmp_path / f"{length}.{name}"
        path.write_bytes(content[:length])
        with pytest.raises(ScanError, match=path.name):
            read_scan(path)


def test_forms_that_differ_are_said_and_pairs_refused(tmp_path, hounsfield):
    array, affine = _turned(hounsfield.astype(np.int16), "LPS")
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(np.diag([1, 1, 1, 1]), code=1)
    (tmp_path / "two.nii").write_bytes(image.to_bytes())
    assert any("sform and qform differ" in note for note in read_scan(tmp_path / "two.nii").provenance.notes)
    nib.Nifti1Pair(array, affine).to_filename(tmp_path / "pair.hdr")
    with pytest.raises(ScanError, match=r"\.hdr/\.img pair"):
        read_scan(tmp_path / "pair.hdr")


def test_a_qform_that_is_none_is_not_used(tmp_path, hounsfield):
    array = np.ascontiguousarray(hounsfield.transpose(2, 1, 0)).astype(np.int16)
    path = _save(array, LPS, tmp_path / "a.nii", qform=1, quatern_b=0.9, quatern_c=0.9, quatern_d=0.9)
    scan = read_scan(path)
    assert "sform and qform differ: the sform was used" in scan.provenance.notes
    np.testing.assert_array_equal(scan.volume, hounsfield)
