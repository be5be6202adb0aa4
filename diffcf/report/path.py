"""The counterfactual path: a strip of pictures with the scores beneath them, and the same as an animation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange, reduce

from diffcf.report.case import Case, to_numpy
from diffcf.report.panel import DPI, GREY, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

PICTURES = 7  # of the strip; the curve shows every point
BLUE = "#08306b"
FRAME = 256  # pixels an animation frame is at least wide
FRAME_MS, PAUSE_MS = 120, 900


def chosen_points(count: int, always: Sequence[int], most: int = PICTURES) -> list[int]:
    """Rising indices of at most `most` of `count` points, evenly spread; both ends and `always` are among them."""
    if count <= most:
        return list(range(count))
    chosen = {0, count - 1, *always}
    for point in np.linspace(0, count - 1, most).round().astype(int):
        near = any(abs(int(point) - other) < (count - 1) / (2 * most) for other in chosen)
        if not near and len(chosen) < most:
            chosen.add(int(point))
    return sorted(chosen)


@dataclass(frozen=True, eq=False)
class SortedPath:
    """The path by rising step: steps "n", pictures in HU "n s h w", the target's score by black box and agent "n"."""

    steps: np.ndarray
    images: np.ndarray
    blackbox: np.ndarray
    agent: np.ndarray
    start: int  # the point nearest to no step
    counterfactual: int | None  # the point that is the counterfactual, if one is


def ordered(case: Case) -> SortedPath:
    """A case's path, sorted."""
    explanation = case.explanation
    steps = to_numpy(explanation.path_steps)
    order = np.argsort(steps, kind="stable")
    change = (explanation.path_images - explanation.counterfactual).abs()
    distance = to_numpy(reduce(change, "n ... -> n", "max"))[order]
    nearest = int(distance.argmin())
    return SortedPath(
        steps=steps[order],
        images=np.stack([case.image_hu(image) for image in explanation.path_images[order]]),
        blackbox=to_numpy(explanation.path_probability)[order, 0, case.target],
        agent=to_numpy(explanation.path_agent_probability)[order, 0, case.target],
        start=int(np.abs(steps[order]).argmin()),
        counterfactual=nearest if distance[nearest] < 1e-5 else None,
    )


def write_strip(case: Case, path: Path) -> Path:
    """Write the strip as PNG: pictures of the path, and the target's score by black box and agent along it."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        draw_strip(case).savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def draw_strip(case: Case) -> Figure:
    """The strip as a matplotlib figure."""
    from matplotlib.figure import Figure

    path = ordered(case)
    names = {path.start: "start"}
    if path.counterfactual is not None and path.counterfactual != path.start:
        names[path.counterfactual] = case.end_name.lower()
    chosen = chosen_points(len(path.steps), list(names))
    rows = path.images.shape[1]
    cell = 1.15 if rows <= 4 else 0.9
    gap, left, right, curve, bottom = 0.06, 0.55, 0.15, 1.15, 0.45
    top, under = 0.4, 0.36
    columns = max(len(chosen), 4)
    width = left + columns * cell + (columns - 1) * gap + right
    height = top + rows * cell + (rows - 1) * gap + under + curve + bottom
    figure = Figure(figsize=(width, height))
    lowest, highest = case.window.to_hu(-1.0), case.window.to_hu(1.0)
    for column, point in enumerate(chosen):
        x = left + column * (cell + gap)
        for row in range(rows):
            y = top + row * (cell + gap)
            axes = figure.add_axes((x / width, 1 - (y + cell) / height, cell / width, cell / height))
            axes.imshow(path.images[point, row], cmap="gray", vmin=lowest, vmax=highest, interpolation="nearest")
            axes.set_axis_off()
        middle = (x + cell / 2) / width
        name = names.get(point, f"step {path.steps[point]:+.2g}".replace("-", "−"))
        weight = "bold" if point in names else "normal"
        figure.text(middle, 1 - 0.17 / height, name, ha="center", va="top", fontsize=8, fontweight=weight)
        y = top + rows * cell + (rows - 1) * gap + 0.06
        figure.text(middle, 1 - y / height, f"P = {path.blackbox[point]:.2f}", ha="center", va="top", fontsize=8)

    axes = figure.add_axes(
        (left / width, bottom / height, (columns * cell + (columns - 1) * gap) / width, curve / height)
    )
    axes.axhline(0.5, color="#bbbbbb", lw=0.6)
    if case.probability is not None and abs(case.probability - 0.5) > 1e-6:
        axes.axhline(case.probability, color="#bbbbbb", lw=0.6, ls=":")
    if np.isfinite(path.agent).all():
        axes.plot(path.steps, path.agent, color="#999999", lw=1, ls="--", label="agent")
    axes.plot(path.steps, path.blackbox, color=BLUE, lw=1.2, label="black box")
    axes.plot(path.steps[chosen], path.blackbox[chosen], color=BLUE, marker="o", ms=3.5, ls="none")
    axes.plot(path.steps[path.start], path.blackbox[path.start], color=BLUE, marker="o", ms=5.5, mfc="white")
    axes.set_ylim(-0.05, 1.05)
    axes.margins(x=0.02)
    axes.set_yticks([0, 0.5, 1])
    axes.tick_params(labelsize=7.5, length=2)
    name = case.classes[case.target]
    axes.set_ylabel(f"P({name})" if len(name) <= 12 else "P(target)", fontsize=8, parse_math=False)
    axes.set_xlabel("step along the direction of the search; dots: the pictures above", fontsize=7.5, color=GREY)
    axes.legend(frameon=False, fontsize=7, loc="best")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def write_animation(case: Case, path: Path) -> Path:
    """Write the path as a looping GIF, there and back; the black box's score of the target is a bar below."""
    way = ordered(case)
    low, high = case.window.to_hu(-1.0), case.window.to_hu(1.0)
    grey = ((way.images - low) / (high - low) * 255).clip(0, 255).round().astype(np.uint8)
    frames = [
        _frame(picture, f"step {step:+.3g}   P({case.classes[case.target]}) {score:.2f}", float(score))
        for picture, step, score in zip(grey, way.steps, way.blackbox, strict=True)
    ]
    turns = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    ends = (0, len(frames) - 1)
    frames[0].save(
        path,
        save_all=True,
        append_images=[frames[index] for index in turns[1:]],
        duration=[PAUSE_MS if index in ends else FRAME_MS for index in turns],
        loop=0,
        optimize=False,
    )
    return path


def _frame(picture: np.ndarray, words: str, score: float) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    slices = len(picture)
    across = min(slices, 4)
    tiles = np.concatenate([picture, np.zeros((-slices % across, *picture.shape[1:]), np.uint8)])
    field = Image.fromarray(rearrange(tiles, "(r c) h w -> (r h) (c w)", c=across))
    factor = max(1, round(FRAME * min(across, 3) / field.width))
    field = field.resize((field.width * factor, field.height * factor), Image.Resampling.NEAREST)
    frame = Image.new("L", (field.width, field.height + 34))
    frame.paste(field, (0, 0))
    draw = ImageDraw.Draw(frame)
    draw.text((6, field.height + 4), words, fill=255, font=ImageFont.load_default(size=14))
    draw.rectangle((0, field.height + 26, field.width - 1, field.height + 33), fill=70)
    draw.rectangle((0, field.height + 26, max(0, round(score * (field.width - 1))), field.height + 33), fill=235)
    return frame
