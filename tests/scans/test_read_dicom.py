"""DICOM: what is read, and every refusal by file and tag, on series written here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from diffcf.errors import ScanError
from diffcf.scans import describe, read_scan


def test_a_series_is_read_in_hu_with_its_geometry(tmp_path, hounsfield, slices_of, save):
    scan = read_scan(save(slices_of(hounsfield), tmp_path))
    np.testing.assert_array_equal(scan.volume, hounsfield)
    assert scan.volume.dtype == np.float32
    assert scan.spacing == pytest.approx((2.5, 0.8, 0.7))
    # LPS (-3, -4, 50) is RAS (3, 4, 50); columns run to the left, rows to posterior.
    np.testing.assert_allclose(scan.affine, [[-0.7, 0, 0, 3], [0, -0.8, 0, 4], [0, 0, 2.5, 50], [0, 0, 0, 1]])
    assert (scan.provenance.format, scan.provenance.modality, len(scan.provenance.files)) == ("dicom", "CT", 6)


def test_order_comes_from_positions_not_from_names_or_numbers(tmp_path, hounsfield, slices_of, save):
    slices = slices_of(hounsfield)
    names = [f"{k}.dcm" for k in (3, 0, 5, 1, 4, 2)]
    for k, dataset in enumerate(slices):
        dataset.InstanceNumber = 99 - k
    scan = read_scan(save(slices, tmp_path, names))
    np.testing.assert_array_equal(scan.volume, hounsfield)
    assert any("sorted" in note for note in scan.provenance.notes)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        ((-1, 0, 0, 0, -1, 0), lambda v: v[:, ::-1, ::-1]),  # prone as stored
        ((1, 0, 0, 0, 0, -1), lambda v: np.swapaxes(v, 0, 1)[::-1]),  # coronal: rows run down, slices to posterior
        ((0, 1, 0, 0, 0, -1), lambda v: np.transpose(v, (1, 2, 0))[::-1, :, ::-1]),  # sagittal: slices to the right
    ],
    ids=["prone", "coronal", "sagittal"],
)
def test_other_planes_are_turned_to_canonical(tmp_path, hounsfield, slices_of, save, orientation, turned):
    scan = read_scan(save(slices_of(hounsfield, orientation=orientation), tmp_path))
    np.testing.assert_array_equal(scan.volume, turned(hounsfield))


@given(
    angles=st.tuples(*[st.floats(-40, 40)] * 3),
    k=st.integers(0, 5),
    r=st.integers(0, 7),
    c=st.integers(0, 9),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_voxel_keeps_its_place_in_the_world(tmp_path_factory, hounsfield, slices_of, save, angles, k, r, c):
    a, b, g = np.radians(angles)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(g), -np.sin(g), 0], [np.sin(g), np.cos(g), 0], [0, 0, 1]])
    row, column, normal = (about_z @ about_y @ about_x).T
    slices = slices_of(hounsfield, orientation=(*row.round(7), *column.round(7)))
    scan = read_scan(save(slices, tmp_path_factory.mktemp("oblique")))
    where = np.array([-3, -4, 50]) + c * 0.7 * row + r * 0.8 * column + k * 2.5 * normal
    z, y, x = np.argwhere(scan.volume == hounsfield[k, r, c])[0]
    np.testing.assert_allclose((scan.affine @ [x, y, z, 1])[:3], where * [-1, -1, 1], atol=1e-4)


def test_display_convention_and_storage_do_not_change_hu(tmp_path, hounsfield, slices_of, save):
    inverted = save(slices_of(hounsfield, PhotometricInterpretation="MONOCHROME1"), tmp_path / "inverted")
    unsigned = slices_of(hounsfield, PixelRepresentation=0, RescaleIntercept=-3072)
    for dataset, plane in zip(unsigned, hounsfield, strict=True):
        dataset.PixelData = (plane + 3072).astype("<u2").tobytes()
    for folder in (inverted, save(unsigned, tmp_path / "unsigned")):
        np.testing.assert_array_equal(read_scan(folder).volume, hounsfield)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_pixels(tmp_path, slices_of, save, syntax):
    volume = np.random.default_rng(0).integers(-1000, 2000, (2, 32, 32)).astype(np.float32)
    slices = slices_of(volume)
    for dataset in slices:
        dataset.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(read_scan(save(slices, tmp_path)).volume, volume)


def test_one_file_is_a_volume_of_one_slice(tmp_path, hounsfield, slices_of, save):
    folder = save(slices_of(hounsfield[:1]), tmp_path)
    scan = read_scan(folder / "000.dcm")
    np.testing.assert_array_equal(scan.volume, hounsfield[:1])
    assert scan.spacing == pytest.approx((2.5, 0.8, 0.7))
    thin = read_scan(save(slices_of(hounsfield[:1], SliceThickness=None), tmp_path / "thin"))
    assert thin.spacing[0] == 1
    assert any("without SliceThickness (0018,0050): taken as 1 mm" in note for note in thin.provenance.notes)
    overview = save(slices_of(hounsfield[:1], ImageType="LOCALIZER"), tmp_path / "overview")
    with pytest.raises(ScanError, match=r"ImageType \(0008,0008\) says LOCALIZER"):
        read_scan(overview / "000.dcm")


def test_what_is_no_slice_is_left_out_and_said(tmp_path, hounsfield, slices_of, save):
    save(slices_of(hounsfield), tmp_path)
    overview = slices_of(hounsfield[:1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.3")
    save(overview, tmp_path / "deeper")
    contours = slices_of(hounsfield[:1], Modality="RTSTRUCT", SeriesInstanceUID="1.2.4")
    save(contours, tmp_path / "contours")
    (tmp_path / "README.txt").write_text("not a slice")
    scan = read_scan(tmp_path)
    np.testing.assert_array_equal(scan.volume, hounsfield)
    notes = " ".join(scan.provenance.notes)
    for word in ("README.txt", "1 localizer", "1 RTSTRUCT"):
        assert word in notes
    assert ("note", scan.provenance.notes[0]) in describe(scan)


def test_two_series_are_listed_and_one_can_be_named(tmp_path, hounsfield, slices_of, save):
    save(slices_of(hounsfield), tmp_path / "a")
    save(slices_of(hounsfield + 1, SeriesInstanceUID="1.2.3.4"), tmp_path / "b")
    with pytest.raises(ScanError, match=r"SeriesInstanceUID \(0020,000E\)") as caught:
        read_scan(tmp_path)
    assert "1.2.3.4" in str(caught.value)
    assert "1.2.826.0.1.3680043.8.498.1 " in str(caught.value)
    scan = read_scan(tmp_path, series_uid="1.2.3.4")
    np.testing.assert_array_equal(scan.volume, hounsfield + 1)
    assert scan.provenance.series_uid == "1.2.3.4"
    with pytest.raises(ScanError, match=r"no series 9\.9"):
        read_scan(tmp_path, series_uid="9.9")


def _edit(index: int, **tags):
    """A change of one slice: None deletes the attribute."""

    def change(slices):
        for keyword, value in tags.items():
            if value is None:
                delattr(slices[index], keyword)
            else:
                setattr(slices[index], keyword, value)
        return slices

    return change


def _edit_all(**tags):
    def change(slices):
        for index in range(len(slices)):
            _edit(index, **tags)(slices)
        return slices

    return change


def _copy_of_position(slices):
    slices[3].ImagePositionPatient = slices[2].ImagePositionPatient
    return slices


def _letters(slices):
    del slices[2].ImagePositionPatient
    slices[2].add(RawDataElement(Tag("ImagePositionPatient"), "DS", 6, b"a\\b\\cd", 0, False, True))
    return slices


def _moved(index: int, *offset: float):
    def change(slices):
        at = np.array(slices[index].ImagePositionPatient, dtype=float) + offset
        slices[index].ImagePositionPatient = list(at)
        return slices

    return change


REFUSALS = {
    "missing slice": (lambda s: s[:2] + s[3:], r"1 slice\(s\) missing: ImagePositionPatient \(0020,0032\).*5\.000 mm"),
    "missing slice of three": (lambda s: [s[0], s[2], s[3]], r"000\.dcm and .*001\.dcm: 1 slice\(s\) missing"),
    "missing slice of two": (
        lambda s: [_edit(0, SpacingBetweenSlices=2.5)(s)[0], s[2]],
        r"1 slice\(s\) missing: SpacingBetweenSlices \(0018,0088\) says 2\.5 mm",
    ),
    "doubled slice": (lambda s: [*s, s[2]], r"006\.dcm: doubled slice: ImagePositionPatient.*002\.dcm"),
    "doubled position": (_copy_of_position, r"003\.dcm: doubled slice"),
    "uneven steps": (_moved(2, 0, 0, 0.7), r"uneven steps: ImagePositionPatient"),
    "sideways": (_moved(2, 1.5, 0, 0), r"002\.dcm: ImagePositionPatient \(0020,0032\) is 1\.50 mm off the line"),
    "slope differs": (_edit(2, RescaleSlope=2), r"002\.dcm: RescaleSlope \(0028,1053\) is 2\.0, but 1\.0"),
    "intercept differs": (_edit(2, RescaleIntercept=0), r"002\.dcm: RescaleIntercept \(0028,1052\) is 0\.0"),
    "no slope": (_edit(2, RescaleSlope=None), r"002\.dcm: RescaleSlope \(0028,1053\) is missing"),
    "no intercept": (_edit(2, RescaleIntercept=None), r"002\.dcm: RescaleIntercept \(0028,1052\) is missing"),
    "empty slope": (_edit(2, RescaleSlope=None, RescaleIntercept=""), r"RescaleSlope \(0028,1053\) is missing"),
    "empty intercept": (_edit(2, RescaleIntercept=""), r"002\.dcm: RescaleIntercept \(0028,1052\) is empty"),
    "slope 0": (_edit(2, RescaleSlope=0), r"RescaleSlope \(0028,1053\) is 0"),
    "not HU": (_edit(2, RescaleType="Z_EFF"), r"002\.dcm: RescaleType \(0028,1054\) is Z_EFF"),
    "modality": (_edit_all(Modality="MR"), r"000\.dcm: Modality \(0008,0060\) is MR, expected CT"),
    "no modality": (_edit(2, Modality=""), r"002\.dcm: Modality \(0008,0060\) is missing"),
    "no position": (_edit(2, ImagePositionPatient=None), r"ImagePositionPatient \(0020,0032\) is missing"),
    "no orientation": (_edit(2, ImageOrientationPatient=None), r"ImageOrientationPatient \(0020,0037\) is missing"),
    "no spacing": (_edit(2, PixelSpacing=None), r"002\.dcm: PixelSpacing \(0028,0030\) is missing"),
    "spacing 0": (_edit(2, PixelSpacing=[0, 1]), r"PixelSpacing \(0028,0030\) is \(0\.0, 1\.0\)"),
    "spacing of one": (_edit(2, PixelSpacing=[1]), r"PixelSpacing \(0028,0030\).*expected 2"),
    "skewed orientation": (
        _edit(2, ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]),
        r"002\.dcm: ImageOrientationPatient \(0020,0037\).*perpendicular",
    ),
    "orientation differs": (
        _edit(2, ImageOrientationPatient=[0, 1, 0, -1, 0, 0]),
        r"002\.dcm: ImageOrientationPatient \(0020,0037\)",
    ),
    "spacing differs": (_edit(2, PixelSpacing=[0.9, 0.7]), r"002\.dcm: PixelSpacing \(0028,0030\)"),
    "size differs": (_edit(2, Rows=4, Columns=20), r"002\.dcm: Rows \(0028,0010\)"),
    "frame of reference": (_edit(2, FrameOfReferenceUID="1.2"), r"002\.dcm: FrameOfReferenceUID \(0020,0052\)"),
    "no series": (_edit(2, SeriesInstanceUID=None), r"002\.dcm: SeriesInstanceUID \(0020,000E\) is missing"),
    "colour": (_edit(2, PhotometricInterpretation="RGB"), r"PhotometricInterpretation \(0028,0004\) is RGB"),
    "short pixels": (_edit(2, PixelData=b"\0" * 80), r"002\.dcm: PixelData \(7FE0,0010\)"),
    "no pixels": (_edit(2, PixelData=None), r"002\.dcm: PixelData \(7FE0,0010\)"),
    "tilt by its tag": (
        _edit(2, GantryDetectorTilt=12),
        r"002\.dcm: gantry tilt: GantryDetectorTilt \(0018,1120\) is 12",
    ),
    "frames 0": (_edit(2, NumberOfFrames=0), r"002\.dcm: NumberOfFrames \(0028,0008\) is 0"),
    "text for a number": (
        _letters,
        r"002\.dcm: ImagePositionPatient \(0020,0032\) cannot be read as numbers",
    ),
    "only localizers": (
        lambda s: [_edit(0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])(s)[0]],
        r"no slice of a scan.*dropped 1 localizer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_by_file_and_tag(tmp_path, hounsfield, slices_of, save, case):
    break_it, message = REFUSALS[case]
    with pytest.raises(ScanError, match=message):
        read_scan(save(break_it(slices_of(hounsfield)), tmp_path))


def test_a_claimed_step_that_positions_contradict_is_said(tmp_path, hounsfield, slices_of, save):
    scan = read_scan(save(slices_of(hounsfield, SpacingBetweenSlices=1.25), tmp_path))
    assert scan.spacing[0] == pytest.approx(2.5)
    assert any("says 1.25 mm, positions step by 2.5 mm" in note for note in scan.provenance.notes)


def test_tilt_is_read_only_when_allowed(tmp_path, hounsfield, slices_of, save):
    lean = np.radians(18)
    tilted = (1, 0, 0, 0, np.cos(lean), -np.sin(lean))
    folder = save(slices_of(hounsfield, orientation=tilted, step=(0, 0, 2.5)), tmp_path)
    with pytest.raises(ScanError, match=r"gantry tilt: GantryDetectorTilt.*leans 18\.0 degrees"):
        read_scan(folder)
    scan = read_scan(folder, allow_tilt=True)
    np.testing.assert_array_equal(scan.volume, hounsfield)
    np.testing.assert_allclose(scan.affine[:3, 2], [0, 0, 2.5], atol=1e-6)
    assert any("allow_tilt" in note for note in scan.provenance.notes)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty, 0 bytes"), (b"hello, not DICOM" * 40, "not DICOM: no 'DICM' prefix")]
)
def test_a_broken_file_among_slices_is_not_left_out(tmp_path, hounsfield, slices_of, save, content, message):
    folder = save(slices_of(hounsfield), tmp_path)
    (folder / "999.dcm").write_bytes(content)
    for path in (folder, folder / "999.dcm"):
        with pytest.raises(ScanError, match=rf"999\.dcm: .*{message}"):
            read_scan(path)


def test_an_empty_file_named_as_the_slices_are(tmp_path, hounsfield, slices_of, save):
    folder = save(slices_of(hounsfield), tmp_path, [f"IM{k}" for k in range(6)])
    (folder / "IM6").touch()
    with pytest.raises(ScanError, match=r"IM6: empty, 0 bytes"):
        read_scan(folder)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_file_cut_off_at_any_place_is_refused(tmp_path, hounsfield, slices_of, save):
    content = (save(slices_of(hounsfield[:1]), tmp_path) / "000.dcm").read_bytes()
    for length in range(0, len(content), 37):
        path = tmp_path / f"cut{length}.dcm"
        path.write_bytes(content[:length])
        with pytest.raises(ScanError, match=path.name):
            read_scan(path)


def test_a_folder_without_dicom(tmp_path):
    (tmp_path / "scan.nii").write_bytes(b"x")
    with pytest.raises(ScanError, match=r"no DICOM file in it \(there is scan\.nii\)"):
        read_scan(tmp_path)
    with pytest.raises(ScanError, match="no such file"):
        read_scan(tmp_path / "nothing")


def _multiframe(single: list, hounsfield: np.ndarray):
    """The slices of a series as one enhanced CT file, in reverse order."""
    whole = single[0]
    whole.NumberOfFrames = len(single)
    whole.PixelData = (hounsfield[::-1] + 1024).astype("<i2").tobytes()
    shared, rescale, measures, plane = Dataset(), Dataset(), Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    measures.PixelSpacing, measures.SliceThickness = whole.PixelSpacing, whole.SliceThickness
    plane.ImageOrientationPatient = whole.ImageOrientationPatient
    shared.PixelValueTransformationSequence = Sequence([rescale])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    whole.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for dataset in single[::-1]:
        group, place = Dataset(), Dataset()
        place.ImagePositionPatient = dataset.ImagePositionPatient
        group.PlanePositionSequence = Sequence([place])
        groups.append(group)
    whole.PerFrameFunctionalGroupsSequence = Sequence(groups)
    for keyword in ("RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient"):
        delattr(whole, keyword)
    return whole


def test_enhanced_multiframe(tmp_path, hounsfield, slices_of, save):
    whole = _multiframe(slices_of(hounsfield), hounsfield)
    scan = read_scan(save([whole], tmp_path / "whole") / "000.dcm")
    np.testing.assert_array_equal(scan.volume, hounsfield)
    assert scan.spacing == pytest.approx((2.5, 0.8, 0.7))
    details = Dataset()
    details.GantryDetectorTilt = 10
    whole.SharedFunctionalGroupsSequence[0].CTAcquisitionDetailsSequence = Sequence([details])
    with pytest.raises(ScanError, match=r"gantry tilt: GantryDetectorTilt \(0018,1120\) is 10"):
        read_scan(save([whole], tmp_path / "tilted"))
    del whole.PerFrameFunctionalGroupsSequence
    with pytest.raises(ScanError, match=r"000\.dcm \(frame 1\): ImagePositionPatient \(0020,0032\) is missing"):
        read_scan(save([whole], tmp_path / "placeless"))


def test_other_modalities(tmp_path, hounsfield, slices_of, save):
    slices = slices_of(hounsfield, Modality="MR")
    for dataset in slices:
        del dataset.RescaleSlope, dataset.RescaleIntercept
    folder = save(slices, tmp_path)
    for modality in ("MR", "other"):
        scan = read_scan(folder, modality=modality)
        np.testing.assert_array_equal(scan.volume, hounsfield + 1024)  # as stored
        assert scan.provenance.modality == "MR"


def test_contours_are_refused_as_what_they_are(tmp_path, slices_of, hounsfield, save):
    contours = slices_of(hounsfield)[:1]
    contours[0].Modality = "RTSTRUCT"
    with pytest.raises(ScanError, match=r"contours \(RTSTRUCT\), no voxels"):
        read_scan(save(contours, tmp_path / "rt") / "000.dcm")
