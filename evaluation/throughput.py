"""How fast does a diffusion autoencoder train, what of a step takes the time, and is it as good?

    python evaluation/throughput.py --config configs/evaluation/throughput_lidc.yaml

The rows train on the same slices, in one run, by the step of `diffcf.training.loop` that `train/diffae.py` makes. The
first is the published form, a network on pixels in single precision, eager and contiguous, its weights updated one by
one; the others change it, and the last is ours. Rows take turns of a few steps, so that a machine that is busy for a
while favours none; intervals are over these rounds.

`throughput` is images a second: of the processors without an accelerator (summed over threads), so that what else they
do does not count, and of the clock with one. `throughput_ratio` is against the first row, round by round. `memory_mb`:
the most that tensors take within a step, weights, average and optimiser included. `gflop`: convolutions and matrix
products of an image, forward and backward; `matrix_share`, of the rate of a large matrix product (`matrix_gflops`, a
second, in bfloat16 on CUDA and else in single precision). `share_*`: what the parts of a step take, from a round of its
own; with CUDA the host waits after each. `share_log` is the losses' way to the host and into TensorBoard.

Equal quality: the first row and the last train on until both have had the same time, at least `seconds`. Then `images`
is how many each has seen, and averaged weights are judged on held-out slices: `denoising`, the mean squared error of
the predicted noise over evenly spaced timesteps (Ho et al. 2020, Eq. 14), `psnr` in dB of the plain reconstruction, and
`psnr_random` from a random x_T; intervals resample patients. Compilation and the first two steps are not timed.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from common import RESULTS, mean_row, write_result
from einops import reduce, repeat
from rich.console import Console
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from diffcf.cards import GeneratorCard, Preparation, Sampling
from diffcf.data.dataset import ScanDataset, SliceDataset
from diffcf.data.manifest import Manifest
from diffcf.data.views import Views
from diffcf.errors import ConfigError
from diffcf.generators.diffae import DiffusionAutoencoder
from diffcf.metrics.images import psnr
from diffcf.training import loop
from diffcf.training.command import run_script
from diffcf.training.diffusion import DiffusionLoss, drawn, judge_reconstruction
from diffcf.training.keyed import Order, noise_for
from diffcf.training.run import Plan, Run

PARTS = ("inputs", "forward", "backward", "clip", "optimiser", "average", "log")
LEVELS = 8  # timesteps at which a network is judged
FOREVER = 10**9  # steps: the learning rate never falls


@dataclass(frozen=True)
class Way:
    """One row: how a network is trained.

    Args:
        model: arguments of DiffusionAutoencoder beside the size.
        fused: one kernel steps all weights, and few average them; otherwise weight by weight.
        channels_last, precision, compile, min_snr: as in train/diffae.py.
    """

    model: dict[str, Any]
    fused: bool = True
    channels_last: bool = False
    precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    min_snr: float | None = None


@dataclass(frozen=True)
class Config:
    """Which data, which ways.

    Args:
        name: the result is written to docs/results/throughput_NAME.json.
        manifest: CSV file; "train" rows are learned from, rows of `split` judge.
        ways: name -> how to train; the first is what the others are compared with, the last is ours.
        preparation, sampling, loss, views, batch, learning_rate, warmup, clip, ema: as in train/diffae.py.
        rounds: turns that each way takes. steps: of a turn.
        seconds: that the first way and the last have trained when they are judged, at least.
        emulated: also train in bfloat16 where the device has no instructions for it; otherwise such ways are left out.
        matrix: rows and columns of the product that is timed.
        images: slices that judge.
        split: test, or val while something is still being chosen.
        data: what the data are, in words.
        resamples: of the bootstrap over rounds and over patients.
        seed: of initialisation, order, noise, views and the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    ways: dict[str, Way]
    preparation: Preparation = field(default_factory=Preparation)
    sampling: Sampling = field(default_factory=Sampling)
    loss: Literal["l1", "l2"] = "l2"
    views: Views = "none"
    batch: int = 16
    learning_rate: float = 1e-3
    warmup: int = 10
    clip: float = 1.0
    ema: float = 0.998
    rounds: int = 5
    steps: int = 2
    seconds: float = 60.0
    emulated: bool = False
    matrix: int = 1024
    images: int = 16
    split: str = "test"
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


