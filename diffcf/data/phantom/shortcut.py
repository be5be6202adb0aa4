"""Shortcuts: a mark in a corner that goes with the label and has nothing to do with the disease."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from diffcf.data.phantom.scene import stream
from diffcf.errors import ConfigError

Kind = Literal["symbol", "intensity"]
Corner = Literal["top left", "top right", "bottom left", "bottom right"]


@dataclass(frozen=True)
class Shortcut:
    """A mark that points to a class.

    kind "symbol": a bright + for the positive class, a - for any other. kind "intensity": the corner's HU are raised
    for the positive class and lowered for any other. correlation: 1 = always points to the label, 0 = to either class
    by chance, -1 = always to the wrong one; it is right with probability (1 + correlation) / 2. hu: of the symbol;
    change: of the intensity, in HU. share: of the field's side that the mark spans.
    """

    kind: Kind = "symbol"
    correlation: float = 1.0
    corner: Corner = "top left"
    hu: float = 400.0
    change: float = 150.0
    share: float = 0.14

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.corner not in get_args(Corner):
            raise ConfigError(
                f"shortcut {self.kind!r} at {self.corner!r}: expected {' or '.join(get_args(Kind))} at "
                f"{', '.join(get_args(Corner))}."
            )
        if not (-1 <= self.correlation <= 1 and 0.05 <= self.share <= 0.5):
            raise ConfigError(
                f"shortcut with correlation {self.correlation} and share {self.share}: expected -1 to 1, 0.05 to 0.5."
            )


def add_shortcut(volume: np.ndarray, label: int, shortcut: Shortcut, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Paint the mark for a label on every slice of HU "z y x".

    Returns the volume, where a mark may differ between classes and from none (uint8 "z y x": for a symbol the whole +,
    whichever was painted), and the class that the mark points to (1 = positive, else 0).
    """
    positive = int(label > 0)
    right = stream(seed, "shortcut").random() < (1 + shortcut.correlation) / 2
    points_to = positive if right else 1 - positive
    size = volume.shape[-1]
    side = max(5, round(shortcut.share * size)) | 1  # odd, so that the arms cross in a middle
    gap = max(1, round(0.03 * size))
    rows = slice(gap, gap + side) if shortcut.corner.startswith("top") else slice(size - gap - side, size - gap)
    columns = slice(gap, gap + side) if shortcut.corner.endswith("left") else slice(size - gap - side, size - gap)
    mark = np.zeros((side, side), bool)
    painted = mark.copy()
    if shortcut.kind == "symbol":
        arm = side // 2
        thick = round(side / 4.5) | 1
        bar = slice(arm - thick // 2, arm - thick // 2 + thick)
        painted[bar] = True
        mark[bar] = mark[:, bar] = True
        if points_to:
            painted = mark
    else:
        mark[:] = painted[:] = True
    volume = volume.copy()
    corner = volume[..., rows, columns]
    if shortcut.kind == "symbol":
        corner[..., painted] = shortcut.hu
    else:
        corner[..., painted] += shortcut.change if points_to else -shortcut.change
    where = np.zeros(volume.shape, np.uint8)
    where[..., rows, columns] = mark
    return volume, where, points_to


def read_symbol(volume: np.ndarray, shortcut: Shortcut) -> int:
    """The class that the symbol in HU "z y x" points to, read as it was painted: 1 for a +, 0 for a -.

    It is a + where the upright arms are nearer to the bar in HU than to what lies around the symbol.
    """
    arms, bar, outside = (volume[part].mean() for part in _parts(volume, shortcut))
    return int(arms > (bar + outside) / 2)


def symbol_contrast(volume: np.ndarray, shortcut: Shortcut) -> float:
    """By how many HU the bar of a symbol in HU "z y x" stands out from nine tenths of what lies around the symbol.

    Nearly 0 in a window's HU on bone or at the edge of it: there one symbol cannot be told from the other.
    """
    _, bar, outside = _parts(volume, shortcut)
    return float(volume[bar].mean() - np.quantile(volume[outside], 0.9))


def _parts(volume: np.ndarray, shortcut: Shortcut) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The upright arms, the bar, and what lies around the symbol, bool "z y x" each."""
    blank = np.zeros(volume.shape, np.float32)
    plus = add_shortcut(blank, 1, replace(shortcut, correlation=1), 0)[0] != 0
    bar = add_shortcut(blank, 0, replace(shortcut, correlation=1), 0)[0] != 0
    rows, columns = np.nonzero(plus.any(0))[0], np.nonzero(plus.any(0))[1]
    around = np.zeros(volume.shape, bool)
    around[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return plus & ~bar, bar, around & ~plus
