"""From a scan to a model's input and back: which slices, which field, which grid.

Both fields are one operation: a square of `size` x `size` pixels with a pixel size in mm, laid over the slice. "crop"
takes the pixel size from the preparation and its centre from the caller; "resize" takes the pixel size at which the
square just holds the whole slice (padded to a square first, so anatomy is never stretched).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

from diffcf.cards import Preparation, Window
from diffcf.errors import ConfigError, ScanError
from diffcf.scans.grid import has_geometry, require_geometry, spacing_of, world
from diffcf.types import Scan

AIR_HU = -1000.0
SQUARE = 1.02  # sides of a pixel, longer by shorter, up to which it counts as square
SAME_SPACING = 1e-4  # relative; a grid this close to the asked one is taken as it is, voxel for voxel


@dataclass(frozen=True)
class SliceSelection:
    """Slices by index (0 is the most inferior one) or by position in mm (superior, RAS, at the slice's middle)."""

    indices: tuple[int, ...] = ()
    positions_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.indices) == bool(self.positions_mm):
            raise ConfigError("select slices either by index or by position in mm; give exactly one of the two.")


def parse_slices(text: str) -> SliceSelection:
    """Read "10,20,30" as indices and "12.5mm,30mm" as positions. Errors: ConfigError."""
    parts = [part.strip().lower() for part in text.split(",")]
    try:
        if all(part.endswith("mm") for part in parts):
            positions = tuple(float(part.removesuffix("mm")) for part in parts)
            if not all(math.isfinite(position) for position in positions):
                raise ValueError("not finite")
            return SliceSelection(positions_mm=positions)
        return SliceSelection(indices=tuple(int(part) for part in parts))
    except ValueError as error:
        raise ConfigError(
            f"slices {text!r}: expected whole numbers ('10,20,30') or positions that all end in mm ('12.5mm,30mm')."
        ) from error


@dataclass(frozen=True, eq=False)
class Patch:
    """A model's field cut out of a scan, and the way back.

    hu: float32 "s h w" with h = w = the preparation's size. slices: their indices in the scan. spacing: mm of a pixel
    along (rows, columns). box: edges (top, left, bottom, right) of the field in voxels of the slice, where 0 is the
    outer edge of the first voxel; whole numbers where `resampled` is False, and beyond the slice where it was padded.
    padding: HU outside the slice (-1000, air; the lowest value of a scan that is no CT). shape: of the scan, (z, y, x).
    """

    hu: np.ndarray
    slices: tuple[int, ...]
    spacing: tuple[float, float]
    box: tuple[float, float, float, float]
    resampled: bool
    padding: float
    shape: tuple[int, int, int]
    preparation: Preparation

    def unit(self, window: Window | None = None) -> np.ndarray:
        """The field in window units, clipped to [-1, 1], float32 "s h w"; the preparation's window unless given."""
        window = window or self.preparation.window
        return np.clip(window.to_unit(self.hu), -1.0, 1.0).astype(np.float32)

    def restore(self, hu_change: Any) -> np.ndarray:
        """A change in HU, "s h w", on the scan's grid, float32 "z y x": zero on other slices and outside the field.

        Where the field was not resampled, values are copied bit for bit; otherwise they are interpolated, and voxels
        that the field covers in part stay zero. Errors: ConfigError for another shape.
        """
        change = np.asarray(hu_change, dtype=np.float32)
        if change.shape != self.hu.shape:
            raise ConfigError(f"a change of shape {change.shape} does not belong to a patch of shape {self.hu.shape}.")
        volume = np.zeros(self.shape, dtype=np.float32)
        top, left, bottom, right = self.box
        _, height, width = self.shape
        rows = (max(0, math.ceil(top - 1e-6)), min(height, math.floor(bottom + 1e-6)))
        columns = (max(0, math.ceil(left - 1e-6)), min(width, math.floor(right + 1e-6)))
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            return volume
        size = change.shape[-1]
        per_row, per_column = size / (bottom - top), size / (right - left)  # patch pixels a voxel
        inside = (
            (rows[0] - top) * per_row,
            (columns[0] - left) * per_column,
            (rows[1] - top) * per_row,
            (columns[1] - left) * per_column,
        )
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        for index, plane in zip(self.slices, change, strict=True):
            volume[index, slice(*rows), slice(*columns)] = _resize(plane, inside, shape)
        return volume


