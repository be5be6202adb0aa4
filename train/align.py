"""Train a classifier that decides for the experts' reasons (Algorithm 1 of paper 001), or one to compare it with.

    accelerate launch train/align.py --config configs/align/lidc.yaml

Splits are by patient; test rows are never read. The averaged weights that are best on the validation part, by a rule
that is the same for every method, go to OUT/blackbox, which `diffcf explain --classifier OUT/blackbox` reads. Runs
resume from their newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from diffcf.alignment import cdep, icnn  # noqa: F401  (a config names their methods)
from diffcf.alignment.attributes import AttributeSettings, Causes
from diffcf.alignment.hierarchy import HierarchicalAlignment, hierarchy_of
from diffcf.alignment.methods import Alternating, CounterfactualAlignment, Method, TrainingLoss
from diffcf.alignment.monitor import Monitor
from diffcf.alignment.regions import regions_of
from diffcf.alignment.spaces import Latent, Pixels
from diffcf.cards import ClassifierCard, Preparation, check_alike
from diffcf.classifiers.blackbox import save_blackbox
from diffcf.classifiers.network import build_classifier
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest, ManifestRow
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.data.shortcuts import add_marks
from diffcf.data.views import KINDS, Views, view
from diffcf.errors import ConfigError
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.metrics.classification import figures_of
from diffcf.training import loop
from diffcf.training.classification import check_labels, class_weights
from diffcf.training.command import command_line, run_script
from diffcf.training.keyed import Order, turns_for
from diffcf.training.run import Best, Run, settings

OF_CARD = ("preparation", "classes", "architecture", "architecture_args", "slice_mode")
FREE = ("out", "validate_every", "save_every", "data", "terms", "steps")


@dataclass(frozen=True, kw_only=True)
class Config(loop.Stage):
    """What to train, on what, and for which reasons.

    Args:
        out: run folder.
        manifests: CSV files; unlabelled rows are left out. maskless: rows without an expert's mask are refused, or left
            out. widen: pixels by which masks are widened to regions.
        classes, preparation, architecture, architecture_args, slice_mode: as in train/classifier.py.
        method: what is added to the cross-entropy (`diffcf.alignment.methods`). alternating: steps on the one and on
            the other by turns, as in paper 000; null: both in every step, as in paper 001.
        attributes: which of the manifest's attributes a hierarchical classifier learns; null: none.
        generator: folder or bundled name; counterfactuals are then searched in its code. null: in pixels.
        shortcut: a mark painted on every training scan as its `correlation` says; null: none.
        val_correlation: of the mark on validation scans; 0 is by chance, as in the papers.
        views: turns of a training scan with its region; the mark is painted afterwards.
        balance: classes weigh the same in the cross-entropy.
        select: the validation figure whose best weights are kept.
        data, terms: for the card. seed: of initialisation, order, views and marks.
    """

    out: Path
    manifests: list[Path]
    classes: list[str]
    preparation: Preparation = field(default_factory=Preparation)
    architecture: str = "diffcf_cnn7"
    architecture_args: dict[str, Any] = field(default_factory=dict)
    slice_mode: Literal["channels", "average", "concatenate"] = "channels"
    method: Method = field(default_factory=CounterfactualAlignment)
    alternating: Alternating | None = None
    attributes: AttributeSettings | None = None
    generator: str | None = None
    shortcut: Shortcut | None = None
    val_correlation: float = 0.0
    maskless: Literal["refuse", "leave out"] = "refuse"
    widen: int = 2
    views: Views = "mirror"
    balance: bool = False
    select: Literal["auc", "accuracy"] = "auc"
    steps: int = 600
    validate_every: int = 100
    save_every: int = 100
    data: str = ""
    terms: str = ""
    seed: int = 0


def labelled(rows: Sequence[ManifestRow], config: Config, part: str, *, mask: bool = False) -> ScanDataset:
    """Labelled scans of a part; those without a mask are left out where the config says so. Errors: ConfigError for
    labels that are no class."""
    kept = [row for row in rows if row.label is not None and (row.mask is not None or config.maskless == "refuse")]
    check_labels(kept, config.classes, part)
    return ScanDataset(kept, config.preparation, mask=mask)


def experts(scans: ScanDataset, config: Config) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Attributes of training scans "n p" of 0, 1 and NaN, and those that caused the label, bool "n p"."""
    if config.attributes is None:
        return None, None
    coded = config.attributes.coded(scans.rows)
    labels = scans.labels.numpy()
    causes = Causes.fit(coded, labels, config.attributes).of(coded, labels)
    return torch.from_numpy(coded).float(), torch.from_numpy(causes)


