"""Train a diffusion autoencoder on the slices of scans (paper 004, sections 2.1 and 3.2).

    accelerate launch train/diffae.py --config configs/diffae/lidc.yaml

Labels are not read. Data that do not fit in memory come from shards (docs/generators.md). A run that was cut off goes
on where its last checkpoint stands when it is started again. The averaged weights are written to OUT/generator at every
validation, and the trust statistics beside them at the end.
TensorBoard: tensorboard --logdir OUT/logs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from einops import rearrange
from rich.console import Console
from torch import Tensor

from diffcf.cards import GeneratorCard, Preparation, Sampling
from diffcf.data.views import Views
from diffcf.errors import ConfigError
from diffcf.generators.diffae import DiffusionAutoencoder
from diffcf.generators.generator import SliceWise, load_generator, save_generator
from diffcf.training import loop
from diffcf.training.command import command_line, run_script
from diffcf.training.diffusion import DiffusionLoss, drawn, judge_reconstruction, picture_grid
from diffcf.training.run import Run, settings
from diffcf.training.source import InMemory, Source, Streamed, Streaming
from diffcf.trust import FEWEST_HELD_OUT, MOST_APPEARANCES, MOST_HELD_OUT, fit_trust

# What a resumed run may change.
FREE = ("sampling", "steps", "cooldown", "validate_every", "save_every", "val_images", "data", "terms", "out")


@dataclass(frozen=True, kw_only=True)
class Config(loop.Stage):
    """What to train on, which network, and how.

    Args:
        out: run folder.
        manifests: CSV files, read into memory; "train" rows are learned from, "val" rows are watched.
        shards: what to learn from and watch in place of manifests, read as it is needed.
        preparation: how slices are cut; its size is the network's.
        model: arguments of DiffusionAutoencoder beside the size.
        sampling: how reconstructions are judged, and what the card tells others to use.
        loss: l1, the paper's norm, or l2.
        min_snr: gamma of the min-SNR weighting of timesteps (Hang et al. 2023 take 5), with l2; null weighs all alike.
        views: what is as likely as the image itself: none, mirror (left-right), square (all eight turns).
        precision: "bf16" computes passes in bfloat16; weights stay in single precision.
        channels_last: memory layout of weights and images. It pays where convolutions prefer it: measure it.
        compile: torch.compile the loss.
        half: store the generator's weights in half precision.
        val_images: slices watched.
        data, terms: of what it was trained on, in words, for the card.
        seed: of initialisation, order, noise and views.
    """

    out: Path
    manifests: list[Path] = field(default_factory=list)
    shards: Streaming | None = None
    preparation: Preparation = field(default_factory=Preparation)
    model: dict[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    loss: Literal["l1", "l2"] = "l1"
    min_snr: float | None = None
    views: Views = "mirror"
    steps: int = 20_000
    learning_rate: float = 1e-4  # the paper's
    warmup: int = 100
    cooldown: float = 0.3
    weight_decay: float = 0.0
    ema: float = 0.999
    precision: Literal["no", "bf16"] = "no"
    channels_last: bool = False
    compile: bool = False
    half: bool = False
    validate_every: int = 500
    save_every: int = 500
    val_images: int = 64
    data: str = ""
    terms: str = ""
    seed: int = 0


def source_of(config: Config, rank: int, world: int) -> Source:
    """What the config says to learn from."""
    if bool(config.manifests) == bool(config.shards):
        came = "both" if config.shards else "neither"
        raise ConfigError(f"manifests or shards, one of the two; {came} came. Beside shards say --manifests [].")
    how = (config.preparation, config.batch, config.seed, rank, world)
    return Streamed(config.shards, *how) if config.shards else InMemory(config.manifests, *how)


def main(config: Config) -> dict[str, float]:
    """Train to `config.steps`; returns the last validation's figures."""
    accelerator = Accelerator(mixed_precision=config.precision, log_with="tensorboard", project_dir=config.out)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    console = Console(quiet=not accelerator.is_main_process)
    with accelerator.main_process_first():  # the others find the cut fields on disk
        source = source_of(config, rank, world)
    held_out = source.scans("val", MOST_HELD_OUT)
    watched = rearrange(held_out, "n s c h w -> (n s) c h w")
    shown = watched[:: math.ceil(len(watched) / config.val_images)].to(device)
    judged = len(held_out) >= FEWEST_HELD_OUT
    if not judged:
        console.print(f"{len(held_out)} validation scans are too few for trust statistics: none will be written.")

    torch.manual_seed(config.seed)
    try:
        model = DiffusionAutoencoder(image_size=config.preparation.size, **config.model)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model {config.model}: {error}; expected arguments of DiffusionAutoencoder.") from error
    command = command_line(__file__, "accelerate launch")
    about = {"data": config.data, "terms": config.terms, "command": command, "seed": config.seed}
    card = GeneratorCard(config.preparation, config.sampling, "trust.safetensors" if judged else None, about)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    adam = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=config.weight_decay, fused=True)
    run = Run(config.out / "checkpoints", model, adam, config.ema, settings(config, FREE) | source.settings)

    def inputs(step: int) -> tuple[Tensor, ...]:
        image, keys = source.at(step)
        given = drawn(image, keys, config.views, model.schedule.timesteps, config.seed, step)
        return loop.to_device(given, device)

    def validate(averaged: DiffusionAutoencoder, done: int) -> dict[str, float]:
        made = judge_reconstruction(averaged, card, shown)
        writer: Any = accelerator.get_tracker("tensorboard", unwrap=True)
        writer.add_image("reconstruction", picture_grid(shown, made).cpu(), done)
        save_generator(averaged, card, config.out / "generator", half=config.half)
        return made.figures

    loss = DiffusionLoss(model, config.loss, config.min_snr)
    how = {"compile": config.compile, "ahead": device.type == "cuda"}  # on a CPU no core is free for it
    figures = loop.train(accelerator, run, loss, config, name="diffae", inputs=inputs, validate=validate, **how)
    if accelerator.is_main_process and judged:
        lifted = SliceWise(load_generator(config.out / "generator"))
        known = source.scans("train", math.ceil(MOST_APPEARANCES / config.preparation.slices))
        fit_trust(lifted.to(device), known, held_out).save(config.out / "generator")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return figures


if __name__ == "__main__":
    run_script(main, Config)
