"""Counterfactuals of several classifiers side by side: what turns each one's decision, and where (paper 000, Fig. 4).

A row is a scan. Of every classifier it shows the scan with the expert's region outlined, under what is predicted;
the counterfactual, under what is predicted then; and the change, red where it became brighter and blue where darker, on
one scale for the whole row, under the share of it that lies inside the region. Of a scan of several slices the one with
most of the region is shown; the share is of all.

Which scans: the first of each class, in the manifest's order and one a patient, that all of these classifiers tell
right beside marks by chance; never by how the pictures look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pictures
import torch
from common import RESULTS, first_of_each_class
from einops import reduce
from reasons import Scene, decoded, probabilities, rightly, searched
from torch import Tensor

from diffcf.classifiers.blackbox import BlackBox
from diffcf.errors import ConfigError
from diffcf.metrics.counterfactual import cause_precision

if TYPE_CHECKING:
    from alignment import Config

CELL = 1.45  # inches of a picture

Beside = Mapping[str, tuple[BlackBox, Scene]]  # method -> its classifier, and the scans as it is judged on them


@dataclass(frozen=True)
class Panels:
    """Whose counterfactuals are drawn.

    Args:
        methods: by name, each by its first black box; from left to right.
        scans: so many of each class.
        figures: folder of alignment_NAME_panels.png, in pixels, and where there is a generator
            alignment_NAME_panels_decoded.png, through its full decoder.
    """

    methods: list[str]
    scans: int = 2
    figures: Path = RESULTS.parent / "figures"

    def __post_init__(self) -> None:
        if not self.methods or self.scans < 1:
            raise ConfigError(
                f"panels of {len(self.methods)} methods, {self.scans} scans: expected one of each or more."
            )


@dataclass(frozen=True)
class Turned:
    """Of chosen scans: images before and after, and the change, "n s c h w"; what is said before and then, "n k"."""

    before: Tensor
    after: Tensor
    change: Tensor
    said: Tensor
    then: Tensor

    @classmethod
    def of(cls, blackbox: BlackBox, before: Tensor, after: Tensor, change: Tensor) -> Turned:
        """With what the black box says of both."""
        return cls(before, after, change, probabilities(blackbox, before), probabilities(blackbox, after))


def chosen_scans(beside: Beside, most: int) -> list[int]:
    """Which scans, as this file says at the top. Errors: ConfigError where there are none."""
    right = torch.stack([rightly(blackbox, scene) for blackbox, scene in beside.values()]).all(0)
    scans = next(iter(beside.values()))[1].scans
    chosen = first_of_each_class(scans.labels, right.nonzero().squeeze(1).tolist(), most, scans.patients)
    if not chosen:
        raise ConfigError(
            f"no scan is told right by all of {', '.join(beside)}: there is nothing to draw. Name fewer methods."
        )
    return chosen


def strips_of(
    turned: Mapping[str, Turned], region: Tensor, about: Sequence[str], classes: Sequence[str], unit: float
) -> dict[str, list[pictures.Strip]]:
    """Method -> a strip a scan. region: "n s 1 h w". about: what each scan is. unit: of the images' 1, in HU, say."""
    blocks: dict[str, list[pictures.Strip]] = {name: [] for name in turned}
    for i, label in enumerate(about):
        shown = int(reduce(region[i], "s 1 h w -> s", "sum").argmax())
        seen = {
            name: [grey(part[i, shown]) for part in (one.before, one.after, one.change)] for name, one in turned.items()
        }
        reach = max(float(np.abs(change).max()) for _, _, change in seen.values()) or 1.0
        for name, one in turned.items():
            before, after, change = seen[name]
            inside = float(cause_precision(one.change[i : i + 1], region[i : i + 1]))
            words = [f"{classes[int(p.argmax())]} {float(p.max()):.2f}" for p in (one.said[i], one.then[i])]
            words.append("no change" if np.isnan(inside) else f"{inside:.2f} inside")
            strip = pictures.Strip(f"{label}\n±{unit * reach:.3g}", np.stack([before, after]), tuple(words))
            blocks[name].append(replace(strip, region=grey(region[i, shown]), change=change, reach=reach))
    return blocks


def grey(image: Tensor) -> np.ndarray:
    """The mean over the channels of "c h w", "h w"."""
    return reduce(image, "c h w -> h w", "mean").numpy()


def draw_panels(beside: Beside, panels: Panels, config: Config, generator: Any = None) -> list[Path]:
    """Find the counterfactuals, in pixels and through the generator if there is one, and draw them; the files."""
    chosen = chosen_scans(beside, panels.scans)
    pixels: dict[str, Turned] = {}
    through: dict[str, Turned] = {}
    for name, (judged, own) in beside.items():
        images, region = own.chance[chosen], own.region[chosen]
        found = torch.cat([part.counterfactual.detach() for part in searched(judged, images, region, config.inner)])
        pixels[name] = Turned.of(judged, images, found, found - images)
        if generator is not None:
            explained = decoded(judged, generator, images, config)
            found = torch.cat([one.counterfactual.cpu() for one in explained])
            through[name] = Turned.of(judged, images, found, torch.cat([one.difference.cpu() for one in explained]))
    blackbox, scene = next(iter(beside.values()))
    classes, labels = blackbox.card.classes, scene.scans.labels[chosen].tolist()
    about = [f"{scene.scans.patients[i]}\n{classes[label]}" for i, label in zip(chosen, labels, strict=True)]
    unit = blackbox.card.preparation.window.width / 2
    files = []
    for more, turned in (("", pixels), ("_decoded", through)):
        if turned:
            files.append(panels.figures / f"alignment_{config.name}_panels{more}.png")
            # A palette of few colours would turn the rare strong changes grey.
            blocks = strips_of(turned, scene.region[chosen], about, classes, unit)
            pictures.draw_beside(blocks, files[-1], CELL, colours=None)
    return files
