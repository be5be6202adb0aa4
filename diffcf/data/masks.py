"""A region drawn on a scan, brought onto the field that was cut from it."""

from __future__ import annotations

import math

import numpy as np
from einops import rearrange, reduce

from diffcf.errors import ScanError
from diffcf.scans import Patch
from diffcf.scans.grid import has_geometry
from diffcf.types import Scan


def mask_of_patch(mask: Scan, scan: Scan, patch: Patch) -> np.ndarray:
    """The region on a patch's pixels, uint8 "s h w" of 0 and 1; non-zero voxels of `mask` are the region.

    Each pixel is sampled at as many points a side as mask voxels cross it, each point takes the nearest voxel at its
    position in the world, and the pixel belongs to the region if half of the points or more do. The mask may therefore
    lie on another grid than the scan; beyond its grid there is no region.

    Errors: ScanError where the mask lies elsewhere altogether, and where one of the two has no geometry and their
    shapes differ.
    """
    to_mask = _index_transform(mask, scan)
    rows, columns = patch.hu.shape[1:]
    top, left, bottom, right = patch.box
    height, width = (bottom - top) / rows, (right - left) / columns  # of a pixel, in voxels of the scan
    along_row, along_column = (np.linalg.norm(to_mask[:3, axis]) for axis in (1, 0))  # mask voxels a scan voxel
    points = max(1, math.ceil(max(height * along_row, width * along_column) - 1e-6))
    y = top + (np.arange(rows * points) + 0.5) * height / points - 0.5  # voxel index: 0 is the first one's centre
    x = left + (np.arange(columns * points) + 0.5) * width / points - 0.5
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    inside_scan = (np.abs(grid_y - (scan.volume.shape[1] - 1) / 2) <= scan.volume.shape[1] / 2) & (
        np.abs(grid_x - (scan.volume.shape[2] - 1) / 2) <= scan.volume.shape[2] / 2
    )
    region = mask.volume != 0
    planes, reached = [], False
    for z in patch.slices:
        index = np.stack([grid_x, grid_y, np.full_like(grid_x, z), np.ones_like(grid_x)])
        at = np.rint(np.tensordot(to_mask[:3], index, axes=1)).astype(np.int64)[::-1]  # z, y, x
        limits = rearrange(np.array(region.shape), "d -> d 1 1")
        valid = ((at >= 0) & (at < limits)).all(axis=0) & inside_scan
        reached = reached or bool(valid.any())
        values = np.zeros(valid.shape, dtype=np.float32)
        values[valid] = region[tuple(at[:, valid])]
        planes.append(reduce(values, "(h p) (w q) -> h w", "mean", p=points, q=points) >= 0.5)
    if not reached:
        raise ScanError(
            f"{mask.provenance.path}: the mask's grid does not reach the field cut from {scan.provenance.path}; they "
            "lie in different places of the world. Save the mask with the scan's affine."
        )
    return np.stack(planes).astype(np.uint8)


def _index_transform(mask: Scan, scan: Scan) -> np.ndarray:
    """4x4, voxel index (x, y, z) of the scan -> voxel index of the mask."""
    if has_geometry(mask) and has_geometry(scan):
        return np.linalg.inv(mask.affine) @ scan.affine
    if mask.volume.shape != scan.volume.shape:
        raise ScanError(
            f"{mask.provenance.path}: a mask of shape {mask.volume.shape} for a scan of shape {scan.volume.shape} (z, "
            "y, x). Without a spacing in both files the shapes must be equal."
        )
    return np.eye(4)
