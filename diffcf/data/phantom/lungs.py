"""What fills the lungs of a chest slice: parenchyma that is denser towards the back, vessels, fissures."""

from __future__ import annotations

import numpy as np

from diffcf.data.phantom.branches import Lines, draw, joined, tree
from diffcf.data.phantom.chest import Chest
from diffcf.data.phantom.plane import Plane
from diffcf.data.phantom.shapes import covered, paint, smooth_noise

HILUM = (6.0, 42.0)  # mm, (y, |x|)
HILUM_LEVEL = 0.5


def fill_lungs(rng: np.random.Generator, plane: Plane, chest: Chest) -> np.ndarray:
    """Paint the lungs onto the chest's HU in place; returns how much of each pixel is lung, "h w"."""
    inside = covered(chest.lung, plane.blur)
    hu = _parenchyma(rng, plane, chest)
    _fissures(hu, rng, plane)
    paint(hu, np.float32(35), _vessels(rng, plane, chest))
    paint(chest.hu, hu, inside)
    return inside


def _parenchyma(rng: np.random.Generator, plane: Plane, chest: Chest) -> np.ndarray:
    body, pixel, shape = plane.body, plane.pixel, plane.y.shape
    hu = np.float32(body.lung_hu) + plane.y * np.float32(body.dependent / 160)
    hu = hu + smooth_noise(rng, shape, 45 / pixel) * np.float32(9)
    hu = hu + smooth_noise(rng, shape, 6 / pixel) * np.float32(13)
    hu = hu + smooth_noise(rng, shape, 2.2 / pixel) * np.float32(22)
    behind = np.clip((plane.y - 20) / 60, 0, 1) * np.exp(np.minimum(chest.lung, 0) / np.float32(5))
    hu = hu + behind * np.float32(rng.gamma(1.2, 45))  # lung that its own weight has closed in part
    return hu.astype(np.float32)


def _fissures(hu: np.ndarray, rng: np.random.Generator, plane: Plane) -> None:
    """The oblique fissures, which a slice meets further in front the lower it lies: a faint line."""
    at = float(np.interp(plane.level, (0.0, 0.9), (-62, 62))) + rng.normal(0, 6, 2)
    wander = smooth_noise(rng, hu.shape, 40 / plane.pixel) * np.float32(5)
    faint = rng.uniform(0.1, 0.45)
    side = np.abs(plane.x)
    line = plane.y - np.float32(0.22) * (side - 70) - np.where(plane.x > 0, *at.astype(np.float32)) - wander
    paint(hu, np.float32(-560), covered(np.abs(line) - 0.5, 1.4) * np.float32(faint))


def _vessels(rng: np.random.Generator, plane: Plane, chest: Chest) -> np.ndarray:
    level, body = plane.level, plane.body
    near = float(np.exp(-(((level - HILUM_LEVEL) / 0.22) ** 2)))  # how much of the hilum the slice sees
    trees, crossing = [], []
    reach = np.array([110.0 * body.depth, 95.0 * body.width])
    for sign in (-1, 1):
        root = (HILUM[0] * body.depth, sign * HILUM[1] * body.width)
        outward = 0.0 if sign > 0 else np.pi
        count = int(rng.integers(5, 8)) if near > 0.3 else int(rng.integers(3, 6))
        directions = outward + np.linspace(-1.9, 1.9, count) + rng.normal(0, 0.2, count)
        start = np.array(root) + (1 - near) * 14 * np.stack([np.sin(directions), np.cos(directions)], 1)
        for at, direction in zip(start, directions, strict=True):
            trees.append(
                tree(
                    rng, (at[0], at[1]), np.array([direction]), length=26,
                    radius=body.vessels * (1.7 + 1.7 * near), loss=0.3 - 0.1 * near, bend=0.55,
                )
            )  # fmt: skip
        crossing.append(_crossing(rng, np.array(root), reach, body.vessels))
    fine = draw(joined([_crossing(rng, np.array([0.0, 0.0]), 1.2 * reach, 0.55) for _ in range(3)]), *_field(plane))
    main = draw(joined(trees + crossing), *_field(plane))
    depth = np.clip(-chest.lung / np.float32(14), 0, 1)  # in the outer centimetre vessels are too thin to see
    return np.maximum(main, np.float32(0.45) * fine) * (np.float32(0.25) + np.float32(0.75) * depth)


def _field(plane: Plane) -> tuple[int, float]:
    return plane.y.shape[0], plane.pixel


def _crossing(rng: np.random.Generator, root: np.ndarray, reach: np.ndarray, scale: float) -> Lines:
    """Vessels that cross the slice: thick near the root, thin far from it, drawn out away from it."""
    count = 120
    place = root + rng.normal(0, 0.55, (count, 2)) * reach
    away = place - root
    far = np.linalg.norm(away / reach, axis=1)
    radius = scale * (0.5 + 1.5 * np.exp(-2.2 * far)) * rng.uniform(0.45, 1.2, count)
    heading = np.arctan2(away[:, 0], away[:, 1]) + rng.normal(0, 0.5, count)
    length = rng.exponential(2.5, count)[:, None]
    ends = place + length * np.stack([np.sin(heading), np.cos(heading)], axis=1)
    return Lines(place, ends, radius, 0.75 * radius)
