"""Vessels: branching lines and dots, drawn together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from einops import rearrange


@dataclass(frozen=True)
class Lines:
    """Tapered lines. start, end: mm, "n 2" as (y, x). first, last: radius in mm at start and end, "n"."""

    start: np.ndarray
    end: np.ndarray
    first: np.ndarray
    last: np.ndarray


def joined(parts: list[Lines]) -> Lines:
    """All lines as one set."""
    return Lines(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("start", "end", "first", "last"))
    )


def tree(
    rng: np.random.Generator,
    root: tuple[float, float],
    directions: np.ndarray,
    *,
    length: float,
    radius: float,
    generations: int = 5,
    bend: float = 0.5,
    loss: float = 0.15,
) -> Lines:
    """A vessel tree from a root (y, x): one branch a direction (radians, 0 to x, rising to y), each forking again.

    length, radius: of the first generation, mm; both shrink from one to the next. bend: radians between forks. loss:
    share of branches that leave the plane at a fork.
    """
    count = len(directions)
    start = np.tile(np.asarray(root, dtype=np.float64), (count, 1))
    angle, width = np.asarray(directions, dtype=np.float64), radius * rng.uniform(0.75, 1.1, count)
    parts = []
    for generation in range(generations):
        reach = length * 0.78**generation * rng.uniform(0.6, 1.3, len(angle))
        middle = _step(start, angle, 0.5 * reach)
        turned = angle + rng.normal(0, 0.18, len(angle))
        end = _step(middle, turned, 0.5 * reach)
        thinner = width * 0.85
        parts += [
            Lines(start, middle, width, (width + thinner) / 2),
            Lines(middle, end, (width + thinner) / 2, thinner),
        ]
        kept = rng.random(len(angle)) > loss
        end, turned, thinner = end[kept], turned[kept], thinner[kept]
        side = rng.uniform(0.5, 1.0, (2, len(turned))) * bend * np.array([[1.0], [-1.0]])
        angle = rearrange(turned + side, "fork n -> (fork n)")
        start = np.concatenate([end, end])
        width = np.concatenate([thinner, thinner]) * rng.uniform(0.62, 0.9, len(angle))
    return joined(parts)


def _step(start: np.ndarray, angle: np.ndarray, length: np.ndarray) -> np.ndarray:
    return start + length[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)


def draw(lines: Lines, size: int, pixel: float) -> np.ndarray:
    """How much of each pixel of a square field the lines cover, "h w" in 0 to 1; the thicker one wins.

    A line thinner than a pixel keeps its share of it, so that it fades instead of breaking up.
    """
    canvas = np.zeros((size, size), np.float32)
    dots, radius = _dots(lines, pixel)
    dots = dots + (size - 1) / 2
    for reach in (1, 2, 4, 8, 16):
        least = 0.0 if reach == 1 else reach / 2 - 0.5
        chosen = (radius >= least) & (radius < reach - 0.5)
        if chosen.any():
            _stamp(canvas, dots[chosen], radius[chosen], reach)
    return canvas


def _dots(lines: Lines, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Points along the lines, and their radii, in pixels from the field's middle."""
    start, end = lines.start / pixel, lines.end / pixel
    first, last = lines.first / pixel, lines.last / pixel
    steps = np.ceil(np.hypot(*(end - start).T) / np.maximum(0.5, 0.5 * last)).astype(int) + 1
    line = np.repeat(np.arange(len(steps)), steps)
    within = np.arange(len(line)) - np.repeat(np.cumsum(steps) - steps, steps)
    share = (within / np.maximum(steps[line] - 1, 1))[:, None]
    dots = start[line] + share * (end - start)[line]
    return dots, first[line] + share[:, 0] * (last - first)[line]


def _stamp(canvas: np.ndarray, dots: np.ndarray, radius: np.ndarray, reach: int) -> None:
    size = len(canvas)
    nearest = np.rint(dots).astype(np.int64)
    offset = np.arange(-reach, reach + 1)
    rows, columns = nearest[:, :1] + offset, nearest[:, 1:] + offset  # "n k"
    away_y, away_x = (rows - dots[:, :1]).astype(np.float32), (columns - dots[:, 1:]).astype(np.float32)
    away = np.sqrt(away_y[:, :, None] ** 2 + away_x[:, None, :] ** 2)
    r = radius.astype(np.float32)[:, None, None]
    share = np.clip(r + 0.5 - away, 0, 1) * np.minimum(1, 2 * r)
    flat = rows[:, :, None] * size + columns[:, None, :]
    ok = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :] & (share > 0)
    np.maximum.at(rearrange(canvas, "h w -> (h w)"), flat[ok], share[ok])
