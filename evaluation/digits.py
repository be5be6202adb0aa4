"""Criticisms and prototypes of handwritten digits, and what the weight of the distance does (paper 002, section 4.1).

    python evaluation/digits.py --config configs/evaluation/digits_mnist.yaml

Held-out digits that the black box classifies correctly. Three tables, and a picture of each:

NAME (Fig. 2): scans of the class `subject` turned into every other class. `validity` is the share that gets the asked
score, `decision_validity` the share whose predicted class is the target; `proximity_l1` the mean absolute change in
units of the window (grey levels), `sparsity` the share of pixels that change visibly. `detour` is the share of paths on
which the black box takes an inner frame for a third class, `through` those classes, and in how many paths.

NAME_prototypes (Fig. 3): the scans of every class of which the black box is least sure, asked for more of it; `before`
and `after` are its scores of the class. `to_mean`: by how much the digit comes nearer to the mean of its class over
training images, in mean absolute difference; positive is nearer.

NAME_regulariser (Fig. 4): the criticisms again, at fixed weights of the distance. The point judged is the minimum that
the solver found, where no line search has come back from it. `way_l1` is the length of the way of the optimisation:
the mean absolute changes from iterate to iterate, summed. The paper's `lambda` multiplies the classifier's loss, and is
1 / `weight`.

`transfer_validity`: of the scans that another classifier gets right, the share whose answer it takes for the target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import torch
from common import RESULTS, mean_row, write_result
from einops import rearrange
from judges import judged_by, judges_of
from rich.progress import track
from torch import Tensor

from diffcf.counterfactuals import (
    AgentScorer,
    Counterfactuals,
    ImageScorer,
    Latent,
    Method,
    Minimal,
    Points,
    StepSearch,
    counterfactual,
    path,
    prototype,
)
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.errors import ConfigError
from diffcf.explain import Explainer, ExplainSettings
from diffcf.metrics.counterfactual import proximity_l1, sparsity
from diffcf.training.command import run_script

TYPICAL = 100  # training images of a class, of which its mean is taken
Figures = dict[str, list[float]]
Strips = dict[str, list[pictures.Strip]]  # by method


@dataclass(frozen=True)
class Weighted:
    """A search at fixed weights of the distance.

    Args:
        method: `Latent` or `Minimal`.
        weights: of the distance, rising.
    """

    method: Method
    weights: list[float]

    def at(self, weight: float) -> Method:
        """The method with this weight, and no search for a better one. Errors: ConfigError for other methods."""
        if isinstance(self.method, Minimal):
            return replace(self.method, lowest=weight, rounds=1)
        if isinstance(self.method, Latent):
            return replace(self.method, distance_weight=weight)
        raise ConfigError(f"{type(self.method).__name__} has no weight of the distance; take Latent or Minimal.")


@dataclass(frozen=True)
class Config:
    """Which models and methods, asked about which digits.

    Args:
        name: of the results, docs/results/digits_NAME.json and the two with more to their names.
        manifest: CSV file; labelled rows of `split` are explained.
        classifier, generator, agent: folders or bundled names.
        methods: name -> where criticisms and prototypes are looked for; the first is the default, and is drawn.
        weighted: name -> what is searched at fixed weights of the distance; the ways of the first are drawn.
        subject: the class whose criticisms are looked for.
        drawn: the target of the picture of weights.
        search: with the asked score of a criticism.
        sure: the score that is asked of a prototype.
        other: an independent classifier, for `transfer_validity`.
        scans: of each class, of those that the black box classifies correctly.
        batch: scans searched together.
        figures: folder of the pictures, digits_NAME.png and the two with more to their names.
        split: test, or val while something is still being chosen.
        data: what the data are, in words.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        out: folder of the results.
    """

    name: str
    manifest: Path
    classifier: str
    generator: str
    agent: str
    methods: dict[str, Method]
    weighted: dict[str, Weighted]
    subject: str = "9"
    drawn: str = "7"
    search: StepSearch = field(default_factory=StepSearch)
    sure: float = 0.95
    other: str | None = None
    scans: int = 3
    batch: int = 32
    figures: Path = RESULTS.parent / "figures"
    split: str = "test"
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


@dataclass(frozen=True)
class Task:
    """A scan by its place in the split, and the class it is to become."""

    scan: int
    target: int


class Bench:
    """The models, the scans that are asked about, and how they are asked."""

    def __init__(self, config: Config) -> None:
        self.config, self.device = config, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        settings = ExplainSettings(next(iter(config.methods.values())), config.search)
        self.explainer = Explainer.load(config.generator, config.classifier, config.agent, settings, device=self.device)
        self.classes, blackbox = self.explainer.classes, self.explainer.blackbox
        for name in (config.subject, config.drawn):
            if name not in self.classes:
                raise ConfigError(f"class {name!r}: expected one of {', '.join(self.classes)}.")
        self.view = blackbox.view_of(self.explainer.preparation)
        self.judges = judges_of(
            self.explainer, other=config.other, purifier=None, symbol=None, batch=config.batch, seed=config.seed
        )
        preparation = self.explainer.preparation
        manifest = Manifest.read(config.manifest)
        rows = [row for row in manifest.split(config.split) if row.label is not None]
        self.scans = ScanDataset(rows, preparation)
        self.half_width = preparation.window.width / 2
        scores = torch.cat([self.scores(part.to(self.device)).cpu() for part in self.scans.images.split(64)])
        right = scores.argmax(1) == self.scans.labels
        self.chosen: list[list[int]] = []  # by class, the first ones
        self.unsure: list[list[int]] = []  # and those with the lowest score
        for k, name in enumerate(self.classes):
            of_class = (right & (self.scans.labels == k)).nonzero().squeeze(1)
            if not len(of_class):
                raise ConfigError(f"the black box classifies no scan of class {name!r} correctly.")
            self.chosen.append(of_class.tolist()[: config.scans])
            self.unsure.append(of_class[scores[of_class, k].argsort()].tolist()[: config.scans])
        self.means = torch.stack([_mean_image(manifest, k, preparation) for k in range(len(self.classes))])

    def criticisms(self) -> list[Task]:
        """Every chosen scan of the subject to every other class, target by target."""
        subject = self.classes.index(self.config.subject)
        targets = [k for k in range(len(self.classes)) if k != subject]
        return [Task(scan, target) for target in targets for scan in self.chosen[subject]]

    def prototypes(self) -> list[Task]:
        """Of every class the scans that the black box is least sure of to more of it."""
        return [Task(scan, k) for k, scans in enumerate(self.unsure) for scan in scans]

    def asked(
        self, tasks: Sequence[Task], method: Method, *, same: bool = False, frames: bool = False
    ) -> Iterator[tuple[Sequence[Task], Counterfactuals]]:
        """The answers, so many at once; with `same` prototypes."""
        explainer, size = self.explainer, self.config.batch
        how: dict[str, Any] = {
            "generator": explainer.generator,
            "blackbox": ImageScorer(explainer.blackbox, self.view),
            "agent": AgentScorer(explainer.agent),
            "method": method,
            "search": self.config.search,
            "frames": frames,
        }
        for start in track(range(0, len(tasks), size), description=f"asking {type(method).__name__}"):
            mine = tasks[start : start + size]
            images = self.scans.images[[task.scan for task in mine]].to(self.device)
            if same:
                yield mine, prototype(images, probability=self.config.sure, **how)
            else:
                target = torch.tensor([task.target for task in mine], device=self.device)
                yield mine, counterfactual(images, target, **how)

    def judged(self, task: Task, image: Tensor, reference: Tensor, probability: Tensor) -> dict[str, float]:
        """What is measured on one answer: images "s c h w", and the black box's probabilities of the answer, "k"."""
        change, factual = (image - reference)[None], self.scans.images[task.scan][None]
        label = int(self.scans.labels[task.scan])
        return {
            "decision_validity": float(int(probability.argmax()) == task.target),
            "proximity_l1": float(proximity_l1(change)) * self.half_width,
            "sparsity": float(sparsity(change)),
            "transfer_validity": judged_by(self.judges.other, factual, image[None].cpu(), label, task.target),
        }

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """The black box's probabilities of images "n s c h w", "n k"."""
        return self.explainer.blackbox(self.view(images)).softmax(1)

    def row(
        self, name: str, method: Method, tasks: Sequence[Task], figures: Figures, *, default: bool
    ) -> dict[str, Any]:
        """A row of a table: what was asked, and the means."""
        patients = [self.scans.patients[task.scan] for task in tasks]
        values = {key: each for key, each in figures.items() if not np.isnan(each).all()}
        means = mean_row(values, patients, resamples=self.config.resamples, seed=self.config.seed)
        return {
            "method": name,
            "search": type(method).__name__,
            "data": self.config.name,
            "split": self.config.split,
            "default": default,
            "n": len(tasks),
            "patients": len(set(patients)),
            **means,
        }


