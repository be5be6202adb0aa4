"""The panel: factual, reconstruction, counterfactual and signed difference, a row a slice, with everything to scale."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcf.report.case import Case, round_up

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
RED = "#b3001b"
GREY = "#555555"
CHARACTERS_PER_INCH = 14.5  # of the 8-point text, cautiously
DIVERGING = "RdBu_r"  # red: denser in the counterfactual; white: unchanged; blue: less dense
REACHES = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)  # limits of the colour scale, times powers of ten
STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 8, "axes.linewidth": 0.6, "savefig.facecolor": "white"}


def draw_panel(case: Case) -> Figure:
    """The panel as a matplotlib figure; greyscale over the case's window, difference in HU centred at zero.

    Pixels are shown as they are, not interpolated. The colour scale is one for all rows and reaches the largest
    change, rounded up.
    """
    from matplotlib import rc_context

    with rc_context(STYLE):
        return _draw(case)


def write_panel(case: Case, path: Path) -> Path:
    """Write the panel as PNG, 200 dots an inch; the same case gives the same bytes."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        _draw(case).savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def _draw(case: Case) -> Figure:
    from matplotlib.figure import Figure

    explanation = case.explanation
    rows = len(case.patch.slices)
    cell = 1.9 if rows <= 2 else 1.6 if rows <= 4 else 1.2
    gap, left, right, bottom, header = 0.08, 0.42, 0.2, 0.85, 0.5
    width = left + 4 * cell + 3 * gap + 0.1 + right
    warnings = _warning_lines(case, width - left - right)
    title = 0.52 + 0.145 * len(warnings) + (0.1 if warnings else 0)
    height = title + header + rows * cell + (rows - 1) * gap + bottom
    figure = Figure(figsize=(width, height))

    def axes(x: float, top: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, 1 - (top + h) / height, w / width, h / height))

    def text(x: float, top: float, words: str, **style: Any) -> None:
        figure.text(x / width, 1 - top / height, words, va="top", parse_math=False, **style)  # a name may hold a $

    text(left, 0.12, "\n".join(warnings), color=RED, fontsize=8, linespacing=1.25)
    top = title - 0.4
    text(left, top, _title(case), fontsize=10.5, fontweight="bold")
    text(left, top + 0.2, _subtitle(case), color=GREY, fontsize=7.5)

    limits = (case.window.to_hu(-1.0), case.window.to_hu(1.0))
    difference = case.difference_hu
    reach = round_up(float(np.abs(difference).max()), REACHES)
    columns = [
        ("Factual", explanation.factual_probability, case.image_hu(explanation.factual)),
        ("Reconstruction", explanation.reconstruction_probability, case.image_hu(explanation.reconstruction)),
        (case.end_name, explanation.counterfactual_probability, case.image_hu(explanation.counterfactual)),
        ("Difference", None, difference),
    ]
    grey = colour = None
    for column, (name, probability, images) in enumerate(columns):
        x = left + column * (cell + gap) + (0.1 if probability is None else 0)
        score = (
            f"counterfactual − {case.reference_name}"
            if probability is None
            else f"P({_short(case.classes[case.target])}) = {float(probability[0, case.target]):.2f}"
        )
        centre = {"ha": "center"}
        text(x + cell / 2, title + 0.12, name, fontsize=9, fontweight="bold", **centre)
        text(x + cell / 2, title + 0.29, score, fontsize=8, **centre)
        for row, image in enumerate(images):
            cell_axes = axes(x, title + header + row * (cell + gap), cell, cell)
            if probability is None:
                colour = cell_axes.imshow(image, cmap=DIVERGING, vmin=-reach, vmax=reach, interpolation="nearest")
                _frame(cell_axes, "#999999")
            else:
                grey = cell_axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
                _frame(cell_axes, None)
            if column == 0:
                cell_axes.set_ylabel(_slice_name(case, row), fontsize=7.5, color=GREY, labelpad=4)
                _side(case, cell_axes)
                if row == rows - 1:
                    _scale_bar(case, cell_axes)
    under = title + header + rows * cell + (rows - 1) * gap + 0.16
    for mappable, x, ticks, label in (
        (grey, left, [limits[0], case.window.centre, limits[1]], case.unit),
        (colour, left + 3 * (cell + gap) + 0.1, [-reach, 0, reach], f"change in {case.unit}"),
    ):
        assert mappable is not None
        bar = figure.colorbar(mappable, cax=axes(x, under, cell, 0.09), orientation="horizontal", ticks=ticks)
        bar.ax.tick_params(labelsize=7, length=2, pad=1.5)
        bar.ax.set_xticklabels([_number(tick) for tick in ticks])
        bar.ax.set_xlabel(label, fontsize=7.5, labelpad=2)
    text(left + cell + gap + 0.3, under - 0.05, _footer(case), color=GREY, fontsize=7.5, linespacing=1.4)
    return figure


