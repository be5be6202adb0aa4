"""Where the slices of each step come from: memory, or shards that are read as they are needed.

Both give slices with the keys by which views, timesteps and noise are drawn, the same for a slice either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from diffcf.cards import Preparation
from diffcf.data.dataset import ScanDataset, SliceDataset
from diffcf.data.manifest import Manifest
from diffcf.data.shards import Shard, Shards, read_shard, unpack
from diffcf.errors import ConfigError
from diffcf.training.keyed import Order, check_shares


class Source(Protocol):
    """Slices to learn from, and scans to judge by. settings: what must be the same when a run is resumed."""

    settings: dict[str, Any]

    def at(self, step: int) -> tuple[Tensor, list[int]]:
        """This process's slices of step 0, 1, ..., "b 1 h w" in [-1, 1], and their keys, "b"."""
        ...

    def scans(self, split: str, enough: int) -> Tensor:
        """Scans of "train" or "val", "n s 1 h w" in [-1, 1]: all that are in memory; of shards the first `enough`."""
        ...


class InMemory:
    """The scans of manifests, read whole, in the order of `Order` over `batch`, `seed` and so many processes.

    Errors: those of `Manifest.read_all`, `ScanDataset` and `Order`.
    """

    def __init__(
        self, manifests: Sequence[Path], preparation: Preparation, batch: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        manifest = Manifest.read_all(manifests)
        self.read = {split: ScanDataset(manifest, preparation, split=split) for split in ("train", "val")}
        self.train = SliceDataset(self.read["train"])
        self.order = Order(len(self.train), batch, seed)
        self.rank, self.world = rank, world
        self.settings: dict[str, Any] = {}

    def at(self, step: int) -> tuple[Tensor, list[int]]:
        """As `Source` says."""
        positions = self.order.at(step, self.rank, self.world)
        return self.train.images[positions], self.train.indices[positions].tolist()

    def scans(self, split: str, enough: int) -> Tensor:
        """As `Source` says."""
        return self.read[split].images


@dataclass(frozen=True)
class Streaming:
    """Shards to learn from: a `folder` of `python -m diffcf.data.shards`, and among how many samples, of two bytes a
    pixel, each process shuffles. It holds these in memory, and two more of every shard that it reads, ten at a time."""

    folder: Path
    buffer: int = 4096


class Streamed:
    """Samples of shards, read as they are needed: every epoch deals the shards out among the processes anew, and each
    shuffles within its buffer, all by seed and epoch.

    Every process takes as many whole batches an epoch as the smallest shards would give it; what is left over waits for
    another epoch's order. A step that does not follow the last one asked for is found by reading its epoch up to it.

    Errors: those of `Shards.read`; ConfigError for fewer shards than processes, fewer samples than a batch holds, a
    batch that does not divide, and a buffer of nothing. `at` and `scans`: those of `read_shard`.
    """

    def __init__(
        self, streaming: Streaming, preparation: Preparation, batch: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.shards = Shards.read(streaming.folder, preparation)
        train = self.shards.splits["train"]
        if len(train) < world:
            raise ConfigError(
                f"{streaming.folder} has {len(train)} training shard(s) for {world} processes, each of which reads its "
                f"own; write it anew with --shards {world} or a multiple."
            )
        if streaming.buffer < 1:
            raise ConfigError(f"a buffer of {streaming.buffer} samples; expected 1 or more, better thousands.")
        self.share = check_shares(batch, world)
        fewest = sum(sorted(shard.samples for shard in train)[: len(train) // world])
        self.steps_per_epoch = fewest // self.share if self.share else 0
        if not self.steps_per_epoch:
            raise ConfigError(
                f"a batch of {batch} over {world} processes, one of which may have only {fewest} samples."
            )

        import datasets
        from datasets.distributed import split_dataset_by_node

        every = datasets.IterableDataset.from_generator(_samples, gen_kwargs={"shards": list(train)})
        shuffled = every.shuffle(seed=seed, buffer_size=streaming.buffer)
        self.stream = split_dataset_by_node(shuffled, rank, world, strategy="shards")
        self.rest: Iterator[dict[str, Any]] = iter(())
        self.following = -1
        # The order is that library's, and one of these processes and these shards.
        self.settings: dict[str, Any] = {
            "content of shards": self.shards.digest,
            "number of processes": world,
            "version of datasets": datasets.__version__,
        }

    def at(self, step: int) -> tuple[Tensor, list[int]]:
        """As `Source` says."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if within == 0 or step != self.following:
            self.stream.set_epoch(epoch)
            # The library's own state leaves out what is in the buffer, and its skip() keeps one order for all epochs.
            self.rest = islice(iter(self.stream), within * self.share, None)
        taken = list(islice(self.rest, self.share))
        self.following = step + 1
        images = np.stack([unpack(sample["pixels"], self.shards.preparation.window) for sample in taken])
        return rearrange(torch.from_numpy(images), "b h w -> b 1 h w"), [sample["key"] for sample in taken]

    def scans(self, split: str, enough: int) -> Tensor:
        """As `Source` says."""
        return self.shards.scans(split, enough)


def _samples(shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
    """What `datasets` reads; its own reader of such files takes a cut one for a short one, and makes arrays lists."""
    for shard in shards:
        yield from read_shard(shard)
