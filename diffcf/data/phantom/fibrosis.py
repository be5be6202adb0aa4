"""A chest with fibrosis of the lungs, whose extent decides whether the patient dies within a year."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from diffcf.data.phantom.anatomy import LUNG_HEIGHT, Body, levels_of
from diffcf.data.phantom.chest import Chest, draw_chest
from diffcf.data.phantom.labels import DEATH, check_share, quantiles, solve_increasing
from diffcf.data.phantom.lungs import fill_lungs
from diffcf.data.phantom.patterns import cells, walls
from diffcf.data.phantom.plane import Plane, plane_of
from diffcf.data.phantom.scene import Scene, cause_of, check_size, scan_of, stream
from diffcf.data.phantom.shapes import ct_noise, shrink, smooth_noise, smoothstep
from diffcf.data.phantom.shortcut import Shortcut, add_shortcut
from diffcf.errors import ConfigError

CLASSES = ("survives", "dies within a year")
FIELD = 352.0  # mm, side of the slice: 5.5 mm a pixel at 64, 1.375 mm at 256
FULL_EXTENT = 0.4  # share of the lungs that a drawn scene has at most
DRAWN_AT = 256  # pixels from which a slice is drawn at its own size; smaller ones are drawn larger and averaged


def fibrosis_scene(
    seed: int,
    size: int = 256,
    slices: int = 4,
    *,
    extent: float | None = None,
    lesion: bool = True,
    imbalance: float | None = None,
    anatomy_seed: int | None = None,
    shortcut: Shortcut | None = None,
) -> Scene:
    """Axial slices of a chest, base to apex, `size` x `size` pixels over 352 mm; subpleural, basal fibrosis.

    Honeycombing lies where fibrosis is densest, a net of thickened septa around it, ground glass at its border.
    Attributes: `extent`, the share of the lungs' area that is fibrotic, from 0 to 0.6, drawn between 0 and 0.4 unless
    given, little and much disease more often than the stage between (0.4 sin^2(pi u / 2), u uniform); `honeycombing`,
    the share of it that is honeycomb; `ground_glass`, HU that it adds between the septa; and what has nothing to do
    with the label: `heart` and `width` (relative to an average), `fat` (mm), `noise` (HU).

    The label is drawn with P(dies within a year) = logistic(60 (extent - 0.2)), `labels.DEATH`; about half of the
    scenes are positive. imbalance: another share of positives, met by drawing other extents (the table stays): u^k
    in place of u, with k solved for. lesion: False paints no fibrosis, everything else being
    equal, the label too.
    anatomy_seed: scenes that share it show one patient's body.

    Errors: ConfigError for a size, number of slices, extent or share that cannot be drawn.
    """
    check_size(size)
    if not 1 <= slices <= 64:
        raise ConfigError(f"{slices} slices: expected 1 to 64.")
    disease = _disease(seed, extent, imbalance)
    body_seed = seed if anatomy_seed is None else anatomy_seed
    body = Body.draw(stream(body_seed, "body"))
    factor = 1 if size >= DRAWN_AT else 2
    pixel = FIELD / size
    planes, chests, shares = [], [], []
    for k, level in enumerate(levels_of(slices, body)):
        rng = stream(body_seed, f"slice {k} of {slices}")
        plane = plane_of(rng, size * factor, pixel / factor, float(level), body)
        chest = draw_chest(rng, plane)
        shares.append(fill_lungs(rng, plane, chest))
        planes.append(plane)
        chests.append(chest)
    noise = _noise(stream(seed, "noise"), (slices, size, size), pixel, body)
    without = np.stack([shrink(chest.hu, factor) for chest in chests]) + noise
    covers = _paint_fibrosis(seed, planes, chests, shares, disease, pixel) if lesion else []
    volume = np.stack([shrink(chest.hu, factor) for chest in chests]) + noise if lesion else without
    cause = np.zeros(volume.shape, np.uint8)
    if lesion:
        cause = cause_of(volume, without, np.stack([shrink(cover, factor) for cover in covers]))
    attributes = {
        "extent": disease.extent,
        "honeycombing": disease.honeycombing,
        "ground_glass": disease.ground_glass,
        "heart": body.heart,
        "width": body.width,
        "fat": body.fat,
        "noise": body.noise,
    }
    attributes = {name: round(value, 4) for name, value in attributes.items()}
    probability = DEATH.probability(attributes)
    label = int(stream(seed, "label").random() < probability)
    marks: dict = {}
    if shortcut is not None:
        volume, where, points_to = add_shortcut(volume, label, shortcut, seed)
        marks = {"shortcut": where, "shortcut_class": points_to}
    step = round(LUNG_HEIGHT * 0.74 / max(slices - 1, 1), 3) if slices > 1 else 5.0
    return Scene(
        scan=scan_of(volume, (step, pixel, pixel), f"phantom fibrosis, seed {seed}"),
        label=label,
        classes=CLASSES,
        cause=cause,
        attributes=attributes,
        probability=probability,
        **marks,
    )


@dataclass(frozen=True)
class _Disease:
    extent: float
    honeycombing: float
    ground_glass: float
    patchiness: float
    basal: float
    cell: float  # mm, width of a cyst or of a mesh of the net
    depth: float  # mm, over which fibrosis fades from the pleura inwards


def _disease(seed: int, extent: float | None, imbalance: float | None) -> _Disease:
    check_share(imbalance)
    rng = stream(seed, "disease")
    drawn = _extent(rng.random() ** (1.0 if imbalance is None else _extent_power(imbalance)))
    if extent is not None and not 0 <= extent <= 0.6:
        raise ConfigError(f"extent {extent}: expected a share of the lungs from 0 to 0.6.")
    return _Disease(
        extent=round(float(drawn if extent is None else extent), 4),
        honeycombing=float(rng.uniform(0.25, 0.6)),
        ground_glass=float(rng.uniform(110, 240)),
        patchiness=float(rng.uniform(0.35, 0.75)),
        basal=float(rng.uniform(1.2, 2.6)),
        depth=float(rng.uniform(9, 15)),
        cell=float(rng.uniform(6.5, 10.5)),
    )


def _extent(u: Any) -> Any:
    """Numbers from 0 to 1 -> extents by the arcsine law: both ends are commoner than the middle."""
    return FULL_EXTENT * np.sin(np.pi * u / 2) ** 2


@lru_cache(maxsize=16)
def _extent_power(share: float) -> float:
    """k at which extents drawn from u^k give a share of positives; larger is rarer."""
    uniform = quantiles(2000)
    weight, centre = DEATH.terms["extent"]

    def survive(logarithm: float) -> float:
        logit = DEATH.intercept + weight * (_extent(uniform ** np.exp(logarithm)) - centre)
        return float(np.mean(1 / (1 + np.exp(logit))))

    return float(np.exp(solve_increasing(survive, 1 - share, -6.0, 6.0)))


def _noise(rng: np.random.Generator, shape: tuple[int, int, int], pixel: float, body: Body) -> np.ndarray:
    """Noise of a soft kernel, weaker where a pixel is the mean of more detector area, and the scanner's offset."""
    softness = float(rng.uniform(0.5, 1.0))
    deviation = np.float32(body.noise * min(1.0, (1.375 / pixel) ** 1.05))
    return np.stack([deviation * ct_noise(rng, shape[1:], softness) for _ in range(shape[0])]) + np.float32(body.offset)