def _mean_image(manifest: Manifest, label: int, preparation: Any) -> Tensor:
    rows = [row for row in manifest.split("train") if row.label == label][:TYPICAL]
    return ScanDataset(rows, preparation).images.mean(0)


def met(way: Points, label: int, target: int) -> list[int]:
    """The third classes that the black box takes the inner frames of a path for; fields of the path "n ..."."""
    return [k for k in way.probability[1:-1].argmax(1).tolist() if k not in (label, target)]


def criticisms(bench: Bench) -> tuple[list[dict[str, Any]], Strips]:
    """Rows of every method and target, and the ways of the first scan to every target."""
    tasks, rows, strips = bench.criticisms(), [], {}
    subject = bench.config.subject
    for place, (name, method) in enumerate(bench.config.methods.items()):
        figures: list[dict[str, float]] = []
        thirds: list[list[int]] = []
        for mine, found in bench.asked(tasks, method):
            way = path(found)
            for i, task in enumerate(mine):
                thirds.append(met(way[:, i], bench.classes.index(subject), task.target))
                judged = bench.judged(task, found.end.image[i], found.ray.reference[i], found.end.probability[i])
                figures.append({"validity": float(found.reachable[i]), **judged, "detour": float(bool(thirds[-1]))})
                if task.scan == tasks[0].scan:
                    words = f"{subject} to {bench.classes[task.target]}"
                    strip = strip_of(words, way.image[:, i], way.probability[:, i, task.target])
                    strips.setdefault(name, []).append(strip)
        for target in (None, *dict.fromkeys(task.target for task in tasks)):
            index = [i for i, task in enumerate(tasks) if target in (None, task.target)]
            through = Counter(bench.classes[k] for i in index for k in set(thirds[i])).most_common()
            row = bench.row(
                name, method, [tasks[i] for i in index], gathered([figures[i] for i in index]), default=False
            )
            row["default"] = place == 0 and target is None
            row["target"] = "all" if target is None else bench.classes[target]
            row["through"] = ", ".join(f"{name} ({count})" for name, count in through) or "none"
            rows.append(row)
    return rows, strips


