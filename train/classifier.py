"""Train a black box: a timm classifier over the slices of a scan (paper 004, section 3.2).

    accelerate launch train/classifier.py --config configs/classifier/lidc.yaml

Splits are by patient: the manifest's own, or k folds of its train and val; test rows are never read. The weights that
are best on the validation part go to OUT/blackbox; with `--fold all` to OUT/fold-I/blackbox, figures to OUT/folds.json.
A run that is cut off goes on after its last whole epoch when it is started again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffcf.cards import CARD_NAME, ClassifierCard, Preparation
from diffcf.classifiers.blackbox import save_blackbox
from diffcf.classifiers.network import build_classifier
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest, ManifestRow
from diffcf.errors import ConfigError
from diffcf.metrics.classification import figures_of
from diffcf.training.checkpoint import has_checkpoint
from diffcf.training.classification import Augmentation, check_labels, class_weights
from diffcf.training.command import command_line, run_script
from diffcf.training.epochs import Epochs
from diffcf.training.keyed import Order, drawn_by, generator
from diffcf.training.loop import check_launcher
from diffcf.training.run import Plan, settings

OF_CARD = ("preparation", "classes", "architecture", "architecture_args", "slice_mode")
FREE = ("data", "terms", "out", "overwrite")  # what a resumed run may change
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Config:
    """What to train, on what, and how.

    Args:
        out: run folder.
        manifests: CSV files; unlabelled rows are left out.
        classes: names, in the order of the manifest's labels. preparation: how scans are cut.
        architecture, architecture_args: of timm. slice_mode: how several slices go in (EXTENDING.md).
        fold: null, the manifest's own split; 0 to `folds` - 1, that one validates; "all", a run for each.
        positive: the class that figures and `select` are about, against the others.
        select: the best epoch has the highest sum of sensitivity and specificity, as in the paper, or the highest AUC
            or accuracy (of more than two classes).
        balance: classes weigh the same in the loss, are drawn equally often, or neither.
        smoothing: of the labels; keeps logits from running away. augmentation: views that keep the label.
        epochs: passes over the training scans. patience: stop after so many without a better one; 0 never.
        batch: scans a step, over all processes. half: store the weights in half precision.
        learning_rate, weight_decay: of AdamW; the rate is reached after `warmup` epochs, then falls to 0.
        ema: decay of the averaged weights, which are validated and written; 0 averages none.
        data, terms: of what it was trained on, for the card. seed: of folds, initialisation, order and views.
        overwrite: replace a black box that is in OUT already.
    """

    out: Path
    manifests: list[Path]
    classes: list[str]
    preparation: Preparation = field(default_factory=Preparation)
    architecture: str = "densenet121"
    architecture_args: dict[str, Any] = field(default_factory=dict)
    slice_mode: Literal["channels", "average", "concatenate"] = "channels"
    fold: int | Literal["all"] | None = None
    folds: int = 5
    positive: int = -1
    select: Literal["sum", "auc", "accuracy"] = "sum"
    balance: Literal["none", "loss", "sampling"] = "loss"
    smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: int = 100
    patience: int = 0
    batch: int = 16
    learning_rate: float = 1e-4
    warmup: float = 1.0
    weight_decay: float = 0.01
    ema: float = 0.0
    half: bool = False
    data: str = ""
    terms: str = ""
    seed: int = 0
    overwrite: bool = False


def load(rows: list[ManifestRow], config: Config, part: str) -> ScanDataset:
    """Labelled scans of a part. Errors: ConfigError where a class has no scan, or a label no class."""
    labelled = [row for row in rows if row.label is not None]
    check_labels(labelled, config.classes, part)
    return ScanDataset(labelled, config.preparation)


@torch.no_grad()
def judge(classifier: nn.Module, scans: ScanDataset, config: Config, device: torch.device) -> dict[str, float]:
    """Figures on scans (`figures_of`)."""
    classifier.eval()
    logits = torch.cat([classifier(part.to(device)).cpu() for part in scans.images.split(64)])
    return figures_of(logits.double().softmax(1).numpy(), scans.labels.numpy(), config.positive)


def fit(accelerator: Accelerator, config: Config, parts: tuple[list, list], out: Path) -> dict[str, float]:
    """Train on the first part, keep the epoch that is best on the second, write OUT/blackbox; returns its figures."""
    begun = has_checkpoint(out / CHECKPOINTS)
    if not (begun or config.overwrite) and (out / "blackbox" / CARD_NAME).exists():
        raise ConfigError(
            f"{out / 'blackbox'} holds a black box already: give another --out, or --overwrite true to replace it."
        )
    set_seed(config.seed)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    with accelerator.main_process_first():  # the others find the cut fields on disk
        train, val = load(parts[0], config, "training"), load(parts[1], config, "validation")
    card = ClassifierCard(**{name: getattr(config, name) for name in OF_CARD})
    classifier = build_classifier(card).to(device)
    averaged: Any = AveragedModel(classifier, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    adam = torch.optim.AdamW(classifier.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    run = Epochs(out / CHECKPOINTS, classifier, averaged, adam, settings(config, FREE))
    run.resume()
    module, optimiser = accelerator.prepare(classifier, adam)
    even = class_weights(train.labels, len(config.classes))
    weighed = even if config.balance == "loss" else None
    criterion = nn.CrossEntropyLoss(weighed, label_smoothing=config.smoothing, reduction="none").to(device)
    drawn = even[train.labels] if config.balance == "sampling" else None
    order = Order(len(train), min(config.batch, len(train)), config.seed, drawn)
    length = order.steps_per_epoch
    plan = Plan(config.learning_rate, config.epochs * length, round(config.warmup * length), cooldown=1.0)
    console = Console(quiet=not accelerator.is_main_process)
    if run.done:
        console.print(f"resumed after epoch {run.done}")
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("classifier", total=config.epochs, completed=run.done)
        for epoch in range(run.done + 1, config.epochs + 1):
            if config.patience and run.done - run.best >= config.patience:
                break
            module.train()
            random = generator("views", config.seed, epoch, rank)
            for step in range((epoch - 1) * length, epoch * length):
                plan.apply(adam, step)
                index = order.at(step, rank, world)
                image = config.augmentation(train.images[index], config.preparation.window, random)
                with drawn_by(device, "layers", config.seed, step, rank):
                    losses = criterion(module(image.to(device)), train.labels[index].to(device))
                accelerator.backward(losses.mean())  # over scans, not over weights: each process has other scans
                optimiser.step()
                optimiser.zero_grad()
                averaged.update_parameters(classifier)
            figures = judge(averaged.module, val, config, device)
            # Batch statistics differ between processes, which must stop together: the first one's word holds.
            chosen: Any = broadcast(torch.tensor(figures[config.select], device=device))
            if run.judged(figures, float(chosen)):
                console.print(f"epoch {epoch}: {config.select} {run.highest:.4f}, saturated {figures['saturated']:.2f}")
            if accelerator.is_main_process and isfinite(float(chosen)):  # weights that are not finite never are written
                run.save()
            progress.update(task, advance=1)
    if not run.kept:
        raise ConfigError("no epoch gave a finite figure; lower learning_rate.")
    if accelerator.is_main_process:
        shown = {name: round(value, 4) for name, value in run.figures.items()}
        about = {"data": config.data, "terms": config.terms, "command": command_line(__file__, "accelerate launch")}
        about |= {"seed": config.seed, "epoch": run.best, "train": len(train), "validation": {"n": len(val), **shown}}
        averaged.module.load_state_dict(run.kept)
        best = averaged.module.network.net.state_dict()
        save_blackbox(best, replace(card, about=about), out / "blackbox", half=config.half)
        console.print(f"epoch {run.best} on {len(val)} validation scans:", shown)
    return run.figures


def main(config: Config) -> dict[str, float]:
    """Train on the manifest's split, one fold or all; returns figures of the validation part (of all folds, means)."""
    accelerator, manifest = Accelerator(), Manifest.read_all(config.manifests)
    check_launcher(accelerator)
    if config.fold is None:
        runs = {config.out: (manifest.split("train"), manifest.split("val"))}
    elif config.fold == "all":
        runs = {config.out / f"fold-{i}": part for i, part in enumerate(manifest.folds(config.folds, config.seed))}
    elif config.fold in range(config.folds):
        runs = {config.out: manifest.folds(config.folds, config.seed)[config.fold]}
    else:
        raise ConfigError(f"fold {config.fold}: expected 0 to {config.folds - 1}, all, or null.")
    every = [fit(accelerator, config, parts, out) for out, parts in runs.items()]
    figures = every[0]
    if config.fold == "all":
        figures, spread = ({name: of([one[name] for one in every]) for name in every[0]} for of in (fmean, stdev))
        if accelerator.is_main_process:
            written = json.dumps({"mean": figures, "std": spread, "folds": every}, indent=2)
            (config.out / "folds.json").write_text(written)
            Console().print({name: f"{mean:.3f} ± {spread[name]:.3f}" for name, mean in figures.items()})
    if accelerator.is_main_process:
        for out in runs:  # of all folds at once: until the last one has ended the same command goes on
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return figures


if __name__ == "__main__":
    run_script(main, Config)