def prepare(
    scan: Scan,
    preparation: Preparation,
    *,
    slices: SliceSelection | Sequence[int] | None = None,
    centre_mm: Sequence[float] | None = None,
    centre_index: Sequence[float] | None = None,
    any_pixels: bool = False,
) -> Patch:
    """Cut a model's field out of a scan.

    slices: indices or a `SliceSelection`; None takes `preparation.slices` slices evenly spaced over the volume (the
    middles of as many equal parts) or, with centre_mm, as many neighbouring slices around that point. centre_mm: RAS
    (x, y, z) of the field's centre; centre_index: its (row, column). At most one of the two; without either it is the
    middle of the slice. The field is anti-aliased where it shrinks, and padded where it exceeds the slice. any_pixels:
    also take pixels that are not square as they are, to cut scans that no model looks at.

    Errors: ScanError where the scan's modality is not the preparation's, it has too few slices, its pixels are not
    square and would be taken as they are, or a length in mm is asked of a scan without spacing; ConfigError where a
    slice or centre does not exist.
    """
    _check_modality(scan, preparation)
    if not any_pixels:
        _check_square(scan, preparation)
    if centre_mm is not None and centre_index is not None:
        raise ConfigError("give the centre as centre_mm or as centre_index, not as both.")
    if preparation.field == "resize" and (centre_mm is not None or centre_index is not None):
        raise ConfigError("this model sees the whole slice (field 'resize'): a centre has no meaning; leave it out.")
    depth, height, width = scan.volume.shape
    if min(height, width) == 1 < max(depth, height, width):
        raise ScanError(
            f"{scan.provenance.path}: a grid of {depth} x {height} x {width} (z, y, x) has no axial slice: this is one "
            "sagittal or coronal slice. Give the axial series."
        )
    point = None
    if centre_mm is not None:
        require_geometry(scan, "a centre in mm")
        point = _index_of(scan, centre_mm)
        centre = (point[1], point[2])
    elif centre_index is not None:
        centre = _checked_centre(centre_index, (height, width))
    else:
        centre = ((height - 1) / 2, (width - 1) / 2)
    chosen = _slices(scan, preparation, slices, None if point is None else point[0])
    pixel, own = _pixel_size(scan, preparation)
    resampled = not np.allclose(pixel, own, rtol=SAME_SPACING, atol=0)
    size = preparation.size
    extent = (size * pixel[0] / own[0], size * pixel[1] / own[1]) if resampled else (float(size), float(size))
    top, left = (middle + 0.5 - length / 2 for middle, length in zip(centre, extent, strict=True))
    if not resampled:  # whole voxels; of two equally central squares of even size the upper left one
        top, left = float(math.floor(top + 1e-6)), float(math.floor(left + 1e-6))
    box = (top, left, top + extent[0], left + extent[1])
    padding = AIR_HU if scan.provenance.modality in ("CT", "unknown") else float(scan.volume.min())
    return Patch(
        hu=np.stack([_cut(scan.volume[index], box, size, padding) for index in chosen]),
        slices=chosen,
        spacing=pixel if resampled else own,
        box=box,
        resampled=resampled,
        padding=padding,
        shape=(depth, height, width),
        preparation=preparation,
    )