def prototypes(bench: Bench) -> tuple[list[dict[str, Any]], Strips]:
    """A row of every method, and the ways of the first scan of every class."""
    tasks, rows, strips = bench.prototypes(), [], {}
    for place, (name, method) in enumerate(bench.config.methods.items()):
        figures: list[dict[str, float]] = []
        for mine, found in bench.asked(tasks, method, same=True):
            way = path(found)
            for i, task in enumerate(mine):
                end, mean = found.end.image[i], bench.means[task.target].to(bench.device)
                distances = [float((image - mean).abs().mean()) for image in (found.ray.reference[i], end)]
                figures.append(
                    {
                        "validity": float(found.reachable[i]),
                        **bench.judged(task, end, found.ray.reference[i], found.end.probability[i]),
                        "before": float(found.ray.factual_probability[i, task.target]),
                        "after": float(found.end.probability[i, task.target]),
                        "to_mean": (distances[0] - distances[1]) * bench.half_width,
                    }
                )
                if task.scan == bench.unsure[task.target][0]:
                    strip = strip_of(bench.classes[task.target], way.image[:, i], way.probability[:, i, task.target])
                    strips.setdefault(name, []).append(strip)
        row = bench.row(name, method, tasks, gathered(figures), default=place == 0)
        rows.append({**row, "asked": bench.config.sure})
    return rows, strips