def _paint_fibrosis(
    seed: int, planes: list[Plane], chests: list[Chest], shares: list[np.ndarray], disease: _Disease, pixel: float
) -> list[np.ndarray]:
    """Paint onto the chests' HU in place; returns how much of each pixel is fibrotic, "h w" a slice."""
    rngs = [stream(seed, f"fibrosis {k} of {len(planes)}") for k in range(len(planes))]
    weights = [_weight(*each, disease) for each in zip(rngs, planes, chests, strict=True)]
    inside = [share > 0.5 for share in shares]
    lung = np.concatenate([weight[where] for weight, where in zip(weights, inside, strict=True)])
    covers = []
    edge = np.quantile(lung, 1 - disease.extent)
    core = np.quantile(lung, 1 - disease.extent * disease.honeycombing)
    for rng, plane, chest, weight, share in zip(rngs, planes, chests, weights, shares, strict=True):
        cover = np.zeros(weight.shape, np.float32)
        if disease.extent > 0:
            cover = smoothstep((weight - edge) / np.float32(0.25) + np.float32(0.5)) * share
            honeycomb = smoothstep((weight - core) / np.float32(0.25) + np.float32(0.5))
            where = cover > 0
            value = _fibrotic(rng, plane, chest.hu, where, honeycomb[where], disease, pixel)
            chest.hu[where] += cover[where] * (value - chest.hu[where])
        covers.append(cover)
    return covers


def _weight(rng: np.random.Generator, plane: Plane, chest: Chest, disease: _Disease) -> np.ndarray:
    """How prone each pixel is to fibrosis, a logarithm: near the outer pleura, at the base, at the back, in patches."""
    depth = np.minimum(-chest.cavity, -chest.lung * 3.0)  # mm below the pleura, that of the mediastinum counting less
    patches = smooth_noise(rng, depth.shape, 24 / plane.pixel) + 0.5 * smooth_noise(rng, depth.shape, 9 / plane.pixel)
    return (
        -np.maximum(depth, 0) / np.float32(disease.depth)
        - np.float32(disease.basal * plane.level)
        + np.clip(plane.y / 80, -1, 1) * np.float32(0.45)
        + patches * np.float32(disease.patchiness)
    ).astype(np.float32)


def _fibrotic(
    rng: np.random.Generator,
    plane: Plane,
    lung: np.ndarray,
    where: np.ndarray,
    honeycomb: np.ndarray,
    disease: _Disease,
    pixel: float,
) -> np.ndarray:
    """HU of fibrotic lung at the pixels of a mask; where pixels are large, meshes are wider so as to be seen."""
    y, x, drawn = plane.y[where], plane.x[where], plane.pixel
    grain = smooth_noise(rng, where.shape, max(2.5 / drawn, 1.0))[where]
    bent = smooth_noise(rng, where.shape, max(8 / drawn, 1.0))[where] * np.float32(2.2)
    cell = disease.cell * max(1.0, pixel / 2.75) ** 0.3
    net = walls(cells(rng, y + bent, x - bent, cell), 0.2 * cell + 0.5 * grain, drawn)
    cysts = walls(cells(rng, y, x + 0.5 * bent, cell), 0.28 * cell + 0.25 * bent, drawn)
    glass = lung[where] + np.float32(disease.ground_glass) + 35 * grain
    reticular = glass + np.float32(0.85) * net * (np.float32(-150) - glass)
    honey = np.float32(-925) + 20 * grain
    honey = honey + cysts * (np.float32(-60) + 30 * grain - honey)
    return reticular + honeycomb * (honey - reticular)