class Laps:
    """Seconds of each part of the steps, summed up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.last = seconds_on(device)

    def __call__(self, part: str) -> None:
        """The part is done."""
        now = seconds_on(self.device)
        self.seconds[part] += now - self.last
        self.last = now


class Training:
    """A network in training, a few steps at a time."""

    def __init__(self, accelerator: Accelerator, slices: SliceDataset, way: Way, config: Config) -> None:
        self.accelerator, self.slices, self.way, self.config = accelerator, slices, way, config
        self.device = accelerator.device
        torch.manual_seed(config.seed)
        self.model = DiffusionAutoencoder(image_size=config.preparation.size, **way.model)
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        self.model.to(self.device, memory_format=layout)  # pyright: ignore[reportCallIssue]
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, weight_decay=0.0, fused=way.fused, foreach=False
        )
        self.run = Run(config.out, self.model, self.optimiser, config.ema, {})  # never saved
        self.run.ema.foreach = way.fused
        self.loss = DiffusionLoss(self.model, config.loss, way.min_snr)
        self.fast = torch.compile(self.loss) if way.compile else self.loss
        self.plan = Plan(config.learning_rate, FOREVER, config.warmup, cooldown=0.0)
        self.order = Order(len(slices), config.batch, config.seed)
        self.done, self.seconds = 0, 0.0

    def __call__(self, *given: Tensor) -> Tensor:
        """The loss, as the accelerator of a training script prepares it."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.way.precision == "bf16"):
            return self.fast(*given).float()

    def inputs(self, step: int) -> tuple[Tensor, ...]:
        """Of a step, on the device."""
        timesteps, seed = self.model.schedule.timesteps, self.config.seed
        at = self.order.at(step)
        image, keys = self.slices.images[at], self.slices.indices[at].tolist()
        given = drawn(image, keys, self.config.views, timesteps, seed, step)
        return loop.to_device(given, self.device)

    def train(self, steps: int, mark: Callable[[str], None] = lambda part: None) -> float:
        """Train on for so many steps; returns the seconds."""
        began, readings = seconds_on(self.device), loop.Readings(self.accelerator)
        ahead = range(self.done, self.done + steps)
        source = loop.made_ahead(self.inputs, ahead) if self.device.type == "cuda" else map(self.inputs, ahead)
        for given in source:
            mark("inputs")
            rate = self.plan.apply(self.optimiser, self.done)
            reading = loop.step(self.accelerator, self.run, self, self.optimiser, given, self.config.clip, mark)
            self.done += 1
            readings.keep(self.done, rate, reading)
            if self.done == ahead.stop or self.done % loop.LOOK == 0:
                readings.look()
            mark("log")
        took = seconds_on(self.device) - began
        self.seconds += took
        return took

    def gigaflop(self) -> float:
        """Of convolutions and matrix products for one image, forward and backward."""
        one = [part[:1] for part in self.inputs(0)]
        with FlopCounterMode(display=False) as counter:
            self.loss(*one).backward()
        self.optimiser.zero_grad()
        return counter.get_total_flops() / 1e9

    def megabytes(self) -> float:
        """The most that this network's tensors take within a step."""
        kept = 4 * sum(weight.nbytes for weight in self.run.weights)  # weights, average and both moments of AdamW
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.train(1)
            return (kept + torch.cuda.max_memory_allocated(self.device) - before) / 2**20
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.train(1)
        events: Any = profiled.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
        taken = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        return (kept + max(np.cumsum([size for _, size in taken]))) / 2**20

    def averaged(self) -> DiffusionAutoencoder:
        """The network with its averaged weights."""
        model = copy.deepcopy(self.model)
        self.run.ema.copy_to(model.parameters())
        return model


def seconds_on(device: torch.device) -> float:
    """The clock of a CUDA device that has nothing left to do; else the processors' time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def matrix_rate(device: torch.device, size: int, repeats: int = 10) -> float:
    """GFLOP a second of a product of two square matrices, bfloat16 on CUDA and else single precision."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(one, other)
    began = seconds_on(device)
    for _ in range(repeats):
        torch.mm(one, other)
    return repeats * 2 * size**3 / (seconds_on(device) - began) / 1e9


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