def resample(scan: Scan, spacing: tuple[float | None, float | None, float | None]) -> Scan:
    """A scan on a grid of another spacing, mm along (z, y, x); None keeps an axis.

    Linear, anti-aliased where it shrinks. The outer edges of the first voxels stay where they are; what is left over of
    a voxel at the far end is dropped. The result is a grid of its own: `write_nifti` writes it as such.

    Errors: ScanError for a scan without spacing, for one shorter than a voxel of the new grid, and for an axis of one
    voxel; ConfigError for a spacing that is not positive.
    """
    import dataclasses

    require_geometry(scan, "resampling")
    wanted = [own if asked is None else float(asked) for asked, own in zip(spacing, scan.spacing, strict=True)]
    if not all(math.isfinite(value) and value > 0 for value in wanted):
        raise ConfigError(f"spacing {spacing} mm: expected positive numbers along (z, y, x), or None to keep an axis.")
    factors = [1.0 if math.isclose(new, own, rel_tol=SAME_SPACING) else new / own
               for new, own in zip(wanted, scan.spacing, strict=True)]  # fmt: skip
    lengths = [math.floor(n / factor + 1e-6) for n, factor in zip(scan.volume.shape, factors, strict=True)]
    for axis, (n, factor, length) in enumerate(zip(scan.volume.shape, factors, lengths, strict=True)):
        if factor != 1 and (n == 1 or length < 1):
            raise ScanError(
                f"{scan.provenance.path}: {n} voxel(s) of {scan.spacing[axis]:g} mm along {'zyx'[axis]} cannot be "
                f"resampled to {wanted[axis]:g} mm; pass None for that axis."
            )
    z, y, x = lengths
    volume = scan.volume
    if (factors[1], factors[2]) != (1.0, 1.0):
        box = (0.0, 0.0, min(y * factors[1], volume.shape[1]), min(x * factors[2], volume.shape[2]))
        volume = np.stack([_resize(plane, box, (y, x)) for plane in volume])
    if factors[0] != 1:
        upright = rearrange(volume, "z y x -> y z x")
        box = (0.0, 0.0, min(z * factors[0], volume.shape[0]), float(x))
        volume = rearrange(np.stack([_resize(plane, box, (z, x)) for plane in upright]), "y z x -> z y x")
    affine = scan.affine.copy()
    affine[:3, :3] *= factors[::-1]
    affine[:3, 3] = world(scan, [(factor - 1) / 2 for factor in factors])  # centre of the new first voxel
    source = scan.provenance
    note = "resampled to {:g} x {:g} x {:g} mm (z, y, x)".format(*spacing_of(affine))
    source = dataclasses.replace(
        source, grid_shape=(x, y, z), grid_affine=affine, to_grid=None, notes=(*source.notes, note)
    )
    volume = np.ascontiguousarray(volume, dtype=np.float32)
    return Scan(volume=volume, spacing=spacing_of(affine), affine=affine, provenance=source)


def slice_position(scan: Scan, index: int) -> float:
    """Superior position (RAS z, mm) of a slice's middle."""
    _, height, width = scan.volume.shape
    return float(world(scan, (index, (height - 1) / 2, (width - 1) / 2))[2])


def _check_modality(scan: Scan, preparation: Preparation) -> None:
    found = scan.provenance.modality
    if preparation.modality != "other" and found not in (preparation.modality, "unknown"):
        raise ScanError(
            f"{scan.provenance.path}: modality {found}, but the model was made for {preparation.modality}. Give a "
            f"{preparation.modality} scan, or a model for {found}."
        )


def _index_of(scan: Scan, centre_mm: Sequence[float]) -> tuple[float, float, float]:
    """Voxel index (z, y, x) of a RAS position; ConfigError outside the scan."""
    position = np.asarray(centre_mm, dtype=np.float64)
    if position.shape != (3,) or not np.isfinite(position).all():
        raise ConfigError(f"centre_mm {centre_mm}: expected three finite numbers, RAS (x, y, z) in mm.")
    x, y, z = (np.linalg.inv(scan.affine) @ np.array([*position, 1.0]))[:3]
    inside = all(-0.5 - 1e-6 <= at <= n - 0.5 + 1e-6 for at, n in zip((z, y, x), scan.volume.shape, strict=True))
    if not inside:
        last = world(scan, [n - 1 for n in scan.volume.shape])
        raise ConfigError(
            f"centre {position.tolist()} mm (RAS) lies outside the scan, which runs from "
            f"{np.round(scan.affine[:3, 3], 1).tolist()} to {np.round(last, 1).tolist()}."
        )
    return (float(z), float(y), float(x))


def _checked_centre(centre: Sequence[float], shape: tuple[int, int]) -> tuple[float, float]:
    if len(centre) != 2 or not all(-0.5 <= at <= n - 0.5 for at, n in zip(centre, shape, strict=False)):
        raise ConfigError(f"centre_index {tuple(centre)}: expected (row, column) within a slice of shape {shape}.")
    return (float(centre[0]), float(centre[1]))


