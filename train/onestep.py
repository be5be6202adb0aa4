"""Distil a one-step decoder from a diffusion decoder: the same code and noise in, the image out in one evaluation.

    accelerate launch train/onestep.py --config configs/onestep/lidc.yaml

The teacher's decodes are computed first and kept in `cache`; both they and the run go on where they were cut off. The
averaged weights are written to OUT/onestep at every validation; `diffcf explain --onestep OUT/onestep` previews with
them. The final image of an explanation still comes from the full decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from diffcf.cards import OneStepCard
from diffcf.data.dataset import ScanDataset, SliceDataset
from diffcf.data.manifest import Manifest
from diffcf.data.views import KINDS, Views, view
from diffcf.generators.generator import load_diffusion
from diffcf.generators.onestep import OneStepDecoder, save_onestep
from diffcf.training import loop
from diffcf.training.checkpoint import newest_checkpoint
from diffcf.training.command import command_line, run_script
from diffcf.training.keyed import Order, turns_for
from diffcf.training.onestep import CHUNK, Decodes, OneStepLoss, cached_decodes, judge_onestep, read_decodes
from diffcf.training.run import Run, settings
from diffcf.weights import content_hash

# What a resumed run may change.
FREE = ("steps", "cooldown", "validate_every", "save_every", "cache", "data", "terms", "out")


@dataclass(frozen=True, kw_only=True)
class Config(loop.Stage):
    """What to distil, over which codes, and how.

    Args:
        out: run folder.
        manifests: CSV files; "train" rows are learned from, "val" rows are watched. Labels are not read.
        generator: folder or bundled name of the teacher, sampled as its card says.
        images: training slices whose codes are decoded, evenly chosen; 0 takes all.
        val_images: slices watched.
        edits: edited codes an image, beside the image's own code and one with a fresh x_T.
        longest: of an edit, in differences between the codes of two other images.
        views: each training slice is turned into one of these views, at random: none, mirror or square.
        precision: "bf16" computes the passes of teacher and student in bfloat16; weights stay in single precision.
        half: store the weights in half precision.
        cache: where the teacher's decodes are kept.
        data, terms: of what it was trained on, in words, for the card.
        seed: of views, edits, noise and order.
    """

    out: Path
    manifests: list[Path]
    generator: str
    images: int = 0
    val_images: int = 32
    edits: int = 1
    longest: float = 1.0
    views: Views = "mirror"
    steps: int = 1000
    learning_rate: float = 3e-4
    cooldown: float = 0.4
    weight_decay: float = 0.0
    ema: float = 0.99
    precision: Literal["no", "bf16"] = "no"
    half: bool = False
    validate_every: int = 200
    save_every: int = 100
    cache: Path = Path("runs/cache")
    data: str = ""
    terms: str = ""
    seed: int = 0


def decodes_of(config: Config, accelerator: Accelerator, console: Console) -> dict[str, Decodes]:
    """The teacher's decodes of codes of the training and validation slices, computed or read."""
    teacher = load_diffusion(config.generator).to(accelerator.device)
    manifest = Manifest.read_all(config.manifests)
    sets = {}
    for split, most in (("val", config.val_images), ("train", config.images)):
        with accelerator.main_process_first():  # the others find the cut fields on disk
            slices = SliceDataset(ScanDataset(manifest, teacher.card.preparation, split=split))
        chosen = torch.arange(len(slices))[:: math.ceil(len(slices) / most) if most else 1]
        images = slices.images[chosen]
        if split == "train":
            turns = turns_for(slices.indices[chosen].tolist(), config.seed, 0, KINDS[config.views])
            images = view(images, turns)
        with (
            torch.no_grad(),
            accelerator.autocast(),
            Progress(*loop.COLUMNS, console=console, transient=True) as progress,
        ):
            parts = [teacher.encode_semantic(part.to(accelerator.device)) for part in slices.images.split(CHUNK)]
            chunks = cached_decodes(
                teacher, content_hash(config.generator, "generator"), images, torch.cat(parts).float().cpu(),
                config.cache, edits=config.edits, longest=config.longest, seed=config.seed,
                rank=accelerator.process_index, world=accelerator.num_processes,
            )  # fmt: skip
            total = math.ceil(len(images) / CHUNK)
            files = list(progress.track(chunks, total=total, description=f"decoding {split}"))
        accelerator.wait_for_everyone()
        sets[split] = read_decodes(files)
    return sets


def main(config: Config) -> dict[str, float]:
    """Train to `config.steps`; returns the last validation's figures."""
    accelerator = Accelerator(mixed_precision=config.precision, log_with="tensorboard", project_dir=config.out)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    console = Console(quiet=not accelerator.is_main_process)
    sets = decodes_of(config, accelerator, console)
    train = sets["train"]
    generator = load_diffusion(config.generator)
    student = OneStepDecoder(generator.model).to(device)
    adam = torch.optim.AdamW(student.parameters(), lr=0.0, weight_decay=config.weight_decay, fused=True)
    run = Run(config.out / "checkpoints", student, adam, config.ema, settings(config, FREE))
    if newest_checkpoint(run.folder) is None:
        console.print("before:", {key: round(value, 2) for key, value in judge_onestep(student, sets["val"]).items()})
    order = Order(len(train), min(config.batch, len(train)), config.seed)
    command = command_line(__file__, "accelerate launch")
    about = {"data": config.data, "terms": config.terms, "command": command, "seed": config.seed}
    teacher = content_hash(config.generator, "generator")

    def inputs(step: int) -> tuple[Tensor, ...]:
        index = order.at(step, rank, world)
        return tuple(part[index].to(device) for part in (train.stochastic, train.semantic, train.image))

    def validate(averaged: OneStepDecoder, done: int) -> dict[str, float]:
        figures = judge_onestep(averaged, sets["val"])
        card = OneStepCard(teacher, generator.sampling, {**about, "steps": done, "validation": figures})
        save_onestep(averaged, card, config.out / "onestep", half=config.half)
        return figures

    loss = OneStepLoss(student)
    figures = loop.train(accelerator, run, loss, config, name="onestep", inputs=inputs, validate=validate)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return figures


if __name__ == "__main__":
    run_script(main, Config)
