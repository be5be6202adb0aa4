"""Slices, field and grid: closed forms for where things lie, exact ways back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcf.cards import Preparation, Window
from diffcf.errors import ConfigError, ScanError
from diffcf.scans import SliceSelection, parse_slices, prepare, resample


def test_parse_slices():
    assert parse_slices("10, 20,30") == SliceSelection(indices=(10, 20, 30))
    assert parse_slices("12.5mm,-30mm") == SliceSelection(positions_mm=(12.5, -30.0))
    for text in ("", "a", "1,2mm", "1.5", "nanmm"):
        with pytest.raises(ConfigError, match="expected whole numbers"):
            parse_slices(text)


@pytest.mark.parametrize(
    ("count", "indices"), [(1, (3,)), (2, (1, 4)), (3, (1, 3, 5)), (6, (0, 1, 2, 3, 4, 5)), (4, (0, 2, 3, 5))]
)
def test_evenly_spaced_slices(hounsfield, scan_of, count, indices):
    patch = prepare(scan_of(hounsfield), Preparation(size=4, slices=count))
    assert patch.slices == indices
    np.testing.assert_array_equal(patch.hu, hounsfield[list(indices), 2:6, 3:7])


def test_chosen_slices(hounsfield, scan_of):
    scan = scan_of(hounsfield)  # slices at 0, 2.5, ..., 12.5 mm
    two = Preparation(size=4, slices=2)
    assert prepare(scan, two, slices=[4, 1]).slices == (4, 1)
    assert prepare(scan, two, slices=parse_slices("2.4mm,11mm")).slices == (1, 4)
    assert prepare(scan, two, centre_mm=(-2.4, -2.4, 5.2)).slices == (2, 3)
    assert prepare(scan, two, centre_mm=(-2.4, -2.4, 12.5)).slices == (4, 5)
    for slices, message in [
        ([1], "1 slice"), ([1, 1], "chosen twice"), ([1, 6], "slice 6 does not exist"), ([-1, 2], "slice -1 does not"),
        (parse_slices("0mm,20mm"), "no slice at 20 mm: the scan's slices lie from 0 to 12.5 mm"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            prepare(scan, two, slices=slices)
    with pytest.raises(ScanError, match=r"6 slice\(s\), the model takes 7"):
        prepare(scan, Preparation(size=4, slices=7))


def test_the_centre(hounsfield, scan_of):
    scan = scan_of(hounsfield)
    patch = prepare(scan, Preparation(size=3), centre_index=(2, 7))
    np.testing.assert_array_equal(patch.hu, hounsfield[3:4, 1:4, 6:9])
    same = prepare(scan, Preparation(size=3), centre_mm=(-7 * 0.8, -2 * 0.8, 3 * 2.5))
    np.testing.assert_array_equal(same.hu, patch.hu)
    small = Preparation(size=3)
    for given_, message in [
        ({"centre_mm": (0, 0, 99)}, "outside the scan"),
        ({"centre_mm": (0, 0)}, "three finite numbers"),
        ({"centre_index": (8, 0)}, r"expected \(row, column\) within"),
        ({"centre_index": (0, 0), "centre_mm": (0, 0, 0)}, "not as both"),
    ]:
        with pytest.raises(ConfigError, match=message):
            prepare(scan, small, **given_)
    with pytest.raises(ConfigError, match="either by index or by position"):
        SliceSelection()
    with pytest.raises(ConfigError, match="a centre has no meaning"):
        prepare(scan, Preparation(size=3, field="resize"), centre_index=(1, 1))


@given(
    size=st.integers(1, 14),
    centre=st.one_of(st.none(), st.tuples(st.integers(0, 7), st.integers(0, 9))),
    slices=st.permutations(range(6)).map(lambda order: order[:2]),
)
@settings(max_examples=40, deadline=None)
def test_crop_and_restore_are_exact(hounsfield, scan_of, size, centre, slices):
    scan = scan_of(hounsfield)
    patch = prepare(scan, Preparation(size=size, slices=2), slices=slices, centre_index=centre)
    assert not patch.resampled
    assert patch.hu.shape == (2, size, size)
    assert patch.hu.dtype == np.float32
    top, left, *_ = (int(edge) for edge in patch.box)
    change = np.random.default_rng(0).normal(size=patch.hu.shape).astype(np.float32)
    restored = patch.restore(change)
    expected = np.zeros_like(hounsfield)
    for k, index in enumerate(slices):
        for r in range(size):
            for c in range(size):
                if 0 <= top + r < 8 and 0 <= left + c < 10:
                    assert patch.hu[k, r, c] == hounsfield[index, top + r, left + c]
                    expected[index, top + r, left + c] = change[k, r, c]
                else:
                    assert patch.hu[k, r, c] == -1000
    np.testing.assert_array_equal(restored, expected)
    np.testing.assert_array_equal(hounsfield + patch.restore(np.zeros_like(change)), hounsfield)


def _plane(rows: int, columns: int, spacing: float) -> np.ndarray:
    """A slice that is linear in mm: linear resampling must reproduce it away from the edges."""
    y, x = np.mgrid[:rows, :columns]
    return (-500 + 7 * (y + 0.5) * spacing + 3 * (x + 0.5) * spacing)[None].astype(np.float32)


@pytest.mark.parametrize("target", [0.4, 0.5, 1.1, 2.0])
def test_resampled_crop_lies_where_it_should(scan_of, target):
    scan = scan_of(_plane(60, 70, 0.8), (2.5, 0.8, 0.8))
    patch = prepare(scan, Preparation(size=12, spacing=target))
    assert patch.resampled
    assert patch.spacing == (target, target)
    # Pixel (r, c) lies (r + 0.5 - 6) * target mm from the middle of the slice.
    away = (np.arange(12) + 0.5 - 6) * target
    expected = -500 + 7 * (24 + away)[:, None] + 3 * (28 + away)[None]
    # Enlarging is exact; the kernel that shrinks is off by up to a twentieth of a voxel (0.04 mm, 10 HU a mm here).
    np.testing.assert_allclose(patch.hu[0], expected, atol=1e-2 if target < 0.5 else 0.4)
    # A linear change comes back linear, at the same place; outside the field there is none.
    restored = patch.restore((away[:, None] + 0 * away[None])[None])[0]
    top, left, bottom, right = patch.box
    rows, columns = np.mgrid[:60, :70]
    whole = (rows >= top) & (rows + 1 <= bottom) & (columns >= left) & (columns + 1 <= right)
    assert (restored[~whole] == 0).all()
    at = (rows + 0.5) * 0.8 - 24
    deep = whole & (np.abs(at) < 6 * target - max(target, 0.8))
    np.testing.assert_allclose(restored[deep], at[deep], atol=1e-4 if target > 0.8 else 0.04)


def test_shrinking_is_anti_aliased(scan_of):
    stripes = np.where(np.arange(96) % 2, 1000.0, -1000.0) * np.ones((1, 96, 1))
    patch = prepare(scan_of(stripes, (1, 1, 1)), Preparation(size=16, spacing=4.0))
    assert np.abs(patch.hu).max() < 130  # stripes finer than a pixel average to 0; point sampling would give 1000


def test_resize_keeps_proportions(scan_of):
    scan = scan_of(_plane(30, 60, 1.0), (2.5, 1, 1))
    patch = prepare(scan, Preparation(size=30, field="resize"))
    assert patch.spacing == (2.0, 2.0)
    assert (patch.hu[0, :7] == -1000).all()  # above and below the slice: air
    assert (patch.hu[0, 23:] == -1000).all()
    at = (np.arange(30) + 0.5) * 2
    expected = -500 + 7 * (at - 15)[:, None] + 3 * at[None]
    np.testing.assert_allclose(patch.hu[0, 9:21, 1:-1], expected[9:21, 1:-1], atol=1e-2)
    restored = patch.restore(np.ones((1, 30, 30), dtype=np.float32))
    assert restored.shape == (1, 30, 60)
    np.testing.assert_allclose(restored, 1)
    whole = prepare(scan_of(_plane(30, 30, 1.0), (2.5, 1, 1)), Preparation(size=30, field="resize"))
    np.testing.assert_array_equal(whole.hu, _plane(30, 30, 1.0))


def test_pixels_that_are_not_square_become_square(scan_of):
    rows, columns = np.mgrid[:20, :40]
    disc = np.hypot((rows - 9.5) * 2, columns - 19.5) < 12
    patch = prepare(scan_of(np.where(disc, 100, -900)[None], (2.5, 2, 1)), Preparation(size=40, spacing=1.0))
    inside = patch.hu[0] > -400
    assert abs(int(inside.sum(0).max()) - int(inside.sum(1).max())) <= 2


def test_pixels_that_are_not_square_are_not_taken_as_they_are(hounsfield, scan_of):
    preparation = Preparation(Window(40, 400), size=4, field="crop", spacing=None)
    with pytest.raises(ScanError, match=r"pixels of 0\.8 x 0\.7 mm; this model takes pixels as they are"):
        prepare(scan_of(hounsfield, (2.5, 0.8, 0.7)), preparation)
    assert prepare(scan_of(hounsfield, (2.5, 0.8, 0.79)), preparation).spacing == (0.8, 0.79)
    at_a_spacing = dataclasses.replace(preparation, spacing=0.7)
    assert prepare(scan_of(hounsfield, (2.5, 0.8, 0.7)), at_a_spacing).spacing == (0.7, 0.7)


def test_modality_and_plane(hounsfield, scan_of):
    with pytest.raises(ScanError, match="modality MR, but the model was made for CT"):
        prepare(scan_of(hounsfield, modality="MR"), Preparation(size=4))
    mr = prepare(scan_of(hounsfield + 2000, modality="MR"), Preparation(size=20, modality="other"))
    assert mr.padding == 1000  # the scan's own minimum: air in HU means nothing here
    prepare(scan_of(hounsfield, modality="unknown"), Preparation(size=4))
    with pytest.raises(ScanError, match="one sagittal or coronal slice"):
        prepare(scan_of(hounsfield[:, :1]), Preparation(size=4))


def test_patch_in_window_units(hounsfield, scan_of):
    patch = prepare(scan_of(hounsfield), Preparation(size=8, slices=6, window=Window(-600, 1600)))
    unit = patch.unit()
    assert unit.dtype == np.float32
    assert unit.min() == patch.unit()[0, 0, 0] == pytest.approx((hounsfield[0, 0, 1] + 600) / 800)
    assert unit.max() == 1.0  # beyond +200 HU
    np.testing.assert_allclose(patch.unit(Window(0, 4000)), patch.hu / 2000, atol=1e-6)
    for shape in ((6, 8, 7), (5, 8, 8)):
        with pytest.raises(ConfigError, match="does not belong to a patch"):
            patch.restore(np.zeros(shape))


@given(hu=st.floats(-3024, 3071), centre=st.floats(-1000, 1000), width=st.floats(1, 4000))
def test_window_round_trip(hu, centre, width):
    window = Window(centre, width)
    assert window.to_hu(window.to_unit(hu)) == pytest.approx(hu, abs=1e-8)
    assert window.to_unit(centre - width / 2) == pytest.approx(-1)
    assert window.to_unit(centre + width / 2) == pytest.approx(1)


def test_resample_to_a_spacing(scan_of):
    z, y, x = np.mgrid[:9, :20, :16]
    volume = -500 + 20 * z * 2.5 + 7 * y * 0.8 - 3 * x * 0.8
    scan = scan_of(volume)
    fine = resample(scan, (1.25, 1.0, 0.5))
    assert fine.spacing == pytest.approx((1.25, 1.0, 0.5))
    assert fine.volume.shape == (18, 16, 25)
    z, y, x = np.mgrid[:18, :16, :25]
    place = np.stack([x, y, z], -1) @ fine.affine[:3, :3].T + fine.affine[:3, 3]  # RAS mm
    expected = place @ [3, -7, 20] - 500
    inner = np.s_[2:-2, 2:-2, 2:-2]
    np.testing.assert_allclose(fine.volume[inner], expected[inner], atol=0.04 * 7)  # a twentieth of a voxel
    np.testing.assert_array_equal(resample(scan, (None, None, None)).volume, scan.volume)
    with pytest.raises(ScanError, match="cannot be resampled to 30 mm"):
        resample(scan, (30.0, None, None))
    with pytest.raises(ScanError, match="pass None for that axis"):
        resample(scan_of(volume[:1]), (1.0, None, None))
    with pytest.raises(ConfigError, match="positive numbers"):
        resample(scan, (0.0, None, None))
