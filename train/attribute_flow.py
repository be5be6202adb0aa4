"""Train a flow of attributes: what they do to each scan's own code (paper 002, section 4.2).

    accelerate launch train/attribute_flow.py --config configs/attributes/phantom_nodule_flow.yaml

Where train/attributes.py fits one direction an attribute, the same for every scan, this trains a small network over the
maps of a spatial code; the generator is not touched. "train" rows whose attributes are all rated are learned from,
"val" rows watched. `diffcf explain --method attributes --attributes OUT/attributes` searches with it. A run that is cut
off goes on when it is started again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import torch
from accelerate import Accelerator
from einops import rearrange, repeat
from torch import Tensor

from diffcf.cards import AttributesCard, check_varying
from diffcf.data.manifest import Manifest
from diffcf.errors import ConfigError
from diffcf.generators.attribute_flow import AttributeFlow, FlowNetwork
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.training import loop
from diffcf.training.attributes import Effects, FlowLoss, judge_flow, one_changed, rated_scans, read_by
from diffcf.training.classification import Augmentation
from diffcf.training.command import command_line, run_script
from diffcf.training.keyed import Order, noise_for
from diffcf.training.keyed import generator as keyed
from diffcf.training.run import Run, settings
from diffcf.weights import content_hash

# What a resumed run may change.
FREE = ("steps", "cooldown", "validate_every", "save_every", "data", "terms", "out")


@dataclass(frozen=True, kw_only=True)
class Config(loop.Stage):
    """Which attributes of which scans, and how the flow is trained.

    Args:
        out: run folder.
        manifests: CSV files with columns `attr_NAME`.
        generator: folder or bundled name, with a spatial code.
        names: of the attributes; those that go together are told apart by what is left when the others are held.
        slices: of a scan.
        channels: width of each level of the velocity's network.
        reader_channels: width of each level of the network that reads the attributes.
        integration: steps of the flow, each of two evaluations.
        augmentation: views of a scan that have the same attributes, for the network that reads them.
        effects: the last part of the training.
        data, terms: of the scans, in words, for the card.
        seed: of initialisation, order, views, times and noise.
    """

    out: Path
    manifests: list[Path]
    generator: str
    names: list[str]
    slices: int = 1
    channels: list[int] = field(default_factory=lambda: [32, 64, 64])
    reader_channels: list[int] = field(default_factory=lambda: [32, 64, 128])
    integration: int = 8
    augmentation: Augmentation = field(default_factory=lambda: Augmentation("none"))
    effects: Effects = field(default_factory=Effects)
    steps: int = 3000
    ema: float = 0.995
    cooldown: float = 0.4
    data: str = ""
    terms: str = ""
    seed: int = 0


def check_rows(config: Config, world: int) -> None:
    """Errors: ConfigError for effects whose slopes would be of too few scans of a process."""
    rows, least = config.batch // world, 2 * (len(config.names) + 1)
    if config.effects.share and rows < least:
        raise ConfigError(
            f"effects of {len(config.names)} attributes over {rows} scans of a process's step: what is read of them "
            f"would be chance. Take batch {least * world} or more, or effects.share 0."
        )


def main(config: Config) -> dict[str, float]:
    """Train to `config.steps`; returns the last validation's figures."""
    accelerator = Accelerator(log_with="tensorboard", project_dir=config.out)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    check_rows(config, world)
    generator = SliceWise(load_generator(config.generator)).to(device)
    preparation = replace(generator.card.preparation, slices=config.slices)
    manifest = Manifest.read_all(config.manifests)
    with accelerator.main_process_first():  # the others find the cut fields on disk
        sets = {split: rated_scans(manifest, preparation, config.names, split) for split in ("train", "val")}
    images, values = sets["train"]
    check_varying(config.names, sets["val"][1], "the held-out scans")
    card = AttributesCard.of(config.names, values, content_hash(config.generator, "generator"))

    @torch.no_grad()
    def codes_of(part: Tensor) -> Tensor:
        """Codes "(b s) d h w" of scans "b s c h w"."""
        return rearrange(generator.encode_semantic(part.to(device)), "b s ... -> (b s) ...")

    def amounts_of(part: Tensor) -> Tensor:
        """Amounts "(b s) k" of values "b k"."""
        return repeat(card.amounts(part).to(device), "b k -> (b s) k", s=config.slices)

    known = torch.cat([codes_of(part) for part in images.split(config.batch)])
    if known.ndim != 4:
        raise ConfigError(
            f"{config.generator} has a global code; the flow is over maps. Fit directions instead: train/attributes.py."
        )
    held_out = torch.cat([codes_of(part) for part in sets["val"][0].split(config.batch)]), amounts_of(sets["val"][1])
    torch.manual_seed(config.seed)
    network = FlowNetwork(
        len(config.names), known.shape[-1], known.shape[1], config.channels, config.reader_channels, config.integration
    )
    network.standardise(known.cpu())
    network.to(device)  # pyright: ignore[reportArgumentType]
    adam = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=config.weight_decay, fused=True)
    run = Run(config.out / "checkpoints", network, adam, config.ema, settings(config, FREE))
    order = Order(len(images), config.batch, config.seed)

    everyone = card.amounts(values)

    def inputs(step: int) -> tuple[Tensor, ...]:
        index = order.at(step, rank, world).tolist()
        drawn = [keyed("flow", config.seed, step, i) for i in index]
        parts = [
            config.augmentation(images[i : i + 1], preparation.window, own) for i, own in zip(index, drawn, strict=True)
        ]
        codes, views = rearrange(known, "(n s) d h w -> n s d h w", s=config.slices)[index], codes_of(torch.cat(parts))
        time = torch.cat([torch.rand(config.slices, generator=own) for own in drawn]).to(device)
        noise = noise_for(index, codes.shape[1:], config.seed, step).to(device)
        codes, noise = (rearrange(part, "b s ... -> (b s) ...") for part in (codes, noise))
        amounts = amounts_of(values[index])
        last = step >= config.steps * (1 - config.effects.share)
        first = everyone[index[: config.effects.batch if last else 0]]
        other = one_changed(first, everyone, keyed("other", config.seed, step, rank)).to(device)
        return codes, views, amounts, time, noise, repeat(other, "b k -> (b s) k", s=config.slices)

    command = command_line(__file__, "accelerate launch")
    about = {"data": config.data, "terms": config.terms, "command": command, "seed": config.seed, "scans": len(images)}

    def validate(averaged: FlowNetwork, done: int) -> dict[str, float]:
        read = dict(zip(config.names, read_by(averaged, *held_out), strict=True))
        figures = {**judge_flow(averaged, *held_out, config.slices), "read": fmean(read.values())}
        shown = {name: round(fit, 3) for name, fit in read.items()}
        said = replace(card, about={**about, "steps": done, "validation": figures, "read": shown})
        AttributeFlow(averaged, said).save(config.out / "attributes")
        return figures

    how = {"name": "attribute flow", "inputs": inputs, "validate": validate}
    figures = loop.train(accelerator, run, FlowLoss(network, config.effects.weight), config, **how)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return figures


if __name__ == "__main__":
    run_script(main, Config)
