"""Where the organs of a chest lie, by level: 0 is the base of the lungs, 1 the apex.

Lengths are mm of an average adult, x from the midline to the patient's left, y from the middle of the thorax to
posterior; a centre is (y, x). `Body` holds what differs between patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = (0.0, 0.2, 0.4, 0.6, 0.75, 0.88, 1.0)
# What is inside the ribs, and the outline of the muscles around them.
CAVITY_HALF_WIDTH = (134, 137, 134, 126, 114, 92, 62)
CAVITY_HALF_DEPTH = (99, 103, 102, 94, 84, 66, 46)
CAVITY_MIDDLE = (-2, -3, -3, 0, 6, 14, 20)  # y
MUSCLE_HALF_WIDTH = (147, 151, 154, 156, 158, 150, 132)
MUSCLE_HALF_DEPTH = (119, 123, 123, 118, 110, 97, 84)
MUSCLE_MIDDLE = (7, 7, 7, 9, 11, 14, 16)  # y
SHOULDER = (0.0, 0.0, 0.0, 0.2, 0.6, 0.9, 1.0)  # how much of shoulder and scapular muscles there is
SPINE_MIDDLE = (66, 68, 70, 71, 69, 64, 58)  # y of the vertebral body
LUNG_HEIGHT = 230.0  # mm from level 0 to level 1


@dataclass(frozen=True)
class Organ:
    """An ellipse or, with `end`, a thick line; present between two levels.

    radii: along (x, y); a line takes the first. turn: degrees, clockwise as displayed. round: the organ narrows towards
    the two levels as a ball does; otherwise it is a tube. side: grows the lung's gap by so many mm around it.
    """

    name: str
    hu: float
    span: tuple[float, float]
    centre: tuple[float, float]
    radii: tuple[float, float]
    end: tuple[float, float] | None = None
    turn: float = 0.0
    round: bool = False
    margin: float = 5.0

    def scale(self, level: float) -> float:
        """Relative size at a level, 0 where the organ is absent."""
        low, high = self.span
        if not low <= level <= high:
            return 0.0
        if not self.round:
            return 1.0
        return float(np.sqrt(max(0.0, 1 - abs(2 * (level - low) / (high - low) - 1) ** 2.4)))


MEDIASTINUM = (
    Organ("heart", 42, (-0.12, 0.5), (-26, 22), (61, 43), turn=-33, round=True, margin=7),
    Organ("right atrium", 42, (-0.02, 0.48), (-12, -24), (27, 34), round=True, margin=6),
    Organ("left atrium", 42, (0.26, 0.52), (14, 8), (40, 20), round=True, margin=5),
    Organ("ascending aorta", 44, (0.42, 0.7), (-30, -14), (17, 17)),
    Organ("pulmonary trunk", 44, (0.44, 0.58), (-36, 20), (15, 14)),
    Organ("right pulmonary artery", 44, (0.48, 0.56), (-12, 12), (10, 10), end=(-2, -40), round=True),
    Organ("left pulmonary artery", 44, (0.5, 0.62), (-20, 22), (10, 10), end=(4, 42), round=True),
    Organ("aortic arch", 44, (0.65, 0.76), (-28, -12), (14, 14), end=(32, 22), round=True),
    Organ("descending aorta", 44, (-0.2, 0.7), (38, 24), (13, 13)),
    Organ("superior vena cava", 42, (0.46, 0.8), (-22, -32), (9, 11)),
    Organ("inferior vena cava", 42, (-0.2, 0.08), (4, -28), (13, 11)),
    Organ("oesophagus", 30, (-0.2, 1.1), (36, 6), (8, 6), margin=4),
    Organ("brachiocephalic artery", 42, (0.72, 0.9), (-8, -9), (7, 7)),
    Organ("left carotid artery", 42, (0.72, 1.1), (-4, 15), (4.5, 4.5)),
    Organ("left subclavian artery", 42, (0.72, 1.1), (12, 24), (5.5, 5.5)),
    Organ("right brachiocephalic vein", 40, (0.78, 1.1), (-20, -30), (8, 7)),
    Organ("left brachiocephalic vein", 40, (0.76, 0.86), (-28, -26), (6, 6), end=(-34, 26)),
    Organ("right hilum", 44, (0.3, 0.62), (2, -46), (13, 20), turn=12, round=True, margin=2),
    Organ("left hilum", 44, (0.32, 0.66), (4, 48), (12, 18), turn=-12, round=True, margin=2),
)
ABDOMEN = (
    Organ("liver", 58, (-0.42, 0.18), (-12, -62), (70, 68), round=True, margin=2),
    Organ("spleen and stomach", 45, (-0.42, 0.13), (6, 72), (52, 62), round=True, margin=2),
)
AIRWAYS = (
    Organ("trachea", -985, (0.6, 1.2), (10, 0), (9, 9), margin=4),
    Organ("right main bronchus", -985, (0.46, 0.605), (14, -8), (6.5, 6.5), end=(20, -30), margin=4),
    Organ("left main bronchus", -985, (0.46, 0.605), (14, 8), (6, 6), end=(24, 34), margin=4),
    Organ("right lower bronchus", -975, (0.2, 0.47), (18, -42), (4.5, 5)),
    Organ("left lower bronchus", -975, (0.2, 0.47), (22, 44), (4.5, 5)),
)
# Angles (degrees from anterior, either side) of the ribs that a slice cuts, and half of the length of each cut in mm.
RIB_ANGLES = (30.0, 57.0, 84.0, 110.0, 134.0, 155.0)
RIB_HALF_LENGTHS = (9.0, 12.0, 15.0, 14.0, 11.0, 9.0)


@dataclass(frozen=True)
class Body:
    """One patient: sizes relative to the average, and nuisances that have nothing to do with the label.

    fat: mm under the skin. breast: relative. turn: degrees on the table. bones: relative density. noise: HU at 1.45 mm.
    dependent: HU that gravity adds from front to back. level_shift: of all slices.
    """

    width: float
    depth: float
    heart: float
    fat: float
    breast: float
    turn: float
    shift: tuple[float, float]
    bones: float
    muscle_hu: float
    lung_hu: float
    dependent: float
    vessels: float
    noise: float
    offset: float
    level_shift: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Body:
        """A patient at random."""
        girth = rng.normal(0, 0.045)
        female = rng.random() < 0.45
        return cls(
            width=float(np.clip(1.0 + girth + rng.normal(0, 0.025) - 0.04 * female, 0.86, 1.1)),
            depth=float(np.clip(0.98 + girth + rng.normal(0, 0.045), 0.84, 1.14)),
            heart=float(np.clip(rng.normal(1.0, 0.1), 0.78, 1.28)),
            fat=float(np.clip(rng.gamma(3.0, 3.2) + 3 + 4 * female, 4, 26)),
            breast=float(rng.uniform(0.5, 1.2)) if female else float(rng.uniform(0.0, 0.25)),
            turn=float(rng.normal(0, 3.0)),
            shift=(float(rng.normal(0, 4)), float(rng.normal(0, 4))),
            bones=float(rng.uniform(0.75, 1.1)),
            muscle_hu=float(rng.uniform(42, 60)),
            lung_hu=float(rng.normal(-862, 18)),
            dependent=float(rng.uniform(25, 75)),
            vessels=float(rng.uniform(0.8, 1.2)),
            noise=float(rng.gamma(6, 3.0) + 10),
            offset=float(rng.normal(0, 4)),
            level_shift=float(rng.uniform(-0.035, 0.035)),
        )


def at_level(table: tuple[float, ...], level: float) -> float:
    """A length at a level."""
    return float(np.interp(level, LEVELS, table))


def levels_of(slices: int, body: Body) -> np.ndarray:
    """Levels of evenly spaced slices from inferior to superior."""
    ends = (0.12, 0.86)
    even = np.linspace(*ends, slices) if slices > 1 else np.array([sum(ends) / 2 - 0.1])
    return even + body.level_shift
