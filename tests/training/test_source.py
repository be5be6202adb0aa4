"""Slices from shards: the order of an epoch, shares of processes, what is in memory, and the same as from memory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_data import write_tiny_data

from diffcf.cards import Preparation
from diffcf.data.shards import write_shards
from diffcf.errors import ConfigError, ScanError
from diffcf.training import loop, source
from diffcf.training.source import InMemory, Streamed, Streaming

TINY = Preparation(size=16, slices=2, field="resize")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data"), scans=60)  # 36 scans to train on, 72 slices


@pytest.fixture(scope="module")
def folder(manifest, tmp_path_factory) -> Path:
    return write_shards([manifest], TINY, tmp_path_factory.mktemp("shards") / "tiny", shards=6).folder


def stream(folder: Path, batch: int = 6, rank: int = 0, world: int = 1, seed: int = 0, buffer: int = 10) -> Streamed:
    return Streamed(Streaming(folder, buffer), TINY, batch, seed, rank, world)


def keys(streamed: Streamed, steps: range) -> list[int]:
    return [key for step in steps for key in streamed.at(step)[1]]


def test_a_slice_is_that_of_memory_and_has_its_key(manifest, folder) -> None:
    memory, streamed = InMemory([manifest], TINY, 6, seed=0), stream(folder)
    known = dict(zip(memory.train.indices.tolist(), memory.train.images, strict=True))
    image, given = streamed.at(0)
    assert image.shape == (6, 1, 16, 16)
    assert image.dtype == memory.at(0)[0].dtype == torch.float32
    expected = torch.stack([known[key] for key in given])
    torch.testing.assert_close(image, expected, rtol=0, atol=1 / 4000)


def test_an_epoch_shows_all_slices_once_in_an_order_of_its_own(manifest, folder) -> None:
    streamed = stream(folder)
    assert streamed.steps_per_epoch == 12
    first, second = keys(streamed, range(12)), keys(streamed, range(12, 24))
    assert sorted(first) == sorted(second) == sorted(InMemory([manifest], TINY, 6, 0).train.indices.tolist())
    assert first != second
    assert keys(stream(folder), range(24)) == first + second
    assert keys(stream(folder, seed=1), range(12)) != first
    # A buffer of 10 mixes the slices of a scan, which the shards hold side by side, with others.
    assert sum(a // 2 == b // 2 for a, b in pairwise(first)) < 24


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_an_epoch(folder, world: int) -> None:
    for epoch in range(2):
        steps = range(12 * epoch, 12 * epoch + 12)
        shares = [keys(stream(folder, 6, rank, world), steps) for rank in range(world)]
        assert {len(share) for share in shares} == {72 // world}
        assert len({key for share in shares for key in share}) == 72


def test_shards_that_cannot_be_shared_evenly_are_dealt_out_all_the_same(folder) -> None:
    """Of six shards of 12, four processes have two or one: one's worth of whole batches is what all can take."""
    shares = [stream(folder, 20, rank, 4) for rank in range(4)]
    assert {share.steps_per_epoch for share in shares} == {2}
    for epoch in range(3):
        seen = [key for share in shares for key in keys(share, range(2 * epoch, 2 * epoch + 2))]
        assert len(set(seen)) == len(seen) == 40


@pytest.mark.parametrize("start", [1, 11, 12, 19, 36])
def test_a_step_is_the_same_whenever_it_is_asked_for(folder, start: int) -> None:
    whole, resumed = stream(folder), stream(folder)
    keys(whole, range(start))
    for step in (start, start + 1, start + 2):
        (image, given), (again, other) = whole.at(step), resumed.at(step)
        assert given == other
        assert torch.equal(image, again)
    assert resumed.at(start)[1] == stream(folder).at(start)[1]  # back again


def test_steps_may_be_made_ahead_in_a_thread(folder) -> None:
    ahead = [given for _, given in loop.made_ahead(stream(folder).at, range(7, 15))]
    assert ahead == [stream(folder).at(step)[1] for step in range(7, 15)]


def test_no_more_is_read_ahead_than_the_buffer_and_two_of_a_shard(folder, monkeypatch) -> None:
    read, given = 0, 0
    plain = source.read_shard

    def counted(shard):
        nonlocal read
        for sample in plain(shard):
            read += 1
            yield sample

    monkeypatch.setattr(source, "read_shard", counted)
    streamed = stream(folder, buffer=16)
    ahead = []
    for step in range(12):
        given += len(streamed.at(step)[1])
        ahead.append(read - given)
    assert 0 < max(ahead) <= 16 + 2 * 6
    assert read == given == 72


def test_a_cut_shard_stops_the_run(folder, tmp_path, manifest) -> None:
    written = write_shards([manifest], TINY, tmp_path / "shards", shards=2)
    streamed = stream(written.folder)
    path = written.splits["train"][1].path
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(ScanError, match=r"train-000001\.tar is damaged"):
        keys(streamed, range(12))


def test_what_cannot_be_shared_or_filled_is_refused(folder) -> None:
    with pytest.raises(ConfigError, match=r"6 training shard\(s\) for 7 processes"):
        stream(folder, 7, 0, 7)
    with pytest.raises(ConfigError, match="7 does not divide among 2 processes"):
        stream(folder, 7, 0, 2)
    with pytest.raises(ConfigError, match="a batch of 78 over 6 processes, one of which may have only 12"):
        stream(folder, 78, 0, 6)
    with pytest.raises(ConfigError, match="a buffer of 0"):
        stream(folder, buffer=0)
