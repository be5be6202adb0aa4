"""Voxel values: what can be HU and what cannot. Nothing is rescaled here; a doubt is refused with its remedy."""

from __future__ import annotations

import numpy as np

from diffcf.errors import ScanError

# Beyond these a number is not an attenuation: the extended CT scale runs from -10240 to 30710 HU.
LOWEST_HU, HIGHEST_HU = -10240.0, 32767.0
NARROW = 32.0  # HU / 1000 ends at 30.7; a CT volume whose every voxel lies this close to water does not exist


def check_values(array: np.ndarray, source: str, modality: str) -> None:
    """Refuse values that no scan has (NaN, infinity, not real numbers) and, for CT, values that cannot be HU."""
    if array.size == 0:
        raise ScanError(f"{source}: no voxels (shape {array.shape}).")
    if array.dtype.kind not in "iuf":
        raise ScanError(f"{source}: voxels of type {array.dtype} where real numbers are expected; convert them first.")
    if array.dtype.kind == "f":
        broken = int(np.count_nonzero(~np.isfinite(array)))
        if broken:
            raise ScanError(
                f"{source}: {broken} of {array.size} voxels are NaN or infinite. Replace them by what they stand for "
                "(outside the field of view: -1000 HU, air)."
            )
    if modality == "CT":
        check_hounsfield(float(array.min()), float(array.max()), source)


def check_hounsfield(lowest: float, highest: float, source: str) -> None:
    """Refuse a range of values that cannot be that of a CT volume in HU."""
    found = f"{source}: voxel values from {lowest:g} to {highest:g}"
    otherwise = "If they are not HU on purpose, the modality is 'other' (--modality of `diffcf check`, a model's card)."
    if max(abs(lowest), abs(highest)) <= NARROW:
        raise ScanError(
            f"{found} cannot be HU (air is -1000, water 0, bone above 300). If they are HU/1000, multiply them by 1000 "
            f"and save again; if they are windowed to [0, 1] or [-1, 1], or a mask, give the original scan. {otherwise}"
        )
    if lowest >= 0:
        raise ScanError(
            f"{found} hold nothing below 0 HU, neither air nor fat. If they are grey levels of an exported picture, "
            "give the original scan; if they are HU stored with an offset (often 1024), subtract it and save again. "
            f"{otherwise}"
        )
    if lowest < LOWEST_HU or highest > HIGHEST_HU:
        raise ScanError(
            f"{found} go beyond any HU scale ({LOWEST_HU:g} to {HIGHEST_HU:g}). Replace fill values by -1000 (air), "
            f"and check that signed values were not stored as unsigned. {otherwise}"
        )
