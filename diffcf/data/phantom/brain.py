"""A slice of a brain with a hypodense lesion in one of six arterial territories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diffcf.data.phantom.labels import LESION_GRADES, check_share
from diffcf.data.phantom.scene import Scene, cause_of, check_size, scan_of, stream
from diffcf.data.phantom.shapes import (
    capsule,
    covered,
    ct_noise,
    ellipse,
    paint,
    pixel_centres,
    smooth_noise,
    smooth_union,
    smoothstep,
)
from diffcf.data.phantom.shortcut import Shortcut, add_shortcut
from diffcf.errors import ConfigError

CLASSES = ("no lesion", "lesion")
SIDES = ("no lesion", "left", "right", "both")
TERRITORIES = ("left ACA", "left MCA", "left PCA", "right ACA", "right MCA", "right PCA")
FIELD = 224.0  # mm, side of the slice
THICKNESS = 5.0  # mm
GREY, WHITE, FLUID, BONE, SKIN_HU, FAT, AIR = 37.0, 28.5, 7.0, 1050.0, 30.0, -95.0, -1000.0
GRADE_RADIUS = {1: 8.0, 2: 12.0, 3: 17.0, 4: 24.0}  # mm of the lesion before its territory bounds it


@dataclass(frozen=True)
class _Head:
    """Distances "h w" in mm of the parts of a head, and its own axes."""

    y: np.ndarray
    x: np.ndarray
    pixel: float
    skin: np.ndarray
    skull: np.ndarray  # outer table
    brain: np.ndarray

    @property
    def blur(self) -> float:
        return max(1.0, self.pixel)


def territory_scene(
    seed: int,
    size: int = 128,
    *,
    territory: int | None = None,
    grade: int | None = None,
    lesion: bool = True,
    imbalance: float | None = None,
    second: float = 0.0,
    anatomy_seed: int | None = None,
    shortcut: Shortcut | None = None,
) -> Scene:
    """One axial slice of a brain, `size` x `size` pixels over 224 mm, with a low signal to noise.

    The label is 1 where there is a lesion: an infarct, 7 to 14 HU darker than the tissue, in one of `TERRITORIES`
    (anterior, middle and posterior cerebral artery of either side). Its size grade is drawn by `labels.LESION_GRADES`
    (0, no lesion: half of the scenes; 1 to 4: an eighth each), its territory evenly; both may be given. imbalance:
    another share of scenes with a lesion. second: of these, the share that have one more of the same grade in a
    territory of the other side. lesion: False leaves all out, everything else being equal, the label too.
    anatomy_seed: scenes that share it show one patient's head.

    Attributes: `grade`; `territory`, its index (-1 without a lesion); `second`, that of the other lesion (-1 without
    one; where the share is 0 the attribute is left out); `contrast`, HU; `noise`, HU. `probability` is 0 or 1, since
    the grade decides. `regions` holds the six territories by name.

    Errors: ConfigError for a size, territory, grade or share that does not exist.
    """
    check_size(size)
    pixel = FIELD / size
    chosen = _chosen(seed, territory, grade, imbalance, second)
    rng = stream(seed if anatomy_seed is None else anatomy_seed, "head")
    head = _head(rng, size, pixel)
    hu = _tissue(rng, head)
    regions = _territories(head)
    noise_rng = stream(seed, "noise")
    deviation = float(noise_rng.uniform(4.0, 7.0)) * min(1.0, (1.75 / pixel) ** 0.7)
    noise = np.float32(deviation) * ct_noise(noise_rng, hu.shape, 1.0)
    cover = _infarct(stream(seed, "infarct"), head, regions, chosen, "territory")
    if second:
        cover = np.maximum(cover, _infarct(stream(seed, "second infarct"), head, regions, chosen, "second"))
    without = (hu + noise)[None]
    volume = (hu - np.float32(chosen["contrast"]) * cover + noise)[None] if lesion else without
    label = int(chosen["grade"] > 0)
    marks: dict = {}
    cause = cause_of(volume, without, cover[None]) if lesion else np.zeros(volume.shape, np.uint8)
    if shortcut is not None:
        volume, where, points_to = add_shortcut(volume, label, shortcut, seed)
        marks = {"shortcut": where, "shortcut_class": points_to}
    return Scene(
        scan=scan_of(volume, (THICKNESS, pixel, pixel), f"phantom territory, seed {seed}"),
        label=label,
        classes=CLASSES,
        cause=cause,
        attributes={**chosen, "noise": round(deviation, 3)},
        probability=float(label),
        regions={name: region.astype(np.uint8)[None] for name, region in regions.items()},
        **marks,
    )


def side_of(attributes: Mapping[str, float]) -> int:
    """The index into `SIDES` of a scene's lesions, from its attributes."""
    sides = {int(attributes[name]) // 3 for name in ("territory", "second") if attributes.get(name, -1) >= 0}
    return len(SIDES) - 1 if len(sides) == 2 else 1 + sides.pop() if sides else 0


def _chosen(
    seed: int, territory: int | None, grade: int | None, imbalance: float | None, second: float
) -> dict[str, float]:
    check_share(imbalance)
    if not 0 <= second <= 1:
        raise ConfigError(f"second {second!r}: expected the share of scenes with a second lesion, from 0 to 1.")
    if territory is not None and territory not in range(len(TERRITORIES)):
        raise ConfigError(f"territory {territory!r}: expected 0 to 5, for {', '.join(TERRITORIES)}.")
    if grade is not None and grade not in LESION_GRADES:
        raise ConfigError(f"grade {grade!r}: expected 0 (no lesion) to 4.")
    rng = stream(seed, "lesion")
    shares = np.array(list(LESION_GRADES.values()))
    if imbalance is not None:
        shares = np.array([1 - imbalance, *(imbalance * shares[1:] / shares[1:].sum())])
    drawn_grade = int(np.searchsorted(np.cumsum(shares)[:-1], rng.random(), side="right"))
    drawn_territory = int(rng.integers(len(TERRITORIES)))
    size = drawn_grade if grade is None else grade
    first = drawn_territory if territory is None else territory
    chosen = {
        "grade": float(size),
        "territory": float(first if size else -1),
        "contrast": round(float(rng.uniform(7, 14)), 3),
    }
    if second:
        there = rng.random() < second
        opposite = (first // 3 * 3 + 3) % 6 + int(rng.integers(3))  # a territory of the other side
        chosen["second"] = float(opposite if size and there else -1)
    return chosen


def _head(rng: np.random.Generator, size: int, pixel: float) -> _Head:
    y, x = pixel_centres(size, pixel)
    angle = np.radians(rng.normal(0, 4))
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y, x = y - np.float32(rng.normal(0, 4)), x - np.float32(rng.normal(0, 4))
    y, x = cosine * y - sine * x, cosine * x + sine * y
    shape = (size, size)
    y = y + smooth_noise(rng, shape, 50 / pixel) * np.float32(1.6)
    x = x + smooth_noise(rng, shape, 50 / pixel) * np.float32(1.6)
    width, length = 67 * rng.normal(1, 0.04), 84 * rng.normal(1, 0.04)
    back = ellipse(y, x, (8, 0), (width, length - 8))  # wider behind than in front
    front = ellipse(y, x, (-14, 0), (width * 0.86, length - 16))
    brain = smooth_union(back, front, 14)
    thick = rng.uniform(5.5, 8.5)
    skull = brain - np.float32(2.5 + thick)
    return _Head(y, x, pixel, skull - np.float32(rng.uniform(4, 7)), skull, brain)


def _tissue(rng: np.random.Generator, head: _Head) -> np.ndarray:
    """HU without lesion and noise."""
    y, x, blur, shape, pixel = head.y, head.x, head.blur, head.y.shape, head.pixel
    side = np.abs(x)
    hu = np.full(shape, AIR, np.float32)
    paint(hu, SKIN_HU, covered(head.skin, blur))
    paint(hu, FAT, covered(head.skin + 2, blur))
    paint(hu, BONE, covered(head.skull, blur))
    diploe = (head.skull + head.brain) / 2 + np.float32(-1.0)
    paint(hu, 560 + 90 * smooth_noise(rng, shape, 5 / pixel), covered(np.abs(diploe) - 0.7, blur))
    inside = head.brain - 2.5
    paint(hu, FLUID, covered(inside, blur))
    folds = smooth_noise(rng, shape, 7 / pixel) * np.float32(1.8) + smooth_noise(rng, shape, 15 / pixel)
    atrophy = rng.uniform(0.5, 2.2)
    matter = head.brain + np.float32(atrophy * 0.4) * np.maximum(folds, 0)
    deep = np.exp(np.minimum(matter, 0) / np.float32(9))
    sulci = covered(np.abs(folds) * np.float32(2.5) - np.float32(0.35 * atrophy), 1.5) * deep
    paint(hu, GREY, covered(matter, blur))
    ribbon = matter + np.float32(6.0) + folds * np.float32(2.2)
    paint(hu, WHITE, covered(ribbon, 3.0) * covered(-(side - 3.5), 3.0))
    paint(hu, FLUID, np.float32(0.75) * sulci)
    ganglia = np.minimum(
        ellipse(y, side, (2, 22), (8, 14), 18),  # lentiform nucleus
        np.minimum(ellipse(y, side, (-14, 13), (4.5, 9), -20), ellipse(y, side, (17, 10), (8, 10), 25)),
    )
    paint(hu, GREY + 1.5, covered(ganglia, 3.0))
    wide = rng.uniform(0.75, 1.5)
    horns = smooth_union(
        capsule(y, side, (-27, 9), (-10, 4), 2.6 * wide), capsule(y, side, (26, 16), (44, 19), 3.0 * wide), 2
    )
    third = capsule(y, x, (-2, 0), (14, 0), 1.4 * wide)
    paint(hu, FLUID, covered(np.minimum(horns, third), max(1.6, blur)))
    paint(
        hu, 70.0, covered(ellipse(y, side, (36, 18), (3, 3)), blur) * np.float32(rng.random() < 0.5)
    )  # calcified plexus
    fissure = covered(capsule(y, side, (-16, 62), (-2, 38), 0.9 + 0.5 * wide), max(1.8, blur))
    paint(hu, FLUID + 4, fissure * covered(head.brain, blur))
    falx = covered(side - 0.5, 1.6) * covered(head.brain, blur) * covered(-(np.abs(y) - 30), 4.0)
    paint(hu, 52.0, np.float32(0.6) * falx)
    paint(hu, hu + 1.2 * smooth_noise(rng, shape, 8 / pixel), covered(head.brain, blur))
    return hu


def _territories(head: _Head) -> dict[str, np.ndarray]:
    """The six territories, bool "h w": a strip along the midline in front, the flank, and the back."""
    y, side = head.y, np.abs(head.x)
    brain = head.brain < 0
    posterior = y > 26 + 0.28 * side
    anterior = ~posterior & (side < 17 - 0.12 * (y + 20)) & (y < 12)
    middle = ~posterior & ~anterior
    left = head.x > 0  # x rises to the patient's left
    parts = {"ACA": anterior, "MCA": middle, "PCA": posterior}
    return {name: brain & parts[name[-3:]] & (left if name.startswith("left") else ~left) for name in TERRITORIES}


def _infarct(
    rng: np.random.Generator,
    head: _Head,
    regions: Mapping[str, np.ndarray],
    chosen: Mapping[str, float],
    which: str,
) -> np.ndarray:
    """How much each pixel belongs to a lesion, "h w": a blob around a point of its territory, bounded by it.

    which: the attribute that says the territory.
    """
    place, wobble = rng.random(2), smooth_noise(rng, head.y.shape, 12 / head.pixel)
    if chosen[which] < 0:
        return np.zeros(head.y.shape, np.float32)
    region = regions[TERRITORIES[int(chosen[which])]]
    rows, columns = np.nonzero(region & (head.brain < -7))
    at = int(place[0] * len(rows))
    y, x = head.y[rows[at], columns[at]], head.x[rows[at], columns[at]]
    away = np.hypot(head.y - y, head.x - x) + wobble * np.float32(2.5)
    radius = GRADE_RADIUS[int(chosen["grade"])]
    return (smoothstep(0.5 - (away - radius) / 4.0) * region).astype(np.float32)
