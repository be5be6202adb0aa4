"""An axial slice of a chest without lungs' vessels: body, muscles, bones and mediastinum, painted in HU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffcf.data.phantom.anatomy import (
    ABDOMEN,
    AIRWAYS,
    CAVITY_HALF_DEPTH,
    CAVITY_HALF_WIDTH,
    CAVITY_MIDDLE,
    MEDIASTINUM,
    MUSCLE_HALF_DEPTH,
    MUSCLE_HALF_WIDTH,
    MUSCLE_MIDDLE,
    SHOULDER,
    SPINE_MIDDLE,
    Organ,
    at_level,
)
from diffcf.data.phantom.bones import paint_bones
from diffcf.data.phantom.plane import Plane
from diffcf.data.phantom.shapes import (
    capsule,
    covered,
    ellipse,
    paint,
    pixel_centres,
    smooth_cut,
    smooth_noise,
    smooth_union,
)

AIR, FAT, SKIN, WALL = -1000.0, -102.0, 15.0, 20.0  # HU; the last: walls of airways


@dataclass(frozen=True)
class Chest:
    """hu: "h w", lungs filled with nothing yet. lung, cavity: distances in mm to the lungs' and the cavity's outline,
    negative inside."""

    hu: np.ndarray
    lung: np.ndarray
    cavity: np.ndarray


def draw_chest(rng: np.random.Generator, plane: Plane) -> Chest:
    """Everything but what fills the lungs."""
    y, x, level, body, blur = plane.y, plane.x, plane.level, plane.body, plane.blur
    cavity = ellipse(
        y, x, (at_level(CAVITY_MIDDLE, level) * body.depth, 0),
        (at_level(CAVITY_HALF_WIDTH, level) * body.width, at_level(CAVITY_HALF_DEPTH, level) * body.depth),
    )  # fmt: skip
    muscles = _muscles(plane)
    skin = _skin(plane, muscles)
    hu = np.full(y.shape, AIR, np.float32)
    _table(hu, plane)
    paint(hu, SKIN, covered(skin, blur))
    grain = smooth_noise(rng, y.shape, 5 / plane.pixel)
    paint(hu, FAT + 8 * grain, covered(skin + 2.2, blur))
    _paint_muscles(hu, rng, plane, muscles, cavity)
    paint(hu, FAT + 8 * grain, covered(cavity, blur))  # whatever in the cavity is not lung or organ
    lung = _lungs(plane, cavity)
    for organ in (*MEDIASTINUM, *ABDOMEN):
        distance = _distance(organ, plane)
        if distance is not None:
            inside = covered(np.maximum(distance, cavity), blur)
            paint(hu, organ.hu + 6 * grain, inside)
    paint_bones(hu, rng, plane, cavity)
    for organ in AIRWAYS:
        distance = _distance(organ, plane)
        if distance is not None:
            paint(hu, WALL, covered(distance - 1.6, blur))
            paint(hu, organ.hu, covered(distance, blur))
    return Chest(hu=hu, lung=lung, cavity=cavity)


def _muscles(plane: Plane) -> np.ndarray:
    """Outline of the muscles: the trunk, and the shoulders at upper levels."""
    y, x, level, body = plane.y, plane.x, plane.level, plane.body
    middle = at_level(MUSCLE_MIDDLE, level) * body.depth
    trunk = ellipse(
        y, x, (middle, 0),
        (at_level(MUSCLE_HALF_WIDTH, level) * body.width, at_level(MUSCLE_HALF_DEPTH, level) * body.depth),
    )  # fmt: skip
    backs = ellipse(y, np.abs(x), (middle + float(np.interp(level, (0.4, 0.86), (72, 53))) * body.depth, 38), (50, 50))
    trunk = smooth_union(trunk, backs, 12)
    shoulder = at_level(SHOULDER, level)
    if shoulder > 0:
        arms = ellipse(y, np.abs(x), (middle + 12, 128 * body.width), (48 * shoulder, 62 * shoulder))
        trunk = smooth_union(trunk, arms, 24)
    return trunk


def _skin(plane: Plane, muscles: np.ndarray) -> np.ndarray:
    y, x, level, body = plane.y, plane.x, plane.level, plane.body
    skin = muscles - np.float32(body.fat)
    size = body.breast * np.exp(-(((level - 0.3) / 0.24) ** 2))
    if size > 0.08:
        front = (at_level(MUSCLE_MIDDLE, level) - at_level(MUSCLE_HALF_DEPTH, level)) * body.depth
        breasts = ellipse(y, np.abs(x), (front + 6, 78 * body.width), (52, 14 + 40 * size))
        skin = smooth_union(skin, breasts, 16)
    return skin


def _table(hu: np.ndarray, plane: Plane) -> None:
    """The couch: two shells of a hollow board under the back; it neither turns nor warps with the patient."""
    body = plane.body
    y, x = pixel_centres(len(hu), plane.pixel)
    y = y - np.float32(body.shift[0] + 4)
    under = (at_level(MUSCLE_MIDDLE, 0.3) + at_level(MUSCLE_HALF_DEPTH, 0.3)) * body.depth + body.fat + 10
    for depth, value in ((0.0, -350.0), (22.0, -600.0)):
        shell = np.abs(ellipse(y, x, (under - 260 + depth, 0), (520, 262))) - 1.2
        paint(hu, value, covered(shell, plane.blur) * (y > 60))


def _paint_muscles(
    hu: np.ndarray, rng: np.random.Generator, plane: Plane, muscles: np.ndarray, cavity: np.ndarray
) -> None:
    """Muscle with the planes of fat between its layers, which run along the chest wall."""
    shape, pixel = hu.shape, plane.pixel
    fibres = smooth_noise(rng, shape, 3.5 / pixel) * np.float32(7)
    value = np.float32(plane.body.muscle_hu) + fibres
    wander = smooth_noise(rng, shape, 16 / pixel) * np.float32(4.5)
    leanness = np.float32(np.interp(plane.body.fat, (4, 26), (0.25, 0.8)))
    leanness = leanness * np.clip(1 + smooth_noise(rng, shape, 20 / pixel), 0, 1.2)
    for depth in (13.0, 25.0, 38.0):
        streak = covered(np.abs(cavity - depth - wander) - 1.0, 2.4)
        value = value + (np.float32(FAT) - value) * streak * leanness
    paint(hu, value, covered(muscles, plane.blur))


def _lungs(plane: Plane, cavity: np.ndarray) -> np.ndarray:
    """Distance to the lungs: the cavity without mediastinum, spine and the domes of the diaphragm."""
    y, x, level, body = plane.y, plane.x, plane.level, plane.body
    front, back = (at_level(CAVITY_MIDDLE, level) + sign * at_level(CAVITY_HALF_DEPTH, level) for sign in (-1, 1))
    core = ellipse(
        y, x, ((front + back) / 2 * body.depth - 4, 1),
        (float(np.interp(level, (0, 0.5, 0.62, 0.75, 1), (13, 10, 13, 20, 24))), (back - front) / 2 * body.depth + 8),
    )  # fmt: skip
    spine = ellipse(y, x, (at_level(SPINE_MIDDLE, level) * body.depth + 16, 0), (27, 38))
    gap = smooth_union(core, spine, 8)
    for organ in (*MEDIASTINUM, *ABDOMEN, *AIRWAYS):
        distance = _distance(organ, plane)
        if distance is not None and organ.margin:
            gap = smooth_union(gap, distance - np.float32(organ.margin), 7)
    return smooth_cut(cavity + np.float32(2.5), gap, 7)


def _distance(organ: Organ, plane: Plane) -> np.ndarray | None:
    """Distance to an organ, None where this slice misses it."""
    body = plane.body
    scale = organ.scale(plane.level)
    if scale < 0.12:
        return None
    beating = organ.name in ("heart", "right atrium", "left atrium")
    size = scale * (body.heart if beating else 1.0)
    centre = (organ.centre[0] * body.depth, organ.centre[1] * body.width)
    if organ.end is not None:
        end = (organ.end[0] * body.depth, organ.end[1] * body.width)
        return capsule(plane.y, plane.x, centre, end, organ.radii[0] * size)
    if organ in ABDOMEN:
        size *= body.depth
    return ellipse(plane.y, plane.x, centre, (organ.radii[0] * size, organ.radii[1] * size), organ.turn)
