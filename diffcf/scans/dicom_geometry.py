"""From loose DICOM slices to a regular grid: order along the normal, equal steps, one orientation, no tilt."""

from __future__ import annotations

from statistics import median_low

import numpy as np

from diffcf.errors import ScanError
from diffcf.scans.dicom_tags import Frame, tag
from diffcf.scans.grid import LPS_TO_RAS, TILT_DEGREES

SAME_PLACE = 1e-3  # mm; positions closer than this are the same slice twice
STEP_SLACK, STEP_SLACK_MM = 0.02, 0.03  # headers round positions: steps may differ by 2%, or by this many mm


def stack(frames: list[Frame], *, allow_tilt: bool, modality: str) -> tuple[list[Frame], np.ndarray, list[str]]:
    """Order slices and find their grid.

    Returns the frames from the lowest projected position along the normal to the highest, the 4x4 affine (column, row,
    slice) -> RAS mm, and notes. Errors: ScanError naming the file and the tag that does not fit its neighbours.
    """
    notes: list[str] = []
    _check_alike(frames, modality)
    first = frames[0]
    normal = np.cross(first.rows, first.columns)
    given = frames
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    if frames != given:
        notes.append("slices sorted by their position along the normal, which is not the order of the file names")
    places = np.array([frame.position @ normal for frame in frames])
    _check_doubled(frames, places)
    notes.extend(_check_tilt(frames, normal, allow_tilt))
    if len(frames) == 1:
        step = normal * _single_thickness(frames[0], notes)
    else:
        _check_steps(frames, places)
        step = (frames[-1].position - frames[0].position) / (len(frames) - 1)
        _check_line(frames, step)
        notes.extend(_check_claimed_step(frames, float(np.median(np.diff(places)))))
    between_rows, between_columns = first.pixel_spacing
    affine = np.eye(4)
    affine[:3, 0] = first.rows * between_columns
    affine[:3, 1] = first.columns * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = frames[0].position
    return frames, LPS_TO_RAS @ affine, notes


def _check_alike(frames: list[Frame], modality: str) -> None:
    """Every slice must have the size, orientation, spacing and frame of reference of the first; on CT its rescale."""
    first = frames[0]
    for frame in frames[1:]:
        differing = None
        if frame.shape != first.shape:
            differing = ("Rows", frame.shape, first.shape)
        elif not np.allclose([frame.rows, frame.columns], [first.rows, first.columns], atol=1e-3):
            now, then = (np.concatenate([one.rows, one.columns]).round(4).tolist() for one in (frame, first))
            differing = ("ImageOrientationPatient", now, then)
        elif not np.allclose(frame.pixel_spacing, first.pixel_spacing, rtol=1e-3):
            differing = ("PixelSpacing", frame.pixel_spacing, first.pixel_spacing)
        elif frame.reference != first.reference:
            differing = ("FrameOfReferenceUID", frame.reference or "missing", first.reference or "missing")
        elif modality == "CT" and frame.slope != first.slope:
            differing = ("RescaleSlope", frame.slope, first.slope)
        elif modality == "CT" and frame.intercept != first.intercept:
            differing = ("RescaleIntercept", frame.intercept, first.intercept)
        if differing:
            keyword, now, then = differing
            raise ScanError(
                f"{frame.name}: {tag(keyword)} is {now}, but {then} in {first.name} of the same series. Slices of one "
                "volume must agree: put the ones that belong together into a folder of their own."
            )


def _check_doubled(frames: list[Frame], places: np.ndarray) -> None:
    doubled = np.flatnonzero(np.diff(places) < SAME_PLACE)
    if len(doubled):
        k = int(doubled[0])
        raise ScanError(
            f"{frames[k + 1].name}: doubled slice: {tag('ImagePositionPatient')} is that of {frames[k].name} "
            f"({places[k]:.3f} mm along the normal); {len(doubled)} position(s) occur more than once. Remove the copy, "
            "or put the phases or reconstructions of this series into folders of their own."
        )


def _check_tilt(frames: list[Frame], normal: np.ndarray, allow_tilt: bool) -> list[str]:
    claimed = max(frames, key=lambda frame: abs(frame.tilt))
    shear = 0.0
    if len(frames) > 1:
        along = frames[-1].position - frames[0].position
        shear = float(np.degrees(np.arccos(np.clip(along @ normal / np.linalg.norm(along), -1.0, 1.0))))
    if max(abs(claimed.tilt), shear) <= TILT_DEGREES:
        return []
    seen = (
        f"{tag('GantryDetectorTilt')} is {claimed.tilt:g} degrees, the stack leans {shear:.1f} degrees off the normal"
    )
    if not allow_tilt:
        raise ScanError(
            f"{claimed.name}: gantry tilt: {seen}. A tilted slice is not the axial slice a model was trained on: "
            "correct the tilt, or pass allow_tilt (--allow-tilt; a manifest's column) to take the slices as they are."
        )
    return [f"gantry tilt taken as it is because allow_tilt was set: {seen}"]


def _check_steps(frames: list[Frame], places: np.ndarray) -> None:
    gaps = np.diff(places)
    usual = float(median_low(gaps.tolist()))
    slack = max(STEP_SLACK * usual, STEP_SLACK_MM)
    for k in np.flatnonzero(np.abs(gaps - usual) > slack):
        missing = round(gaps[k] / usual) - 1
        between = f"between {frames[k].name} and {frames[k + 1].name}"
        if missing >= 1 and abs(gaps[k] - (missing + 1) * usual) <= (missing + 1) * slack:
            raise ScanError(
                f"{between}: {missing} slice(s) missing: {tag('ImagePositionPatient')} jumps by {gaps[k]:.3f} mm where "
                f"the others step by {usual:.3f} mm. Fetch the missing files."
            )
        raise ScanError(
            f"{between}: uneven steps: {tag('ImagePositionPatient')} moves by {gaps[k]:.3f} mm along the normal where "
            f"others move by {usual:.3f} mm (all: {gaps.min():.3f} to {gaps.max():.3f}). Put the evenly spaced part "
            "into a folder of its own, or resample the series."
        )


def _check_line(frames: list[Frame], step: np.ndarray) -> None:
    """Positions must lie on one line: a table that shifted sideways would shear anatomy unseen."""
    for k, frame in enumerate(frames):
        off = float(np.linalg.norm(frame.position - (frames[0].position + k * step)))
        if off > max(STEP_SLACK * float(np.linalg.norm(step)), 0.1):
            raise ScanError(
                f"{frame.name}: {tag('ImagePositionPatient')} is {off:.2f} mm off the line through the first and the "
                "last slice: the series changes its position. Put the parts into folders of their own."
            )


def _check_claimed_step(frames: list[Frame], step: float) -> list[str]:
    claimed = frames[0].step
    if claimed is None or abs(step - claimed) <= max(STEP_SLACK * claimed, STEP_SLACK_MM):
        return []
    claim = f"{tag('SpacingBetweenSlices')} says {claimed:g} mm, positions step by {step:g} mm"
    if len(frames) == 2 and step > 1.5 * claimed:  # no third slice to show that this is the usual step
        raise ScanError(
            f"between {frames[0].name} and {frames[1].name}: {round(step / claimed) - 1} slice(s) missing: {claim}. "
            "Fetch the missing files, or give one slice as a file."
        )
    return [f"{claim}: the positions were used"]


def _single_thickness(frame: Frame, notes: list[str]) -> float:
    if frame.thickness is None:
        notes.append(f"one slice without {tag('SliceThickness')}: taken as 1 mm")
        return 1.0
    return frame.thickness
