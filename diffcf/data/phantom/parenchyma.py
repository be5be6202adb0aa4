"""A field of lung a few centimetres wide: parenchyma, vessels, sometimes the chest wall with ribs, and noise."""

from __future__ import annotations

import numpy as np

from diffcf.data.phantom.branches import Lines, draw, joined, tree
from diffcf.data.phantom.scene import stream
from diffcf.data.phantom.shapes import covered, ct_noise, paint, pixel_centres, smooth_noise, soften

WALL_SHARE = 0.45  # of the fields that show chest wall, mediastinum or diaphragm


def lung_field(seed: int, size: int, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Anatomy without noise, and the noise: HU, float32 "h w" each."""
    rng = stream(seed, "background")
    hu = _lung(rng, size, pixel)
    vessels = _vessels(rng, size, pixel)
    paint(hu, np.float32(rng.uniform(10, 50)), vessels)
    has_wall = rng.random() < WALL_SHARE
    if has_wall:
        _wall(hu, stream(seed, "wall"), pixel)
    noise_rng = stream(seed, "noise")
    deviation = np.float32(noise_rng.gamma(6.0, 4.0) + 8)  # scanners and doses differ widely
    return hu, deviation * ct_noise(noise_rng, hu.shape, float(noise_rng.uniform(0.3, 1.0)))


def _lung(rng: np.random.Generator, size: int, pixel: float) -> np.ndarray:
    shape = (size, size)
    hu = smooth_noise(rng, shape, 14 / pixel) * np.float32(14)
    hu += smooth_noise(rng, shape, 2.2 / pixel) * np.float32(rng.uniform(10, 26))
    y, _ = pixel_centres(size, pixel)
    hu += np.float32(rng.normal(-862, 22)) + y * np.float32(0.6)  # gravity: denser towards the back
    return hu


def _vessels(rng: np.random.Generator, size: int, pixel: float) -> np.ndarray:
    """One or two trees that enter the field from one side, and vessels that cross the plane, many of them in part."""
    half = size * pixel / 2
    towards = rng.uniform(0, 2 * np.pi)  # all vessels come from the hilum's side
    trees = []
    for _ in range(rng.integers(0, 3)):
        angle = towards + rng.normal(0, 0.7)
        root = -half * 1.15 * np.array([np.sin(angle), np.cos(angle)]) + rng.normal(0, 0.4 * half, 2)
        heading = np.array([angle + rng.normal(0, 0.35)])
        trees.append(
            tree(rng, (root[0], root[1]), heading, length=15, radius=rng.uniform(0.45, 1.2), generations=4, loss=0.35)
        )
    in_plane = draw(joined([*trees, _crossing(rng, 0.006, half, towards)]), size, pixel)
    in_part = draw(_crossing(rng, 0.014, half, towards), size, pixel)
    return soften(np.maximum(in_plane, np.float32(0.4) * in_part))


def _crossing(rng: np.random.Generator, density: float, half: float, towards: float) -> Lines:
    """Short pieces of vessels, so many a mm2 of the field."""
    count = int(rng.poisson(density * (2 * half) ** 2)) + 1
    place = rng.uniform(-half, half, (count, 2))
    radius = np.minimum(0.25 + rng.gamma(1.3, 0.24, count), 1.6)
    heading = towards + rng.normal(0, 0.7, count)
    length = rng.exponential(1.5, count)[:, None]
    ends = place + length * np.stack([np.sin(heading), np.cos(heading)], axis=1)
    return Lines(place, ends, radius, radius * 0.8)


def _wall(hu: np.ndarray, rng: np.random.Generator, pixel: float) -> None:
    """Soft tissue beyond a curved pleura at one side: fat, muscle and ribs, or mediastinum or diaphragm without."""
    size = len(hu)
    half = size * pixel / 2
    y, x = pixel_centres(size, pixel)
    side = rng.uniform(0, 2 * np.pi)
    bend = rng.uniform(70, 140) * rng.choice([1, 1, 1, -0.6])  # mm; negative: bulges into the lung
    place = half * rng.uniform(0.5, 0.95)
    centre = (place - bend) * np.array([np.sin(side), np.cos(side)])
    dy, dx = y - np.float32(centre[0]), x - np.float32(centre[1])
    away = np.hypot(dy, dx)
    depth = (away - np.float32(abs(bend))) * np.float32(np.sign(bend))  # mm beyond the pleura
    depth = depth + smooth_noise(rng, hu.shape, 16 / pixel) * np.float32(0.7)
    tissue = np.float32(rng.uniform(35, 60)) + smooth_noise(rng, hu.shape, 3 / pixel) * np.float32(6)
    if bend < 0:
        paint(hu, tissue, covered(-depth, max(1.0, pixel)))
        return
    streaks = covered(np.abs(depth - 9.5 - smooth_noise(rng, hu.shape, 12 / pixel) * np.float32(1.2)) - 0.8, 2.0)
    tissue = tissue - 130 * streaks
    fat = covered(np.float32(rng.uniform(13, 30)) - depth + smooth_noise(rng, hu.shape, 10 / pixel), 2.0)
    tissue = tissue + (np.float32(-100) - tissue) * fat
    paint(hu, tissue, covered(-depth, max(0.9, pixel)))
    along = np.float32(abs(bend)) * _angle_from(dy, dx, side)
    gap, start = rng.uniform(24, 38), rng.uniform(-20, 20)
    for k in (-1, 0, 1):
        rib_half, thick = rng.uniform(2, 12), rng.uniform(2.4, 3.8)
        beside = np.maximum(np.abs(along - np.float32(start + k * gap)) - np.float32(rib_half), 0)
        rib = np.hypot(beside, depth - np.float32(3.2 + thick)) - np.float32(thick)
        marrow = covered(rib + np.float32(1.3), 1.2)
        paint(hu, 800 - 720 * marrow, covered(rib, max(0.9, pixel)))


def _angle_from(dy: np.ndarray, dx: np.ndarray, side: float) -> np.ndarray:
    """Angle around the centre of a bend, 0 in the direction of `side`."""
    cosine, sine = np.float32(np.cos(side)), np.float32(np.sin(side))
    return np.arctan2(cosine * dy - sine * dx, cosine * dx + sine * dy)
