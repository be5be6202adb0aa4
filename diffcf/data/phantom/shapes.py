"""Drawing in millimetres: signed distances (mm, negative inside), soft edges, smooth noise.

Pixels are given by their centres, `y` (rising to posterior) and `x` (rising to the patient's left) in mm, as arrays
that broadcast to "h w".
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def pixel_centres(size: int, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """y "h 1" and x "1 w" in mm from the middle of a square field; float32."""
    at = ((np.arange(size) - (size - 1) / 2) * pixel).astype(np.float32)
    return at[:, None], at[None, :]


def ellipse(
    y: np.ndarray, x: np.ndarray, centre: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0
) -> np.ndarray:
    """Distance to an ellipse. centre: (y, x). radii: along (x, y) before the turn, clockwise as displayed."""
    angle = np.radians(degrees)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dy, dx = y - np.float32(centre[0]), x - np.float32(centre[1])
    along, across = cosine * dx + sine * dy, cosine * dy - sine * dx
    a, b = np.float32(1 / radii[0]), np.float32(1 / radii[1])
    along, across = along * a, across * b
    scaled = np.sqrt(along * along + across * across)
    along, across = along * a, across * b
    slope = np.sqrt(along * along + across * across)
    return scaled * (scaled - 1) / np.maximum(slope, np.float32(1e-6))


def capsule(
    y: np.ndarray, x: np.ndarray, start: tuple[float, float], end: tuple[float, float], radius: float
) -> np.ndarray:
    """Distance to a line from start to end, both (y, x), that is 2 * radius thick and round at its ends."""
    dy, dx = end[0] - start[0], end[1] - start[1]
    from_y, from_x = y - np.float32(start[0]), x - np.float32(start[1])
    share = (from_y * np.float32(dy) + from_x * np.float32(dx)) / np.float32(max(dy * dy + dx * dx, 1e-6))
    share = np.clip(share, 0, 1)
    from_y, from_x = from_y - share * np.float32(dy), from_x - share * np.float32(dx)
    return np.sqrt(from_y * from_y + from_x * from_x) - np.float32(radius)


def smooth_union(one: np.ndarray, other: np.ndarray, width: float) -> np.ndarray:
    """The smaller of two distances, the crease rounded over `width` mm."""
    mix = np.clip(0.5 + (other - one) * np.float32(0.5 / width), 0, 1)
    return other + (one - other) * mix - np.float32(width) * mix * (1 - mix)


def smooth_cut(one: np.ndarray, away: np.ndarray, width: float) -> np.ndarray:
    """What is inside `one` and outside `away`."""
    return -smooth_union(-one, away, width)


def covered(distance: np.ndarray, blur: float) -> np.ndarray:
    """How much of a pixel lies inside, 0 to 1: the edge is a ramp of `blur` mm around distance 0."""
    return np.clip(np.float32(0.5) - distance * np.float32(1 / blur), 0, 1)


def paint(hu: np.ndarray, value: np.ndarray | np.floating | float, share: np.ndarray) -> None:
    """Replace `share` of each pixel's HU by `value`, in place."""
    hu += share * (value - hu)


def smoothstep(value: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


@lru_cache(maxsize=256)
def _spline(size: int, length: float) -> np.ndarray:
    """Cubic B-spline weights "size knots" of pixels on knots `length` pixels apart; rows sum to 1."""
    at = (np.arange(size) + 0.5) / length
    knots = int(np.ceil(size / length)) + 3
    away = np.abs(at[:, None] - (np.arange(knots) - 1)[None, :])
    near = 2 / 3 - away**2 + away**3 / 2
    weights = np.where(away < 1, near, np.where(away < 2, (2 - away) ** 3 / 6, 0.0))
    return weights.astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], length: float) -> np.ndarray:
    """Noise "h w" of mean 0 and standard deviation about 1 that varies over `length` pixels (1 or more)."""
    rows, columns = (_spline(size, max(float(length), 1.0)) for size in shape)
    knots = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
    return (rows @ knots @ columns.T) * np.float32(2.09)  # a cubic B-spline's mean square is 0.479


def ct_noise(rng: np.random.Generator, shape: tuple[int, int], softness: float = 1.0) -> np.ndarray:
    """Noise "h w" of standard deviation about 1 with the grain of a reconstructed CT: correlated, no slow part.

    softness: 0 is a sharp kernel (nearly white), 1 a soft one.
    """
    white = rng.standard_normal(shape, dtype=np.float32)
    soft = soften(white)
    grain = white + np.float32(softness) * (soft - white)
    return (grain - np.float32(0.5) * soften(soften(soft))) * np.float32(1 / _grain_deviation(softness))


@lru_cache(maxsize=64)
def _grain_deviation(softness: float) -> float:
    """Standard deviation of `ct_noise` before it is divided by it: the norm of its kernel."""
    impulse = np.zeros((15, 15), np.float32)
    impulse[7, 7] = 1
    soft = soften(impulse)
    return float(np.linalg.norm(impulse + softness * (soft - impulse) - 0.5 * soften(soften(soft))))


def soften(plane: np.ndarray) -> np.ndarray:
    """Blur "h w" by [1, 2, 1] / 4 along both axes; the edge repeats."""
    for axis in (0, 1):
        pad = [(1, 1) if axis == at else (0, 0) for at in (0, 1)]
        padded = np.pad(plane, pad, mode="edge")
        before, after = (padded[:-2], padded[2:]) if axis == 0 else (padded[:, :-2], padded[:, 2:])
        plane = np.float32(0.5) * plane + np.float32(0.25) * (before + after)
    return plane


def shrink(plane: np.ndarray, factor: int) -> np.ndarray:
    """A picture "h w" a whole factor smaller, by the anti-aliasing filter with which `scans.prepare` resizes."""
    if factor == 1:
        return plane.copy()
    from PIL import Image

    height, width = plane.shape
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.array(picture.resize((width // factor, height // factor), Image.Resampling.BILINEAR), dtype=np.float32)
