"""The causal graph of attributes and label, without directions, by the PC algorithm (paper 001, appendix C.5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import pack

from diffcf.alignment.attribution import binary_cases
from diffcf.errors import ConfigError


def skeleton(attributes: np.ndarray, labels: np.ndarray, alpha: float = 0.05) -> np.ndarray:
    """Which of attributes and label are joined, symmetric bool "q q" with q = p + 1: the attributes, last the label.

    attributes: "n p", labels: "n", of 0 and 1. Two are joined unless some set of their neighbours makes them
    independent at level `alpha` (G-squared test; the stable PC algorithm of causal-learn, to which the order of the
    attributes does not matter). Under the Markov and faithfulness assumptions, without hidden common causes and with
    enough cases this is the graph's skeleton. A hidden common cause of two attributes leaves a line between them, and
    few cases leave lines out: in a set of q - 2 neighbours there are 2^(q - 2) cells.

    Errors: ConfigError for anything but 0 and 1, alpha outside (0, 1), and without causal-learn.
    """
    attributes, labels = binary_cases(attributes, labels)
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha {alpha:g}: expected a number between 0 and 1.")
    try:
        from causallearn.utils.cit import CIT
        from causallearn.utils.PCUtils.SkeletonDiscovery import skeleton_discovery
    except ImportError as error:
        raise ConfigError("the PC algorithm needs causal-learn; install it with diffcf[train].") from error
    together, _ = pack([attributes, labels], "n *")
    graph = skeleton_discovery(together, alpha, CIT(together, "gsq"), stable=True, verbose=False, show_progress=False)
    return np.asarray(graph.G.graph) != 0


def edges(joined: np.ndarray, names: Sequence[str]) -> list[tuple[str, str]]:
    """The lines of a skeleton "q q" by name, in order. Errors: ConfigError where names do not fit."""
    _check(joined, names)
    return [(names[i], names[j]) for i in range(len(names)) for j in range(i + 1, len(names)) if joined[i, j]]


def draw(joined: np.ndarray, names: Sequence[str], path: str | Path, title: str = "") -> Path:
    """Draw a skeleton "q q": attributes on a circle, the label (the last) in its middle; its lines are red.

    Errors: ConfigError where names do not fit.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch

    _check(joined, names)
    angle = np.pi / 2 - 2 * np.pi * np.arange(len(names) - 1) / max(len(names) - 1, 1)
    at = np.concatenate([np.stack([np.cos(angle), np.sin(angle)], axis=1), np.zeros((1, 2))])
    figure = Figure(figsize=(4.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for i, j in zip(*np.nonzero(np.triu(joined, 1)), strict=True):
        of_label = j == len(names) - 1
        style = {"color": "tab:red", "linewidth": 2.2} if of_label else {"color": "0.6", "linewidth": 1.2}
        bend = f"arc3,rad={0 if of_label else 0.3}"  # no line between attributes runs through the label
        start, end = ((float(at[k, 0]), float(at[k, 1])) for k in (i, j))
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-", connectionstyle=bend, zorder=1, **style))
    for place, (name, (x, y)) in enumerate(zip(names, at, strict=True)):
        label = place == len(names) - 1
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "tab:red" if label else "0.3"}
        axes.text(x, y, name, ha="center", va="center", fontsize=9, bbox=box, zorder=2)
    axes.set(xlim=(-1.45, 1.45), ylim=(-1.25, 1.25), aspect="equal", title=title)
    axes.axis("off")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _check(joined: np.ndarray, names: Sequence[str]) -> None:
    if joined.shape != (len(names), len(names)):
        raise ConfigError(f"a skeleton {joined.shape} with {len(names)} names; expected a name for each.")
