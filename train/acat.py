"""Algorithm 1 of paper 003 from end to end: baseline, autoencoder, saliency maps, and a classifier that reads them.

    accelerate launch train/acat.py --config configs/acat/lidc_background.yaml
    accelerate launch train/acat.py --config configs/acat/lidc_background.yaml --config configs/acat/methods/smic.yaml

They go to OUT/baseline/blackbox, OUT/autoencoder/generator, OUT/maps and OUT/NAME/classifier. Every stage goes on where
its last checkpoint stands; what is there already is not made again, so that the methods of one OUT share the first
three. Splits are by patient; test rows are never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from diffcf.cards import ClassifierCard, GeneratorCard, Preparation
from diffcf.classifiers.attention import Attention
from diffcf.classifiers.blackbox import load_blackbox, save_blackbox
from diffcf.classifiers.guided import GuidedClassifier, save_guided
from diffcf.classifiers.guides import Guidance
from diffcf.classifiers.network import build_classifier
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.data.views import Views
from diffcf.errors import ConfigError
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.saliency import CounterfactualSaliency, SaliencyMethod
from diffcf.saliency.maps import maps_of
from diffcf.training.autoencoder import AutoencoderStage, fit_autoencoder
from diffcf.training.classification import check_labels, class_weights
from diffcf.training.command import command_line, run_script
from diffcf.training.guided import Part, Recipe, fewer, fit_classifier
from diffcf.training.loop import Stage
from diffcf.training.run import settings
from diffcf.weights import content_hash

OF_CARD = ("preparation", "classes", "architecture", "architecture_args", "slice_mode")
OF_SCANS = ("manifests", "split", "scans", "preparation", "views", "seed")
OF_CLASSIFIER = (*OF_SCANS, *OF_CARD, "balance", "select")
OF_METHOD = ("baseline", "autoencoder", "saliency", "guidance", "start", "finetune")
KEPT = ("baseline", "autoencoder", "maps")  # folders of OUT


@dataclass(frozen=True)
class Config:
    """What to train, on what, and from which maps.

    Args:
        out: folder of the baseline, the autoencoder, the maps, and a folder for every method.
        name: of the method's folder.
        manifests: CSV files; unlabelled rows are left out. split: seed of a split of its own; null: the manifest's.
        scans: so many training scans, all for 0 (paper 003, Table 4).
        classes, preparation, architecture, architecture_args, slice_mode: of the baseline, as in train/classifier.py.
        baseline, autoencoder, finetune: how each network is trained.
        saliency: where the maps come from (`diffcf.saliency`).
        guidance: what reads them (`diffcf.classifiers.guided`).
        start: the method starts from the baseline's weights, or from random ones.
        views: turns of a training scan with its map. balance: classes weigh the same in the cross-entropy.
        select: the validation figure whose best weights are kept, of baseline and method.
        data, terms: for the cards. seed: of initialisation, order and views.
    """

    out: Path
    manifests: list[Path]
    classes: list[str]
    name: str = "acat"
    split: int | None = None
    scans: int = 0
    preparation: Preparation = field(default_factory=Preparation)
    architecture: str = "diffcf_cnn7"
    architecture_args: dict[str, Any] = field(default_factory=dict)
    slice_mode: Literal["channels", "average", "concatenate"] = "average"
    baseline: Stage = field(default_factory=Stage)
    autoencoder: AutoencoderStage = field(default_factory=AutoencoderStage)
    saliency: SaliencyMethod = field(default_factory=CounterfactualSaliency)
    guidance: Guidance = field(default_factory=Attention)
    start: Literal["baseline", "scratch"] = "baseline"
    finetune: Stage = field(default_factory=Stage)
    views: Views = "mirror"
    balance: bool = False
    select: Literal["accuracy", "auc"] = "accuracy"
    data: str = ""
    terms: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Setting:
    """What all stages share: the config, as JSON too, both parts, and what a card says of them."""

    config: Config
    said: dict[str, Any]
    train: ScanDataset
    val: ScanDataset
    card: ClassifierCard
    recipe: Recipe

    @classmethod
    def of(cls, config: Config) -> Setting:
        """Read the scans. Errors: ConfigError where a class has no scan, or a label no class."""
        manifest = Manifest.read_all(config.manifests)
        manifest = manifest if config.split is None else manifest.redrawn(config.split)
        rows = {part: [row for row in manifest.split(part) if row.label is not None] for part in ("train", "val")}
        rows["train"] = fewer(rows["train"], config.scans, config.seed)
        for part, of_part in rows.items():
            check_labels(of_part, config.classes, part)
        train, val = (ScanDataset(rows[part], config.preparation) for part in ("train", "val"))
        weights = class_weights(train.labels, len(config.classes)) if config.balance else None
        about = {"data": config.data, "terms": config.terms, "command": command_line(__file__, "accelerate launch")}
        about |= {"seed": config.seed, "split": config.split, "train": len(train)}
        card = ClassifierCard(**{name: getattr(config, name) for name in OF_CARD}, about=about)
        return cls(
            config, settings(config), train, val, card, Recipe(config.views, config.select, weights, config.seed)
        )

    def depends_on(self, *names: str) -> dict[str, Any]:
        """The settings that a stage depends on."""
        return {name: self.said[name] for name in names}


def fit_baseline(setting: Setting) -> Path:
    """The network f; returns its folder."""
    config, folder = setting.config, setting.config.out / "baseline" / "blackbox"

    def write(averaged: Any, seen: dict[str, Any]) -> None:
        save_blackbox(averaged, replace(setting.card, about=setting.card.about | seen), folder)

    torch.manual_seed(config.seed)
    model = build_classifier(setting.card)
    parts, said = (Part(setting.train), Part(setting.val)), setting.depends_on(*OF_CLASSIFIER, "baseline")
    fit_classifier(model, *parts, config.baseline, setting.recipe, out=folder.parent, settings=said, write=write)
    return folder


def fit_generator(setting: Setting) -> Path:
    """The autoencoder D(E), of the training scans alone; returns its folder."""
    config, out = setting.config, setting.config.out / "autoencoder"
    accelerator = Accelerator(log_with="tensorboard", project_dir=out)
    card = GeneratorCard(config.preparation, trust=None, about=setting.card.about)
    said = setting.depends_on(*OF_SCANS, "autoencoder")
    fit_autoencoder(
        accelerator, setting.train, setting.val, config.autoencoder, card, out, seed=config.seed, settings=said
    )
    return out / "generator"


def make_maps(setting: Setting, baseline: Path) -> tuple[Part, Part]:
    """Both parts with their maps, computed by all processes together and kept in OUT/maps."""
    config, accelerator = setting.config, Accelerator()
    folder = fit_generator(setting) if config.saliency.needs_generator else None
    blackbox = load_blackbox(baseline).to(accelerator.device)
    generator = None if folder is None else SliceWise(load_generator(folder)).to(accelerator.device)
    parts = []
    for scans in (setting.train, setting.val):
        maps = maps_of(
            config.saliency,
            blackbox,
            scans.images,
            generator,
            folder=config.out / "maps",
            versions="+".join(content_hash(source) for source in (baseline, folder) if source is not None),
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            wait=accelerator.wait_for_everyone,
        )
        parts.append(Part(scans, maps))
    return parts[0], parts[1]


def main(config: Config) -> dict[str, float]:
    """All stages; returns the last validation's figures of the method, none where it was trained already."""
    if config.name in KEPT:
        raise ConfigError(f"name {config.name!r}: that folder of OUT is another stage's; choose another name.")
    with Accelerator().main_process_first():  # the others find the cut fields on disk
        setting = Setting.of(config)
    baseline = fit_baseline(setting)
    parts = make_maps(setting, baseline) if config.guidance.reads_maps else (Part(setting.train), Part(setting.val))
    torch.manual_seed(config.seed)
    model = GuidedClassifier(setting.card, config.guidance)
    if config.start == "baseline":
        model.start_from(load_blackbox(baseline))
    about = setting.card.about | {"start": config.start}
    if config.guidance.reads_maps:
        about |= {"saliency": repr(config.saliency)}

    def write(averaged: GuidedClassifier, seen: dict[str, Any]) -> None:
        save_guided(averaged, about | seen, config.out / config.name / "classifier")

    said = setting.depends_on(*OF_CLASSIFIER, *OF_METHOD)
    out = config.out / config.name
    figures = fit_classifier(model, *parts, config.finetune, setting.recipe, out=out, settings=said, write=write)
    Accelerator().end_training()  # only now: it ends the group of processes that all stages share
    return figures


if __name__ == "__main__":
    run_script(main, Config)
