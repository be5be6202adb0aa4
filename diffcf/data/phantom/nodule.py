"""A lung nodule as LIDC's radiologists rate it: six attributes that shape the picture, and a label drawn from them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from diffcf.data.phantom.branches import Lines, draw
from diffcf.data.phantom.labels import MALIGNANCY, check_share, solve_increasing
from diffcf.data.phantom.parenchyma import lung_field
from diffcf.data.phantom.scene import Scene, cause_of, check_size, scan_of, stream
from diffcf.data.phantom.shapes import covered, paint, pixel_centres, smoothstep
from diffcf.data.phantom.shortcut import Shortcut, add_shortcut
from diffcf.errors import ConfigError

CLASSES = ("benign", "malignant")
THICKNESS = 1.0  # mm, of the one slice
# Attribute -> (mean, effect of aggressiveness, own deviation, lowest, highest): value = mean + effect * a + deviation *
# n, clipped, with a and n standard normal. Aggressiveness is what makes real ratings go together.
DRAWN = {
    "subtlety": (3.8, 0.2, 0.8, 1.0, 5.0),
    "sphericity": (3.7, -0.3, 0.8, 1.0, 5.0),
    "margin": (3.7, -0.6, 0.8, 1.0, 5.0),
    "lobulation": (2.5, 0.8, 0.8, 1.0, 5.0),
    "spiculation": (2.5, 0.9, 0.9, 1.0, 5.0),
    "texture": (4.1, 0.2, 1.1, 1.0, 5.0),
    "diameter": (10.0, 2.8, 2.3, 4.0, 24.0),
}
RIM_HU = ((1, 2, 3, 4, 5), (-620, -570, -450, -200, 30))  # texture -> HU of the outer part
CORE_HU = ((1, 2, 3, 4, 5), (-600, -480, -120, 10, 35))  # texture -> HU of the middle
SPICULES = 16
TWIN = 0.9  # probability of its class
MOST_SHIFT = 8.0  # of aggressiveness; every attribute is then at its end


def nodule_scene(
    seed: int,
    size: int = 64,
    spacing: float = 0.7,
    *,
    attributes: Mapping[str, float] | None = None,
    lesion: bool = True,
    imbalance: float | None = None,
    shortcut: Shortcut | None = None,
    twin: bool = False,
) -> Scene:
    """A field of lung with a nodule near its middle; one slice, `size` x `size` pixels of `spacing` mm.

    Attributes are LIDC's ratings from 1 to 5 and `diameter` in mm; what is not given is drawn:
    subtlety (1 faint, 5 obvious: contrast), sphericity (1 elongated, 5 round), margin (1 blurred, 5 sharp),
    lobulation (1 none, 5 marked: slow waves of the outline), spiculation (1 none, 5 marked: thin radiating lines),
    texture (1 ground glass, -620 HU; 3 part-solid; 5 solid, 30 HU). With the same seed an attribute changes nothing
    but the nodule.

    The label is drawn with P(malignant) = logistic(1.5 (spiculation - 2.6) + 1.0 (lobulation - 2.6)
    - 0.6 (margin - 3.6) - 0.5 (sphericity - 3.6) + 0.3 (texture - 4) + 0.3 (diameter - 10)), `labels.MALIGNANCY`;
    about half are malignant. imbalance: another share of malignant ones, met by drawing the attributes of less or more
    aggressive nodules; the table stays. lesion: False leaves the nodule out, everything else being equal.
    twin: the scene's true counterfactual: the same draws with another aggressiveness, the nearest at which the table
    gives the other class a probability of `TWIN`; its label is that class.

    Errors: ConfigError for an unknown attribute or one out of its range, and for a size or spacing that is not
    positive.
    """
    check_size(size)
    if not 0.1 <= spacing <= 5:
        raise ConfigError(f"spacing {spacing} mm: expected 0.1 to 5 mm a pixel.")
    rated, noise_of_label = nodule_draw(seed, attributes=attributes, imbalance=imbalance)
    label = int(noise_of_label < MALIGNANCY.probability(rated))
    if twin:
        label = 1 - label
        rated = _twin(seed, attributes or {}, imbalance, label)
    hu, noise = lung_field(seed, size, spacing)
    share, value = _nodule(seed, size, spacing, rated)
    without = hu + noise
    with_nodule = hu.copy()
    paint(with_nodule, np.maximum(value, with_nodule), share)  # a nodule at the wall does not darken it
    volume = (with_nodule + noise if lesion else without)[None]
    cause = cause_of(volume, without[None], share[None]) if lesion else np.zeros(volume.shape, np.uint8)
    probability = MALIGNANCY.probability(rated)
    marks: dict = {}
    if shortcut is not None:
        volume, where, points_to = add_shortcut(volume, label, shortcut, seed)
        marks = {"shortcut": where, "shortcut_class": points_to}
    return Scene(
        scan=scan_of(volume, (THICKNESS, spacing, spacing), f"phantom nodule, seed {seed}"),
        label=label,
        classes=CLASSES,
        cause=cause,
        attributes=rated,
        probability=probability,
        **marks,
    )


def nodule_draw(
    seed: int, *, attributes: Mapping[str, float] | None = None, imbalance: float | None = None
) -> tuple[dict[str, float], float]:
    """What `nodule_scene` draws a nodule's label from, without the picture: its attributes, and the label's own noise.

    The noise u is uniform in [0, 1), depends on the seed alone, and the label is 1 where u < `MALIGNANCY.probability`
    of the attributes: with u held fixed, other attributes give the label that this very nodule would have had.

    Errors: as `nodule_scene`.
    """
    return _rated(seed, attributes or {}, imbalance), float(stream(seed, "label").random())


def _twin(seed: int, given: Mapping[str, float], imbalance: float | None, label: int) -> dict[str, float]:
    def given_label(shift: float) -> float:
        probability = MALIGNANCY.probability(_rated(seed, given, imbalance, shift if label else -shift))
        return probability if label else 1 - probability

    shift = solve_increasing(given_label, TWIN, 0.0, MOST_SHIFT)
    return _rated(seed, given, imbalance, shift if label else -shift)


def _rated(seed: int, given: Mapping[str, float], imbalance: float | None, shift: float = 0.0) -> dict[str, float]:
    unknown = set(given) - set(DRAWN)
    if unknown:
        raise ConfigError(f"unknown attribute(s) {', '.join(sorted(unknown))}; a nodule has {', '.join(DRAWN)}.")
    check_share(imbalance)
    rng = stream(seed, "attributes")
    aggressive = rng.standard_normal() + shift + (0.0 if imbalance is None else _aggressiveness(imbalance))
    values = {}
    for name, (mean, effect, deviation, low, high) in DRAWN.items():
        own = rng.standard_normal()
        value = float(np.clip(mean + effect * aggressive + deviation * own, low, high))
        if name in given:
            value = float(given[name])
            if not low <= value <= high:
                raise ConfigError(f"{name} {value:g}: expected {low:g} to {high:g}.")
        values[name] = round(value, 3)
    return values


@lru_cache(maxsize=16)
def _aggressiveness(share: float) -> float:
    """Mean aggressiveness at which a share of the nodules is malignant."""
    normal = np.random.default_rng(0).standard_normal((len(DRAWN) + 1, 4000))

    def malignant(mean: float) -> float:
        logit = np.zeros(normal.shape[1])
        for k, (name, (centre, effect, deviation, low, high)) in enumerate(DRAWN.items()):
            if name in MALIGNANCY.terms:
                weight, at = MALIGNANCY.terms[name]
                value = np.clip(centre + effect * (normal[-1] + mean) + deviation * normal[k], low, high)
                logit += weight * (value - at)
        return float(np.mean(1 / (1 + np.exp(-logit - MALIGNANCY.intercept))))

    return solve_increasing(malignant, share, -6.0, 6.0)


def _nodule(seed: int, size: int, pixel: float, rated: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel the nodule covers, and its HU; both "h w"."""
    rng = stream(seed, "nodule")
    at = rng.uniform(-2.5, 2.5, 2)
    turn, phases = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 6)
    waves = rng.uniform(0.5, 1.0, 4) * np.array([1.0, 0.9, 0.7, 0.5])
    y, x = pixel_centres(size, pixel)
    y, x = y - np.float32(at[0]), x - np.float32(at[1])
    away, angle = np.hypot(y, x), np.arctan2(y, x)
    long = 0.42 * (5 - rated["sphericity"]) / 4
    lobes = 0.19 * (rated["lobulation"] - 1) / 4
    outline = 1 / np.sqrt((1 - long) * np.cos(angle - turn) ** 2 + np.sin(angle - turn) ** 2 / (1 - long))
    for k, wave in enumerate(waves, start=3):
        outline = outline * (1 + lobes * wave * np.cos(k * angle + phases[k - 3]))
    radius = np.float32(rated["diameter"] / 2) * outline
    edge = min(0.9 + 0.95 * (5 - rated["margin"]), 1.3 * rated["diameter"] / 2)
    body = smoothstep(0.5 - (away - radius) / max(edge, pixel))
    spikes = _spicules(rng, at, rated, size, pixel) * covered(away - radius * 2.6, pixel)
    share = np.maximum(body, 0.85 * spikes) * (0.35 + 0.65 * (rated["subtlety"] - 1) / 4)
    rim, core = (float(np.interp(rated["texture"], *table)) for table in (RIM_HU, CORE_HU))
    middle = smoothstep((0.75 * radius - away) / (0.35 * radius))
    return share.astype(np.float32), (rim + (core - rim) * middle).astype(np.float32)


