"""Textures of fibrotic lung: honeycomb cysts and thickened septa, as the cells of a jittered lattice."""

from __future__ import annotations

import numpy as np
from einops import rearrange

Cells = tuple[np.ndarray, np.ndarray]


def cells(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, length: float) -> Cells:
    """Distances in mm from points (y, x), "n", to the nearest and to the second nearest seed.

    Seeds lie on a lattice `length` mm wide, each moved at random within its own square.
    """
    if y.size == 0:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    row, column = y / np.float32(length), x / np.float32(length)
    row, column = row - np.floor(row.min()) + 1, column - np.floor(column.min()) + 1
    height, width = int(row.max()) + 3, int(column.max()) + 3
    seeds = rng.uniform(0.05, 0.95, (height, width, 2)).astype(np.float32)
    seeds += np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).astype(np.float32)
    flat = rearrange(seeds, "h w d -> (h w) d")
    home = row.astype(np.int64) * width + column.astype(np.int64)
    first = np.full(y.shape, 9, np.float32)
    second = first.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            seed = flat[home + (dy * width + dx)]
            away = np.hypot(row - seed[:, 0], column - seed[:, 1])
            second = np.minimum(second, np.maximum(first, away))
            first = np.minimum(first, away)
    return first * np.float32(length), second * np.float32(length)


def walls(between: Cells, thickness: np.ndarray | float, pixel: float) -> np.ndarray:
    """How much of each pixel is wall between cells: a net of lines `thickness` mm wide."""
    first, second = between
    gap = (second - first) / 2  # mm to the line between the two cells, near enough
    return np.clip(
        np.float32(0.5) - (gap - np.maximum(thickness, 0.6) / 2).astype(np.float32) * np.float32(1 / max(pixel, 0.9)),
        0,
        1,
    )
