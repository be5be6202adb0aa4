"""Black boxes asked in attribute space: what turns their decisions on held-out scans, and what makes them surer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from common import first_of_each_class
from rich.progress import track

from diffcf.cards import AttributesCard
from diffcf.counterfactuals import Attributes, Counterfactuals, ImageScorer, StepSearch, counterfactual, prototype
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.data.phantom.folder import PhantomSet
from diffcf.errors import ConfigError
from diffcf.explain import Explainer, ExplainSettings


@dataclass(frozen=True)
class Case:
    """A black box, and what is known about it.

    Args:
        classifier: folder or bundled name.
        manifest: CSV file; labelled rows of the split are explained.
        agent: of attributes, folder (train/attribute_agent.py), asked together with the black box; null asks nobody.
        planted: the attribute that its labels were made from, if there is one.
        truth: attribute of the manifest that is the probability of the last class, for the table of typicality.
        scenes: of phantom nodules, the set that they are; they are drawn anew, too, to show what truly decides.
    """

    classifier: str
    manifest: Path
    agent: Path | None = None
    planted: str | None = None
    truth: str | None = None
    scenes: PhantomSet | None = None


@dataclass(frozen=True)
class Question:
    """How every black box is asked.

    Args:
        generator: folder or bundled name.
        method: over which attributes, and how.
        search: how far to go, with the asked score of a criticism.
        sure: the score of a prototype.
        scans: at most so many of each class; 0 takes all.
        split: test, or val while something is still being chosen.
        batch: scans searched together.
    """

    generator: str
    method: Attributes
    search: StepSearch = field(default_factory=StepSearch)
    sure: float = 0.95
    scans: int = 0
    split: str = "test"
    batch: int = 16


@dataclass(frozen=True)
class Query:
    """One answer: of which class and patient, the change of every attribute in spreads, and whether it is one."""

    label: int
    patient: str
    change: dict[str, float]
    reached: bool

    @property
    def order(self) -> list[str]:
        """The attributes that change, the largest change first."""
        return sorted((name for name, by in self.change.items() if by), key=lambda name: -abs(self.change[name]))

    @property
    def distance(self) -> float:
        """Spreads of all attributes together."""
        return sum(abs(by) for by in self.change.values())


class Asked:
    """A case with its models and the scans that it classifies correctly."""

    def __init__(self, case: Case, question: Question) -> None:
        self.case, self.question = case, question
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        how = ExplainSettings(method=self.method())
        self.explainer = Explainer.load(question.generator, case.classifier, None, how, device=device)
        blackbox, preparation = self.explainer.blackbox, self.explainer.preparation
        self.classes = self.explainer.classes
        self.scorer = ImageScorer(blackbox, blackbox.view_of(preparation))
        self.manifest = Manifest.read(case.manifest)
        self.rows = [row for row in self.manifest.split(question.split) if row.label is not None]
        self.scans = ScanDataset(self.rows, preparation)
        images = self.scans.images
        with torch.no_grad():
            parts = [blackbox(self.scorer.view(part.to(device))) for part in images.split(64)]  # type: ignore[misc]
        self.probability = torch.cat(parts).softmax(1).cpu()
        right = (self.probability.argmax(1) == self.scans.labels).nonzero().squeeze(1).tolist()
        self.chosen = first_of_each_class(self.scans.labels, right, question.scans)
        if not self.chosen:
            raise ConfigError(f"{case.classifier} classifies no scan of {case.manifest} correctly.")

    def method(self, frozen: tuple[str, ...] = ()) -> Attributes:
        """The search over all attributes but the frozen ones."""
        asked = self.question.method
        return replace(asked, frozen=asked.frozen + frozen, agent=self.case.agent or asked.agent)

    def card(self, frozen: tuple[str, ...] = ()) -> AttributesCard:
        """What is known about the attributes that are free."""
        return self.method(frozen).space(self.explainer.generator).attributes

    def found(self, index: Sequence[int], frozen: tuple[str, ...] = (), *, same: bool = False) -> Counterfactuals:
        """Criticisms of scans `index`, or with `same` their prototypes."""
        images = self.scans.images[list(index)].to(next(self.explainer.blackbox.parameters()).device)
        how = {
            "generator": self.explainer.generator,
            "blackbox": self.scorer,
            "method": self.method(frozen),
            "search": self.question.search,
            "batch": self.question.batch,
        }
        return prototype(images, probability=self.question.sure, **how) if same else counterfactual(images, **how)

    def queries(self, frozen: tuple[str, ...] = (), *, same: bool = False) -> list[Query]:
        """One for every chosen scan, in order."""
        names = self.card(frozen).names
        size, answers = self.question.batch, []
        for start in track(range(0, len(self.chosen), size), description="asking"):
            index = self.chosen[start : start + size]
            found = self.found(index, frozen, same=same)
            moved = (found.end.semantic - found.ray.code.semantic).tolist()
            for i, change, reached in zip(index, moved, found.reachable.tolist(), strict=True):
                by_name = dict(zip(names, change, strict=True))
                answers.append(Query(int(self.scans.labels[i]), self.scans.patients[i], by_name, reached))
        return answers