def regulariser(bench: Bench) -> tuple[list[dict[str, Any]], Strips]:
    """A row of every method and weight, and the ways of the optimisation of the first scan to the target drawn."""
    tasks, rows, strips = bench.criticisms(), [], {}
    drawn = Task(tasks[0].scan, bench.classes.index(bench.config.drawn))
    for name, search in bench.config.weighted.items():
        for weight in search.weights:
            fixed, figures = search.at(weight), []
            for mine, found in bench.asked(tasks, fixed, frames=True):
                everyone = torch.arange(len(mine), device=bench.device)
                own = found.ray.at(everyone, torch.ones_like(found.end.step))
                assert found.frames is not None
                way = proximity_of_steps(found.frames) * bench.half_width
                for i, task in enumerate(mine):
                    given = float(own.probability[i, task.target])
                    judged = bench.judged(task, own.image[i], found.ray.reference[i], own.probability[i])
                    reached = float(given >= bench.config.search.probability)
                    figures.append({"validity": reached, **judged, "score": given, "way_l1": float(way[i])})
                    if task == drawn:
                        shown = torch.cat([found.frames[:, i], own.image[i : i + 1]])
                        strip = strip_of(f"weight {weight:g}", shown, bench.scores(shown)[:, task.target])
                        strips.setdefault(name, []).append(strip)
            row = bench.row(name, fixed, tasks, gathered(figures), default=False)
            rows.append({**row, "weight": weight, "lambda": 1 / weight if weight else None})
    return rows, strips


def proximity_of_steps(frames: Tensor) -> Tensor:
    """Mean absolute changes from frame to frame, summed: "n b s c h w" -> "b"."""
    return rearrange(frames.diff(dim=0).abs(), "n b s c h w -> n b (s c h w)").mean(2).sum(0)


def gathered(figures: Sequence[dict[str, float]]) -> Figures:
    """One list a figure."""
    return {key: [one[key] for one in figures] for key in figures[0]}


def strip_of(label: str, images: Tensor, scores: Tensor) -> pictures.Strip:
    """A way "n s c h w" as a strip of at most `pictures.SHOWN` evenly spread images under their scores."""
    index = np.linspace(0, len(images) - 1, min(len(images), pictures.SHOWN)).round().astype(int).tolist()
    words = tuple(f"{score:.2f}" for score in scores[index].tolist())
    return pictures.Strip(label, pictures.middle(images[index]), words)


def main(config: Config) -> list[dict[str, Any]]:
    """Ask about every digit; prints and writes the tables and pictures, returns all rows."""
    bench = Bench(config)
    everything: list[dict[str, Any]] = []
    for more, title, part in (
        ("", f"Criticisms of the class {config.subject} (paper 002, Fig. 2)", criticisms),
        ("_prototypes", "Prototypes of every class (paper 002, Fig. 3)", prototypes),
        ("_regulariser", "Criticisms by weight of the distance (paper 002, Fig. 4)", regulariser),
    ):
        rows, strips = part(bench)
        write_result(__file__, replace(config, name=config.name + more), title, rows)
        place = config.figures / f"digits_{config.name}{more}.png"
        if part is regulariser:
            draw_weights(rows, strips[next(iter(config.weighted))], place)
        else:
            pictures.draw_beside(strips, place)
        everything += rows
    return everything


def draw_weights(rows: Sequence[dict[str, Any]], strips: Sequence[pictures.Strip], place: Path) -> None:
    """Write the ways at every weight, and of every method validity over the change at its weights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, pictures.CELL * 1.3 * len(strips) + 2.4), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[pictures.CELL * 1.3 * len(strips), 2.4])
    above, below = parts
    pictures.fill(above, strips, "nearest")
    keys = {"validity": "validity", "transfer_validity": "another classifier agrees"}
    keys = {key: words for key, words in keys.items() if key in rows[0]}
    for axis, (key, words) in zip(below.subplots(1, len(keys), squeeze=False)[0], keys.items(), strict=True):
        for name in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == name]
            axis.plot([row["proximity_l1"] for row in mine], [row[key] for row in mine], marker="o", ms=3, label=name)
            for row in mine:
                axis.annotate(
                    f"{row['weight']:g}",
                    (row["proximity_l1"], row[key]),
                    (2, -7),
                    textcoords="offset points",
                    fontsize=6,
                )
        axis.set_title(words, fontsize=8)
        axis.set_xlabel("change (L1, grey levels); at the points: weight", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.set_ylim(-0.06, 1.06)
        axis.spines[["top", "right"]].set_visible(False)
    below.axes[-1].legend(fontsize=6, frameon=False)
    pictures.save_small(figure, place)


if __name__ == "__main__":
    run_script(main, Config)
