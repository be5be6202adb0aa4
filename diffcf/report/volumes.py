"""Counterfactual and difference as volumes on the grid of the scan's own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffcf.report.case import Case, to_numpy
from diffcf.scans import write_nifti

STILL_HU = 1.0  # less than CT's own unit: no change of a value beyond the window


def counterfactual_volume(case: Case) -> np.ndarray:
    """The scan with the counterfactual in it, HU, float32 "z y x".

    Prepared as the scan was, it is again the image that the black box scored (up to interpolation where the field was
    resampled). A value that the window cut off keeps its HU where the counterfactual left it within 1 HU of the limit;
    nothing leaves the range that scan and window span together, as interpolation might.
    """
    volume, window = case.scan.volume, case.window
    low, high = (float(window.to_hu(limit)) for limit in (-1.0, 1.0))
    return (volume + case.patch.restore(_replacement(case))).clip(min(low, volume.min()), max(high, volume.max()))


def difference_volume(case: Case) -> np.ndarray:
    """The signed change against its reference, HU, float32 "z y x"; zero where nothing was explained.

    The reference is the reconstruction for a plain decode, whose own error is therefore not in this map, and the
    factual image with residual carry.
    """
    return case.patch.restore(case.difference_hu)


def write_volumes(case: Case, folder: Path) -> list[Path]:
    """Write counterfactual.nii.gz and difference.nii.gz; the same case gives the same bytes."""
    return [
        write_nifti(counterfactual_volume(case), case.scan, folder / "counterfactual.nii.gz"),
        write_nifti(difference_volume(case), case.scan, folder / "difference.nii.gz"),
    ]


def _replacement(case: Case) -> np.ndarray:
    """What to add to the field's HU, "s h w", so that the window shows the counterfactual."""
    factual = case.patch.unit()
    wanted = to_numpy(case.explanation.counterfactual)[0, :, 0].clip(-1.0, 1.0)
    cut_off = np.abs(case.window.to_unit(case.patch.hu)) > 1
    moved = np.abs(wanted - factual) * (case.window.width / 2)
    kept = (wanted == factual) | (cut_off & (moved < STILL_HU))
    return np.where(kept, 0.0, case.window.to_hu(wanted) - case.patch.hu).astype(np.float32)