def even_places(depth: int, count: int) -> tuple[int, ...]:
    """Indices of `count` slices evenly spaced over `depth`: the middles of as many equal parts."""
    return tuple((2 * k + 1) * depth // (2 * count) for k in range(count))


def _slices(
    scan: Scan, preparation: Preparation, asked: SliceSelection | Sequence[int] | None, around: float | None
) -> tuple[int, ...]:
    depth, count = scan.volume.shape[0], preparation.slices
    if depth < count:
        raise ScanError(
            f"{scan.provenance.path}: {depth} slice(s), the model takes {count}. Give a scan with more slices, or a "
            "model of fewer."
        )
    if asked is None:
        if around is None:
            return even_places(depth, count)
        first = min(max(math.floor(around - (count - 1) / 2 + 0.5), 0), depth - count)
        return tuple(range(first, first + count))
    selection = asked if isinstance(asked, SliceSelection) else SliceSelection(indices=tuple(asked))
    indices = selection.indices or tuple(_nearest_slice(scan, at) for at in selection.positions_mm)
    if len(indices) != count:
        raise ConfigError(f"{len(indices)} slice(s) chosen, {indices}; the model takes {count}.")
    if len(set(indices)) < count:
        raise ConfigError(f"slices {indices}: one was chosen twice; the model takes {count} different ones.")
    for index in indices:
        if not 0 <= index < depth:
            raise ConfigError(f"slice {index} does not exist: the scan has {depth}, 0 (inferior) to {depth - 1}.")
    return tuple(int(index) for index in indices)


def _nearest_slice(scan: Scan, position: float) -> int:
    require_geometry(scan, "a slice by its position")
    depth = scan.volume.shape[0]
    lowest, highest = slice_position(scan, 0), slice_position(scan, depth - 1)
    step = (highest - lowest) / (depth - 1) if depth > 1 else scan.spacing[0]
    at = (position - lowest) / step
    if not -0.5 - 1e-6 <= at <= depth - 0.5 + 1e-6:
        raise ConfigError(f"no slice at {position:g} mm: the scan's slices lie from {lowest:g} to {highest:g} mm.")
    return min(max(round(at), 0), depth - 1)


def _check_square(scan: Scan, preparation: Preparation) -> None:
    """Refuse pixels that a model would see stretched."""
    _, rows, columns = scan.spacing
    as_they_are = preparation.field == "crop" and preparation.spacing is None
    if as_they_are and has_geometry(scan) and max(rows, columns) > min(rows, columns) * SQUARE:
        raise ScanError(
            f"{scan.provenance.path}: pixels of {rows:g} x {columns:g} mm; this model takes pixels as they are, and "
            "has seen square ones alone. Give axial slices, or resample the scan (diffcf.scans.prepare.resample)."
        )


def _pixel_size(scan: Scan, preparation: Preparation) -> tuple[tuple[float, float], tuple[float, float]]:
    """mm of a pixel of the field, and of the slice, along (rows, columns)."""
    _, *sides = scan.spacing
    own = (sides[0], sides[1])
    if preparation.field == "resize":
        side = max(n * length for n, length in zip(scan.volume.shape[1:], own, strict=True))
        return (side / preparation.size, side / preparation.size), own
    if preparation.spacing is None:
        return own, own
    require_geometry(scan, f"a field at {preparation.spacing:g} mm a pixel")
    return (preparation.spacing, preparation.spacing), own


def _cut(plane: np.ndarray, box: tuple[float, float, float, float], size: int, padding: float) -> np.ndarray:
    """The field `box` of a slice "h w" as "size size", padded where it reaches beyond the slice."""
    top, left, bottom, right = box
    height, width = plane.shape
    before = (max(0, math.ceil(-top)), max(0, math.ceil(-left)))
    after = (max(0, math.ceil(bottom - height)), max(0, math.ceil(right - width)))
    padded = np.pad(plane, tuple(zip(before, after, strict=True)), constant_values=padding)
    moved = (top + before[0], left + before[1], bottom + before[0], right + before[1])
    return _resize(padded, moved, (size, size))


def _resize(plane: np.ndarray, box: tuple[float, float, float, float], shape: tuple[int, int]) -> np.ndarray:
    """The part `box` (edges top, left, bottom, right in pixels) of a picture "h w" as float32 of another shape.

    Linear; where it shrinks, Pillow widens the kernel by the factor, which is the anti-aliasing. A box of whole pixels
    that keeps its shape is a copy, bit for bit.
    """
    from PIL import Image

    top, left, bottom, right = box
    whole = [round(edge) for edge in box]
    if np.allclose(box, whole, rtol=0, atol=1e-6) and (whole[2] - whole[0], whole[3] - whole[1]) == shape:
        return plane[whole[0] : whole[2], whole[1] : whole[3]].astype(np.float32)
    height, width = plane.shape
    inside = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))  # rounding may reach past an edge
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=inside), dtype=np.float32)
