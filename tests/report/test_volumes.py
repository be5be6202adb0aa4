"""Counterfactual and difference on the source grid."""

from __future__ import annotations

import numpy as np
import pytest

from diffcf.report import counterfactual_volume, difference_volume, write_volumes
from diffcf.scans import prepare, read_scan
from diffcf.types import Scan


def moved(scan: Scan, volume: np.ndarray) -> Scan:
    return Scan(volume, scan.spacing, scan.affine, scan.provenance)


@pytest.mark.parametrize("residual_carry", [False, True])
def test_counterfactual_prepared_again_is_what_the_black_box_scored(make_case, residual_carry):
    case = make_case(slices=2, residual_carry=residual_carry)
    again = prepare(moved(case.scan, counterfactual_volume(case)), case.patch.preparation, slices=case.patch.slices)
    np.testing.assert_allclose(again.unit(), case.explanation.counterfactual[0, :, 0].numpy(), atol=1e-6)


def test_outside_the_field_and_the_window_nothing_moves(make_case):
    case = make_case(slices=1)
    case.scan.volume[1, 6, 6] = 1500  # inside the field, above the window
    case = make_case(slices=1, scan=case.scan, residual_carry=True)
    volume = counterfactual_volume(case)
    assert volume[1, 6, 6] == 1500
    assert (volume[[0, 2]] == case.scan.volume[[0, 2]]).all()
    assert (volume[1, :4] == case.scan.volume[1, :4]).all()  # a field of 32 in a slice of 40
    assert (difference_volume(case)[1, :4] == 0).all()


def test_difference_is_against_its_reference(make_case):
    plain, carried = make_case(), make_case(residual_carry=True)
    np.testing.assert_allclose(difference_volume(plain)[1, 4:-4, 4:-4], plain.difference_hu[0])
    change = counterfactual_volume(carried) - carried.scan.volume
    np.testing.assert_allclose(difference_volume(carried), change, atol=1e-3)


def test_resampled_field_comes_back_in_place(make_case):
    case = make_case(spacing=1.4, size=20, residual_carry=True)
    assert case.patch.resampled
    change = np.abs(difference_volume(case)[1])
    rows, columns = np.nonzero(change > 0.5 * change.max())
    assert abs(rows.mean() - 19.5) < 0.6
    assert abs(columns.mean() - 19.5) < 0.6


def test_files_lie_on_the_source_grid_and_repeat(make_case, tmp_path):
    case = make_case()
    (tmp_path / "again").mkdir()
    written, again = write_volumes(case, tmp_path), write_volumes(case, tmp_path / "again")
    for path, other in zip(written, again, strict=True):
        assert path.read_bytes() == other.read_bytes()
    assert [path.name for path in written] == ["counterfactual.nii.gz", "difference.nii.gz"]
    read = read_scan(written[0])
    np.testing.assert_allclose(read.affine, case.scan.affine, atol=1e-4)
    np.testing.assert_allclose(read.volume, counterfactual_volume(case), atol=1e-3)