@torch.no_grad()
def denoising(model: DiffusionAutoencoder, images: Tensor, seed: int) -> Tensor:
    """Mean squared error of the predicted noise for images "n c h w", over evenly spaced timesteps: "n"."""
    errors = []
    for at in torch.linspace(0, model.schedule.timesteps - 1, LEVELS).round().long():
        t = repeat(at, "-> n", n=len(images)).to(images.device)
        noise = noise_for(range(len(images)), images.shape[1:], seed, int(at)).to(images.device)
        alpha, sigma = model.levels(t, images)
        said = model.noise(alpha * images + sigma * noise, t, model.encode_semantic(images))
        errors.append(reduce((said - noise).square(), "n c h w -> n", "mean"))
    return torch.stack(errors).mean(0)


def judged(training: Training, slices: SliceDataset, config: Config) -> dict[str, float]:
    """How good the averaged weights are, and what they took."""
    chosen = list(range(0, len(slices), math.ceil(len(slices) / config.images)))
    images, model = slices.images[chosen].to(training.device), training.averaged()
    made = judge_reconstruction(model, GeneratorCard(config.preparation, config.sampling, None), images)
    figures = {
        "denoising": denoising(model, images, config.seed),
        "psnr": psnr(made.image, images),
        "psnr_random": psnr(made.random, images),
    }
    values = {key: value.cpu().numpy() for key, value in figures.items()}
    patients = [slices.patients[i] for i in chosen]
    spent = {"seconds": training.seconds, "images": training.done * config.batch, "n": len(chosen)}
    return {**spent, **mean_row(values, patients, resamples=config.resamples, seed=config.seed)}


def main(config: Config) -> list[dict[str, Any]]:
    """Train in every way; prints and writes the table, returns its rows."""
    with tempfile.TemporaryDirectory() as logs:
        accelerator = Accelerator(log_with="tensorboard", project_dir=logs)
        accelerator.init_trackers("logs")
        table = measure(accelerator, config)
        accelerator.end_training()
    write_result(__file__, config, "How fast a diffusion autoencoder trains, against its published form", table)
    return table


def measure(accelerator: Accelerator, config: Config) -> list[dict[str, Any]]:
    """The rows. Errors: ConfigError where no ways are left to compare."""
    device, manifest = accelerator.device, Manifest.read(config.manifest)
    ways = config.ways
    if not (config.emulated or has_bfloat16(device)):
        ways = {name: way for name, way in ways.items() if way.precision == "no"}
        for name in (name for name in config.ways if name not in ways):
            Console().print(f"{name}: left out, this device has no instructions for bfloat16.")
    if len(ways) < 2:
        raise ConfigError(f"{len(ways)} ways to train here, {', '.join(ways)}; expected two or more to compare.")
    train, held = (SliceDataset(ScanDataset(manifest, config.preparation, split=s)) for s in ("train", config.split))
    trainings = {name: Training(accelerator, train, way, config) for name, way in ways.items()}
    rate = matrix_rate(device, config.matrix)
    rows: dict[str, dict[str, Any]] = {}
    for name, training in trainings.items():
        training.train(1)  # compiles, and allocates AdamW's moments
        rows[name] = {"gflop": training.gigaflop(), "memory_mb": training.megabytes()}
        training.seconds, laps = 0.0, Laps(device)
        training.train(config.steps, laps)
        whole = sum(laps.seconds.values())
        rows[name] |= {f"share_{part}": seconds / whole for part, seconds in laps.seconds.items()}
    seconds = np.array([[each.train(config.steps) for each in trainings.values()] for _ in range(config.rounds)])
    speeds = config.batch * config.steps / seconds  # "rounds ways"
    first, last = next(iter(trainings)), next(reversed(trainings))
    until = max(config.seconds, trainings[first].seconds, trainings[last].seconds)
    while behind := [name for name in (first, last) if trainings[name].seconds < until]:
        for name in behind:
            trainings[name].train(config.steps)
    table = []
    for i, (name, training) in enumerate(trainings.items()):
        figures = {"throughput": speeds[:, i], "throughput_ratio": speeds[:, i] / speeds[:, 0]}
        fast = mean_row(figures, range(config.rounds), resamples=config.resamples, seed=config.seed)
        row: dict[str, Any] = {
            "method": name,
            "data": config.name,
            "split": config.split,
            "default": name == last,
            "size": config.preparation.size,
            "batch": config.batch,
            "rounds": config.rounds,
            "matrix_gflops": round(rate),
            "parameters": training.model.num_parameters(),
            **fast,
            "matrix_share": rows[name]["gflop"] * fast["throughput"] / rate,
            **rows[name],
        }
        table.append(row | (judged(training, held, config) if name in (first, last) else {}))
    return table


if __name__ == "__main__":
    run_script(main, Config)
