"""What a generator costs to train, by size of the image and number of devices.

    python evaluation/cost.py --config configs/evaluation/cost_paper.yaml

Measured, on one device: `throughput`, images a second (of a processor without an accelerator, of the clock with one);
`memory_mb`, as evaluation/throughput.py has it; `inputs`, images a second that one thread makes views, timesteps and
noise for, which happens beside the steps where there is an accelerator.

Estimated from these, data parallel with the same `batch` on every device: a step takes as long as the slowest of its
arithmetic and its inputs, and then the exchange of gradients, 2 (n - 1) / n times their bytes over the slowest link of
the ring (`within`, of one machine, or `between` machines; GB/s, which you state), none of which is hidden behind the
backward pass: an upper bound. `images_s` is what all devices do together, `device_hours` what `images` take,
`read_mb_s` what they have to read from shards, of two bytes a pixel, and `bottleneck` what takes the largest part of a
step. A batch of n times the size may need other settings, and more images, for the same quality: that is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from common import RESULTS, write_result
from rich.progress import track
from throughput import Config as Timing
from throughput import Training, Way, seconds_on

from diffcf.cards import Preparation
from diffcf.data.dataset import ScanDataset, SliceDataset
from diffcf.data.manifest import Manifest
from diffcf.errors import ConfigError
from diffcf.training.command import run_script

BYTES = 4  # of a gradient, in single precision
PIXEL = 2  # bytes, as in shards


@dataclass(frozen=True)
class Config:
    """Which network, at which sizes, on how many devices.

    Args:
        name: the result is written to docs/results/cost_NAME.json.
        manifest: CSV file; its "train" rows are learned from.
        way: how the network is trained (evaluation/throughput.py).
        sizes: rows and columns. batches: slices a step on one device, one number a size.
        devices: how many; `per_machine` of them stand in one machine.
        images: that a training sees: epochs times slices.
        within, between: GB/s of the link between devices of one machine, and of two.
        steps: that are timed.
        preparation: of the slices; its size is replaced.
        data: what the data are, in words. seed: of initialisation, order and noise. out: folder of the result.
    """

    name: str
    manifest: Path
    way: Way
    sizes: list[int] = field(default_factory=lambda: [128, 256, 512])
    batches: list[int] = field(default_factory=lambda: [64, 32, 8])
    devices: list[int] = field(default_factory=lambda: [1, 8, 64])
    per_machine: int = 8
    images: int = 6_400_000
    within: float = 200.0
    between: float = 20.0
    steps: int = 10
    preparation: Preparation = field(default_factory=Preparation)
    data: str = ""
    seed: int = 0
    out: Path = RESULTS


@dataclass(frozen=True)
class Measured:
    """On one device: images a second of steps and of inputs, megabytes, and how many weights."""

    throughput: float
    inputs: float
    memory_mb: float
    parameters: int


def measure(accelerator: Accelerator, config: Config, size: int, batch: int) -> Measured:
    """Train a few steps at a size."""
    preparation = replace(config.preparation, size=size)
    slices = SliceDataset(ScanDataset(Manifest.read(config.manifest), preparation, split="train"))
    timing = Timing(config.name, config.manifest, {"": config.way}, preparation=preparation, batch=batch)
    training = Training(accelerator, slices, config.way, timing)
    training.train(1)  # compiles, and allocates AdamW's moments
    memory = training.megabytes()
    seconds = training.train(config.steps)
    began = seconds_on(accelerator.device)
    for step in range(config.steps):
        training.inputs(step)
    made = seconds_on(accelerator.device) - began
    count = config.steps * batch
    return Measured(count / seconds, count / max(made, 1e-9), memory, training.model.num_parameters())


def estimate(measured: Measured, batch: int, size: int, devices: int, config: Config) -> dict[str, Any]:
    """What so many devices do together."""
    link = config.within if devices <= config.per_machine else config.between
    parts = {
        "arithmetic": batch / measured.throughput,
        "inputs": batch / measured.inputs,
        "exchange": 2 * (devices - 1) / devices * BYTES * measured.parameters / (link * 1e9),
    }
    step = max(parts["arithmetic"], parts["inputs"]) + parts["exchange"]
    speed = devices * batch / step
    return {
        "images_s": speed,
        "device_hours": devices * config.images / speed / 3600,
        "hours": config.images / speed / 3600,
        "exchange_share": parts["exchange"] / step,
        "read_mb_s": speed * PIXEL * size**2 / 1e6,
        "bottleneck": max(parts, key=lambda part: parts[part]),
    }


def main(config: Config) -> list[dict[str, Any]]:
    """Measure every size, estimate every number of devices; prints and writes the table, returns its rows.

    Errors: ConfigError for sizes without a batch, and numbers that are not positive.
    """
    if len(config.sizes) != len(config.batches):
        raise ConfigError(f"{len(config.sizes)} sizes and {len(config.batches)} batches: expected one batch a size.")
    if min(config.within, config.between, config.images, config.per_machine, config.steps, *config.devices) <= 0:
        raise ConfigError("links, images, devices and steps: expected positive numbers.")
    accelerator, table = Accelerator(), []
    for size, batch in track(list(zip(config.sizes, config.batches, strict=True)), description="sizes"):
        measured = measure(accelerator, config, size, batch)
        for devices in config.devices:
            row = {"method": f"{size} x {size}", "devices": devices, "data": config.name, "batch": batch}
            row |= {**vars(measured), **estimate(measured, batch, size, devices, config)}
            table.append(row | {"images": config.images, "within": config.within, "between": config.between})
    write_result(__file__, config, "What a generator costs to train: one device measured, more estimated", table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
