"""What every phantom gives: a scan whose label has a known cause, and where that cause lies."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from diffcf.errors import ConfigError
from diffcf.types import Provenance, Scan

LOWEST, HIGHEST = -1024, 3071  # HU


@dataclass(frozen=True, eq=False)
class Scene:
    """A made scan with a known cause of its label.

    scan: whole HU, float32 "z y x", in the canonical orientation. label: index into `classes`; in a scene of two
    classes the second is the positive one. cause: uint8 "z y x" of 0 and 1, where the lesion is; every voxel that would
    differ without the lesion is in it. attributes: what the scene was made from; `probability`: of the positive class,
    as the stated table gives it from them. shortcut: uint8 "z y x", where a shortcut was painted, None without one.
    shortcut_class: the class that the shortcut points to. regions: uint8 "z y x" by name (territories of a brain).
    """

    scan: Scan
    label: int
    classes: tuple[str, ...]
    cause: np.ndarray
    attributes: Mapping[str, float]
    probability: float
    shortcut: np.ndarray | None = None
    shortcut_class: int | None = None
    regions: Mapping[str, np.ndarray] = field(default_factory=dict)


def stream(seed: int, name: str) -> np.random.Generator:
    """Random numbers for one part of a scene, so that a change to one part leaves the others as they were.

    Errors: ConfigError for a seed that is no whole number from 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed {seed!r}: expected a whole number from 0.")
    return np.random.default_rng([int(seed), zlib.crc32(name.encode())])


def check_size(size: int, least: int = 16) -> None:
    """Refuse a number of pixels that no scene can be drawn on."""
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < least:
        raise ConfigError(f"size {size!r}: expected a whole number of pixels from {least}.")


def stored(volume: np.ndarray) -> np.ndarray:
    """What a scanner stores: whole HU of 12 bits, float32. They absorb the last bits in which processors differ."""
    return np.clip(np.rint(volume), LOWEST, HIGHEST).astype(np.float32)


def scan_of(volume: np.ndarray, spacing: tuple[float, float, float], source: str) -> Scan:
    """A scan from HU "z y x" in the canonical orientation, rounded to whole HU, its middle at the RAS origin.

    spacing: mm along (z, y, x).
    """
    step_z, step_y, step_x = spacing
    depth, height, width = volume.shape
    affine = np.diag([-step_x, -step_y, step_z, 1.0])
    affine[:3, 3] = [step_x * (width - 1) / 2, step_y * (height - 1) / 2, -step_z * (depth - 1) / 2]
    provenance = Provenance(path=source, format="array", modality="CT")
    return Scan(volume=stored(volume), spacing=spacing, affine=affine, provenance=provenance)


def cause_of(volume: np.ndarray, without: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """The cause, uint8: voxels that differ between two renderings in whole HU, and those a lesion covers by half."""
    return ((stored(volume) != stored(without)) | (coverage >= 0.5)).astype(np.uint8)