def _spicules(
    rng: np.random.Generator, at: np.ndarray, rated: Mapping[str, float], size: int, pixel: float
) -> np.ndarray:
    """Thin lines that leave the nodule, longer and more of them with the rating."""
    angle = np.arange(SPICULES) * 2 * np.pi / SPICULES + rng.normal(0, 0.24, SPICULES)
    lean, reach, width = (
        rng.normal(0, 0.12, SPICULES),
        rng.uniform(0.35, 1.0, SPICULES),
        rng.uniform(0.5, 0.8, SPICULES),
    )
    order = rng.permutation(SPICULES) / SPICULES
    strength = (rated["spiculation"] - 1) / 4
    grown = np.clip((strength * 1.15 - order) / 0.15, 0, 1)
    radius = rated["diameter"] / 2
    length = radius * 0.75 + (2.0 + 0.95 * radius) * reach * grown * (0.4 + 0.6 * strength)
    direction = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    tip = np.stack([np.sin(angle + lean), np.cos(angle + lean)], axis=1)
    start, end = at + 0.4 * radius * direction, at + length[:, None] * tip
    out = grown > 0
    if not out.any():
        return np.zeros((size, size), np.float32)
    return draw(Lines(start[out], end[out], width[out] * 1.5, width[out] * 0.4), size, pixel)
