"""Pictures of searches: the way from an image to its answer in a row, what changed beside it (paper 002, Fig. 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange

from diffcf.counterfactuals import path

if TYPE_CHECKING:
    from asking import Asked
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

SHOWN = 5  # points of a way, and attributes beside it
CELL = 0.75  # inches of a picture, where strips stand side by side
DPI, COLOURS = 90, 48  # of those


@dataclass(frozen=True)
class Strip:
    """A row: what it shows, images "n h w" in [-1, 1], a word over each, and signed amounts for bars, largest first.

    region: "h w" of 0 and 1, outlined on the first image. change: "h w", drawn after the images under a word of its
    own, red up to `reach` and blue down to minus it.
    """

    label: str
    images: np.ndarray
    words: tuple[str, ...]
    bars: dict[str, float] = field(default_factory=dict)
    region: np.ndarray | None = None
    change: np.ndarray | None = None
    reach: float = 1.0

    @property
    def count(self) -> int:
        """Pictures in the row."""
        return len(self.images) + (self.change is not None)


def middle(images: torch.Tensor) -> np.ndarray:
    """The middle slice of images "n s 1 h w", "n h w"."""
    return rearrange(images[:, images.shape[1] // 2], "n 1 h w -> n h w").cpu().numpy()


def strips(asked: Asked, index: Sequence[int], label: str, *, same: bool = False) -> list[Strip]:
    """The way of scans `index` to their criticisms, or with `same` to their prototypes, and what changes most."""
    found = asked.found(index, same=same)
    points, names, made = path(found, SHOWN), asked.card().names, []
    moved = found.end.semantic - found.ray.code.semantic
    for i in range(len(index)):
        target, way = int(found.target[i]), points[:, i]
        order = moved[i].abs().argsort(descending=True)[:SHOWN].tolist()
        words = tuple(f"{float(score):.2f}" for score in way.probability[:, target])
        bars = {names[k]: float(moved[i, k]) for k in order if float(moved[i, k])}
        made.append(Strip(f"{label}\nto {asked.classes[target]}", middle(way.image), words, bars))
    return made


def draw(rows: Sequence[Strip], place: Path) -> None:
    """Write the rows as a PNG; bars in standard deviations, right for more and left for less."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 * sum(_widths(rows)), 1.35 * len(rows)), layout="constrained")
    fill(figure, rows)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=100, metadata={"Software": None})


def draw_beside(
    blocks: Mapping[str, Sequence[Strip]], place: Path, cell: float = CELL, colours: int | None = COLOURS
) -> None:
    """Write blocks of rows side by side, each under its name, as a PNG.

    cell: inches of a picture. colours: as of `save_small`.
    """
    from matplotlib.figure import Figure

    widths = [sum(_widths(rows)) + 0.6 for rows in blocks.values()]
    height = max(len(rows) for rows in blocks.values())
    figure = Figure(figsize=(cell * sum(widths), cell * 1.25 * height + 0.3), layout="constrained")
    parts = figure.subfigures(1, len(blocks), squeeze=False, width_ratios=widths)[0]
    for part, (name, rows) in zip(parts, blocks.items(), strict=True):
        part.suptitle(name, fontsize=9)
        fill(part, rows, "nearest")
    save_small(figure, place, colours)


def save_small(figure: Figure, place: Path, colours: int | None = COLOURS) -> None:
    """Write a figure as a PNG of few colours; None keeps all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    place.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    (picture if colours is None else picture.quantize(colours)).save(place, optimize=True)


def _widths(rows: Sequence[Strip]) -> list[float]:
    """Relative widths of the columns."""
    return [1.0] * max(row.count for row in rows) + [2.6] * any(row.bars for row in rows)


def fill(figure: FigureBase, rows: Sequence[Strip], interpolation: str | None = None) -> None:
    """Draw the rows into a figure or a part of one."""
    count, with_bars, widths = max(row.count for row in rows), any(row.bars for row in rows), _widths(rows)
    axes = figure.subplots(len(rows), count + with_bars, squeeze=False, gridspec_kw={"width_ratios": widths})
    for row, line in zip(rows, axes, strict=True):
        for column in range(count):
            line[column].set(xticks=[], yticks=[])
            if column >= row.count:
                line[column].axis("off")
                continue
            if column < len(row.images):
                line[column].imshow(row.images[column], cmap="gray", vmin=-1, vmax=1, interpolation=interpolation)
            else:
                line[column].imshow(
                    row.change, cmap="RdBu_r", vmin=-row.reach, vmax=row.reach, interpolation=interpolation
                )
            line[column].set_title(row.words[column], fontsize=7)
        if row.region is not None:
            line[0].contour(row.region, [0.5], colors="yellow", linewidths=0.7)
        line[0].set_ylabel(row.label, fontsize=7)
        if with_bars:
            _bars(line[-1], row.bars)


def _bars(axis: Axes, bars: dict[str, float]) -> None:
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set(yticks=range(SHOWN), ylim=(SHOWN - 0.4, -0.6), xlim=(-3, 3))
    axis.set_yticklabels([*bars, *[""] * (SHOWN - len(bars))], fontsize=7)
    axis.tick_params(labelsize=6, length=2)
    axis.barh(range(len(bars)), list(bars.values()), color=["C0" if by > 0 else "C3" for by in bars.values()])
    axis.axvline(0, color="black", linewidth=0.6)
