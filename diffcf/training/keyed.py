"""Randomness by key: the order of the samples, and what is drawn for each, follow from seed, step and sample alone.

A run that is cut off and resumed, and one that is shared by several processes, then see what an uncut run of one
process sees. No generator's state has to be saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcf.errors import ConfigError


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by a hash of the key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@contextmanager
def drawn_by(device: torch.device, *key: int | str) -> Iterator[None]:
    """What torch's own generators give in the block (dropout's masks) follows from the key alone; they then go on from
    where they stood."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        seed = generator(*key).initial_seed()
        torch.default_generator.manual_seed(seed)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield


def check_shares(batch: int, world: int) -> int:
    """What each of `world` processes has of a batch. Errors: ConfigError where it does not divide among them."""
    if batch % world:
        raise ConfigError(f"a batch of {batch} does not divide among {world} processes; change `batch`.")
    return batch // world


@dataclass(frozen=True, eq=False)
class Order:
    """Which samples each step sees: every epoch all of them once, in an order of its own, in whole global batches.

    count: samples. batch: of one step, over all processes. The remainder of an epoch waits for another epoch's order.
    weights: of each sample, "n"; an epoch then draws as many samples by them, some several times and some never.

    Errors: ConfigError where there are fewer samples than a batch holds.
    """

    count: int
    batch: int
    seed: int
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.count:
            raise ConfigError(f"a batch of {self.batch} from {self.count} samples; expected 1 to {self.count}.")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.count // self.batch

    def at(self, step: int, rank: int = 0, world: int = 1) -> Tensor:
        """Positions of the samples of step 0, 1, ...: this process's equal share of the batch, int64.

        Errors: ConfigError where the batch does not divide among the processes.
        """
        check_shares(self.batch, world)
        epoch, within = divmod(step, self.steps_per_epoch)
        random = generator("order", self.seed, epoch)
        if self.weights is None:
            order = torch.randperm(self.count, generator=random)
        else:
            order = torch.multinomial(self.weights, self.count, replacement=True, generator=random)
        return order[within * self.batch : (within + 1) * self.batch][rank::world]


def noise_for(indices: Sequence[int], shape: Sequence[int], seed: int, step: int) -> Tensor:
    """White noise of `shape` for each sample index, "b ...": the same whatever else is in the batch."""
    return torch.stack([torch.randn(tuple(shape), generator=generator("noise", seed, step, i)) for i in indices])


def timesteps_for(indices: Sequence[int], timesteps: int, seed: int, step: int) -> Tensor:
    """A timestep from 0 to timesteps - 1 for each sample index, int64 "b", uniform."""
    drawn = [torch.randint(timesteps, (1,), generator=generator("time", seed, step, i)) for i in indices]
    return torch.cat(drawn)


def turns_for(indices: Sequence[int], seed: int, step: int, kinds: int) -> list[int]:
    """Which of `kinds` views of each sample is shown, 0 to kinds - 1."""
    return [int(torch.randint(kinds, (1,), generator=generator("view", seed, step, i))) for i in indices]
