"""Bones of a chest slice: vertebra, ribs with cartilage, sternum, clavicles, scapulae; cortex around marrow."""

from __future__ import annotations

import numpy as np

from diffcf.data.phantom.anatomy import (
    CAVITY_HALF_DEPTH,
    CAVITY_MIDDLE,
    RIB_ANGLES,
    RIB_HALF_LENGTHS,
    SHOULDER,
    SPINE_MIDDLE,
    at_level,
)
from diffcf.data.phantom.plane import Plane
from diffcf.data.phantom.shapes import capsule, covered, ellipse, paint, smooth_noise, smooth_union

CORTEX, MARROW, CARTILAGE, CORD = 950.0, 170.0, 110.0, 30.0  # HU


def paint_bones(hu: np.ndarray, rng: np.random.Generator, plane: Plane, cavity: np.ndarray) -> None:
    """Paint all bones that a slice cuts onto HU "h w", in place. cavity: distance to the outline of the cavity."""
    grain = smooth_noise(rng, hu.shape, 2.2 / plane.pixel) * np.float32(45)
    _ribs(hu, rng, plane, cavity, grain)
    _front(hu, plane, grain)
    _shoulder_blades(hu, rng, plane, cavity, grain)
    _spine(hu, rng, plane, grain)


def _bone(hu: np.ndarray, plane: Plane, distance: np.ndarray, cortex: float, grain: np.ndarray) -> None:
    """A shell of `cortex` mm around marrow."""
    density = np.float32(plane.body.bones)
    inside = covered(distance + np.float32(cortex), plane.blur)
    value = density * (CORTEX + (MARROW - CORTEX) * inside) + grain * inside
    paint(hu, value, covered(distance, plane.blur))


def _spine(hu: np.ndarray, rng: np.random.Generator, plane: Plane, grain: np.ndarray) -> None:
    y, x = plane.y, plane.x
    middle = at_level(SPINE_MIDDLE, plane.level) * plane.body.depth
    large = float(np.interp(plane.level, (0, 1), (1.08, 0.86)))
    bodies = ellipse(y, x, (middle, 0), (18.5 * large, 14.5 * large))
    side = np.abs(x)
    arch = capsule(y, side, (middle + 10 * large, 11 * large), (middle + 27 * large, 12 * large), 3.6)
    lamina = capsule(y, side, (middle + 27 * large, 12 * large), (middle + 36 * large, 2), 3.4)
    process = capsule(y, x, (middle + 35 * large, 0), (middle + float(rng.uniform(42, 51)), 0), 3.4)
    wing = capsule(y, side, (middle + 25 * large, 13), (middle + 33 * large, float(rng.uniform(28, 36))), 4.6)
    rib_head = capsule(y, side, (middle + 6 * large, 20 * large), (middle + 24 * large, 40), 4.4)
    posterior = smooth_union(smooth_union(arch, lamina, 3), smooth_union(process, wing, 3), 3)
    if rng.random() < 0.7:
        posterior = np.minimum(posterior, rib_head)
    _bone(hu, plane, posterior, 1.5, grain)
    _bone(hu, plane, bodies, 1.3, grain)
    canal = ellipse(y, x, (middle + 21.5 * large, 0), (8.8 * large, 8.2 * large))
    paint(hu, CORD, covered(canal, plane.blur))


def _ribs(hu: np.ndarray, rng: np.random.Generator, plane: Plane, cavity: np.ndarray, grain: np.ndarray) -> None:
    """Each rib is cut where it crosses the slice: a curved piece along the wall. One table serves all of them."""
    middle = at_level(CAVITY_MIDDLE, plane.level) * plane.body.depth
    dy = plane.y - np.float32(middle)
    away = np.hypot(dy, plane.x)
    angle = np.degrees(np.arctan2(plane.x, -dy))  # 0 anterior, positive to the patient's left
    phase = 26.0 * ((plane.level * 7.0) % 1.0)
    centres, halves = [], []
    for sign in (-1, 1):
        for at, half in zip(RIB_ANGLES, RIB_HALF_LENGTHS, strict=True):
            centres.append(sign * (at + phase - 12 + rng.normal(0, 2.5)))
            halves.append(half * rng.uniform(0.7, 1.3))
    degrees = np.arange(-180, 181)
    apart = np.abs((degrees[:, None] - np.array(centres)[None, :] + 180) % 360 - 180)
    radius = at_level(CAVITY_HALF_DEPTH, plane.level) * 1.15
    beyond = np.radians(apart) * radius - np.array(halves)[None, :]  # mm past the end of each rib
    nearest = beyond.min(axis=1)
    place = angle + 180
    floor = np.clip(place.astype(np.int64), 0, 359)
    mix = (place - floor).astype(np.float32)
    table = nearest.astype(np.float32)
    past = (table[floor] * (1 - mix) + table[floor + 1] * mix) * (away / np.float32(radius))
    rib = np.hypot(np.maximum(past, 0), cavity - np.float32(6.3)) - np.float32(4.1)
    front = np.abs(angle) < 38  # in front ribs are cartilage
    _bone(hu, plane, rib + 50 * front, 1.4, grain)
    paint(hu, CARTILAGE, covered(rib + 50 * ~front, plane.blur))


def _front(hu: np.ndarray, plane: Plane, grain: np.ndarray) -> None:
    y, x, level, body = plane.y, plane.x, plane.level, plane.body
    front = (at_level(CAVITY_MIDDLE, level) - at_level(CAVITY_HALF_DEPTH, level)) * body.depth
    if 0.12 < level < 0.84:
        width = float(np.interp(level, (0.1, 0.2, 0.6, 0.8), (8, 16, 16, 27)))
        _bone(hu, plane, ellipse(y, x, (front - 6, 0), (width, 5.2)), 1.3, grain)
    if 0.78 < level < 0.98:
        inner, outer = (front - 11, 24), (front + float(np.interp(level, (0.78, 0.98), (-9, 0))), 54)
        _bone(hu, plane, capsule(y, np.abs(x), inner, outer, 4.4), 1.4, grain)


def _shoulder_blades(
    hu: np.ndarray, rng: np.random.Generator, plane: Plane, cavity: np.ndarray, grain: np.ndarray
) -> None:
    """A thin plate behind the ribs; higher up its ridge and the socket of the shoulder."""
    level, width = plane.level, plane.body.width
    if level < 0.36:
        return
    share = at_level(SHOULDER, level)
    y, side = plane.y, np.abs(plane.x)
    back = (74 - 4 * share) * plane.body.depth
    inner = (back, (80 + 8 * rng.uniform()) * width)
    outer = (back - 20 - 14 * share, (112 + 12 * share) * width)
    plate = capsule(y, side, inner, outer, 2.2 + 1.0 * share)
    plate = np.maximum(plate, 11.5 - cavity)  # it never lies in the ribs
    if level > 0.72:  # the ridge on its back
        plate = np.minimum(plate, capsule(y, side, (outer[0] + 6, outer[1] - 10), (outer[0] + 10, outer[1] + 14), 2.4))
    _bone(hu, plane, plate, 1.4, grain)
    if level > 0.82:  # the socket of the shoulder
        _bone(hu, plane, ellipse(y, side, (outer[0] - 5, outer[1] + 5), (11, 8), -35), 1.6, grain)