def main(config: Config) -> dict[str, float]:
    """Train to `config.steps`; returns the last validation's figures."""
    # In single precision whatever the launcher says: what half of it leaves of a search has another gradient.
    accelerator = Accelerator(mixed_precision="no", log_with="tensorboard", project_dir=config.out)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    console = Console(quiet=not accelerator.is_main_process)
    manifest, window = Manifest.read_all(config.manifests), config.preparation.window
    with accelerator.main_process_first():  # the others find the cut fields on disk
        train = labelled(manifest.split("train"), config, "training", mask=True)
        region = regions_of(train, config.widen)
        val = labelled(manifest.split("val"), config, "validation")
    torch.manual_seed(config.seed)
    card = ClassifierCard(**{name: getattr(config, name) for name in OF_CARD})
    classifier = build_classifier(card).to(device)
    if config.attributes is not None and hierarchy_of(classifier).attributes != tuple(config.attributes.names):
        raise ConfigError(
            f"attributes {config.attributes.names}: the classifier's architecture_args name others, "
            f"{list(hierarchy_of(classifier).attributes)}."
        )
    if config.attributes is None and isinstance(config.method, HierarchicalAlignment):
        raise ConfigError("HierarchicalAlignment needs `attributes`: name those of the manifest that it shall learn.")
    attributes, causes = experts(train, config)
    space: Any = Pixels()
    if config.generator is not None:
        generator = load_generator(config.generator)
        check_alike(generator.card.preparation, config.preparation, f"generator {config.generator} and classifier")
        space = Latent(SliceWise(generator).to(device), config.seed)
    weights = class_weights(train.labels, len(config.classes)).to(device) if config.balance else None
    method = config.method.fitted(space, train.images.to(device))
    loss = TrainingLoss(classifier, method.terms(classifier, space), weights)
    adam = torch.optim.AdamW(classifier.parameters(), lr=0.0, weight_decay=config.weight_decay)
    run = Run(config.out / "checkpoints", classifier, adam, config.ema, settings(config, FREE), loss.terms.starts)
    order = Order(len(train), min(config.batch, len(train)), config.seed)
    monitor, best = Monitor(loss), Best(config.out / "best.json", run)
    mark = config.shortcut
    chance = None if mark is None else replace(mark, correlation=config.val_correlation)
    judged = add_marks(val.images, val.labels, chance, window, val.indices.tolist(), config.seed)

    def inputs(step: int) -> tuple[Any, ...]:
        positions = order.at(step, rank, world)
        keys = train.indices[positions].tolist()
        turns = turns_for(keys, config.seed, step, KINDS[config.views])
        image, label = view(train.images[positions], turns), train.labels[positions]
        image = add_marks(image, label, mark, window, keys, config.seed)
        turned = view(region[positions], turns)
        monitor.take()
        rated = [None if part is None else part[positions].to(device) for part in (attributes, causes)]
        part = "both" if config.alternating is None else config.alternating.at(step)
        scene = [one.to(device) for one in (image, label, turned)]
        return *scene, step / config.steps, *rated, keys, turns, part

    @torch.no_grad()
    def validate(averaged: Any, done: int) -> dict[str, float]:
        for own, trained in zip(averaged.buffers(), classifier.buffers(), strict=True):
            own.copy_(trained)
        averaged.eval()
        logits = torch.cat([averaged(part.to(device)).cpu() for part in judged.split(64)])
        figures = figures_of(logits.double().softmax(1).numpy(), val.labels.numpy(), -1)
        for said in monitor.warnings(logits, val.labels):
            console.print(f"[bold red]step {done}: {said}[/]")
        if best.beaten(figures[config.select]):
            shown = {name: round(value, 4) for name, value in figures.items()}
            about = {"data": config.data, "terms": config.terms, "command": command_line(__file__, "accelerate launch")}
            about |= {"seed": config.seed, "step": done, "train": len(train)}
            about |= {
                "select": config.select,
                "method": type(config.method).__name__,
                "validation": {"n": len(val), **shown},
            }
            save_blackbox(averaged, replace(card, about=about), config.out / "blackbox")
            best.keep(done, figures[config.select])
        return {name: figures[name] for name in ("auc", "accuracy")} | monitor.figures()

    figures = loop.train(accelerator, run, loss, config, name="align", inputs=inputs, validate=validate)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return figures


if __name__ == "__main__":
    run_script(main, Config)