def _warning_lines(case: Case, inches: float) -> list[str]:
    width = int(inches * CHARACTERS_PER_INCH)
    lines: list[str] = []
    if case.verdict.exit_code:
        lines += textwrap.wrap(case.verdict.name.replace("_", " ").upper() + ": " + case.verdict.sentence, width)
    for check in case.failed:
        words = f"✗ {check.name.replace('_', ' ')}: {check.message}"
        lines += textwrap.wrap(words, width, subsequent_indent="   ")
    return lines


def _title(case: Case) -> str:
    found = int(case.explanation.factual_probability[0].argmax())
    if found == case.target:
        return f"What would make it more {_short(case.classes[case.target])}?"
    return f"{_short(case.classes[found])} → {_short(case.classes[case.target])}"


def _subtitle(case: Case) -> str:
    asked = "" if case.probability is None else f"asked P ≥ {case.probability:.2f}  ·  "
    checks = case.explanation.trust
    passed = f"{len(checks) - len(case.failed)} of {len(checks)} trust checks passed"
    return f"{Path(case.scan.provenance.path).name}  ·  {asked}{passed}"


def _footer(case: Case) -> str:
    window = f"window: centre {_number(case.window.centre)}, width {_number(case.window.width)} {case.unit}"
    rows, columns = case.patch.spacing
    size = case.patch.preparation.size
    # A picture's spacing of 1 is no measure: only a scan with geometry has a pixel size.
    pixel = f"{rows:.3g} × {columns:.3g} mm a pixel" if _placed(case) else "pixel size unknown"
    peak = f"largest change {np.abs(case.difference_hu).max():.0f} {case.unit}"
    return f"{window}\n{size} × {size} pixels, {pixel}\n{peak}"


def _slice_name(case: Case, row: int) -> str:
    index = case.patch.slices[row]
    if not _placed(case):
        return f"slice {index}"
    _, height, width = case.patch.shape
    middle = case.scan.affine @ np.array([(width - 1) / 2, (height - 1) / 2, index, 1.0])
    return f"slice {index}  (z {_number(round(float(middle[2]), 1))} mm)"


def _side(case: Case, axes: Axes) -> None:
    """Mark the patient's right where the picture's left edge is it."""
    direction = case.scan.affine[:3, 0]
    if _placed(case) and direction[0] < 0 and np.abs(direction).argmax() == 0:
        _outlined(axes, 0.03, 0.5, "R", va="center", ha="left")


def _scale_bar(case: Case, axes: Axes) -> None:
    if not _placed(case):
        return
    size, pixel = case.patch.preparation.size, case.patch.spacing[1]
    length = round_up(size * pixel / 8)  # an eighth to under a third of the field
    start, at = 0.05 * size - 0.5, 0.94 * size - 0.5
    from matplotlib import patheffects

    (line,) = axes.plot([start, start + length / pixel], [at, at], color="white", lw=2, solid_capstyle="butt")
    line.set_path_effects([patheffects.withStroke(linewidth=3.2, foreground="black")])
    _outlined(axes, 0.05, 0.09, f"{length:g} mm", va="bottom", ha="left")


def _outlined(axes: Axes, x: float, y: float, words: str, **style: Any) -> None:
    from matplotlib import patheffects

    label = axes.text(x, y, words, transform=axes.transAxes, color="white", fontsize=7.5, fontweight="bold", **style)
    label.set_path_effects([patheffects.withStroke(linewidth=1.6, foreground="black")])


def _placed(case: Case) -> bool:
    from diffcf.scans.grid import has_geometry

    return has_geometry(case.scan)


def _frame(axes: Axes, colour: str | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(colour is not None)
        spine.set_edgecolor(colour or "none")


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")
