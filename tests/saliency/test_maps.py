"""Maps of many scans: kept by content, made once, by one process or several."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffcf.errors import ConfigError
from diffcf.saliency import SaliencyMethod, check_maps, maps_of, normalised


@dataclass(frozen=True)
class Counting(SaliencyMethod):
    """|image| in colours' sum, and how many were asked for; stops after `last` batches."""

    asked: list[int] = field(default_factory=list, repr=False, compare=False)
    last: int = 1000
    scale: float = 1.0

    def __repr__(self) -> str:
        return f"Counting(scale={self.scale})"

    def find(self, classifier, image, target, generator) -> Tensor:
        if len(self.asked) == self.last:
            raise KeyboardInterrupt
        self.asked.append(len(image))
        return self.scale * image.abs().sum(2, keepdim=True)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(7, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def expected(images: Tensor) -> Tensor:
    return normalised(images.abs().sum(2, keepdim=True))


def ask(method: SaliencyMethod, images: Tensor, folder: Path, **how) -> Tensor:
    return maps_of(method, nn.Identity(), images, folder=folder, **{"versions": "a+b", "batch": 2, **how})


def test_maps_are_made_once(images, tmp_path) -> None:
    method = Counting()
    first = ask(method, images, tmp_path / "maps")
    assert first.shape == (7, 2, 1, 8, 8)
    assert first.dtype == torch.float32
    assert torch.allclose(first, expected(images), atol=3e-4)
    assert (float(first.min()), float(first.max())) == (0, 1)
    assert method.asked == [2, 2, 2, 1]
    assert torch.equal(ask(method, images.flip(0), tmp_path / "maps"), first.flip(0))
    assert len(method.asked) == 4
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert len(names) == 7
    assert all(name.endswith(".npy") for name in names)


def test_what_else_they_are_made_from_makes_them_anew(images, tmp_path) -> None:
    method = Counting()
    ask(method, images, tmp_path)
    ask(method, images, tmp_path, versions="a+c")
    assert sum(method.asked) == 14
    other = Counting(scale=2.0)
    ask(other, images, tmp_path)
    assert sum(other.asked) == 7
    changed = images.clone()
    changed[3, 0, 0, 0, 0] += 1e-3
    ask(method, changed, tmp_path)
    assert sum(method.asked) == 15


def test_equal_images_have_one_map(images, tmp_path) -> None:
    method = Counting()
    twice = torch.cat([images, images])
    assert torch.equal(ask(method, twice, tmp_path), ask(method, images, tmp_path).repeat(2, 1, 1, 1, 1))
    assert sum(method.asked) == 7


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", b"no array at all"])
def test_a_damaged_map_is_made_anew(images, tmp_path, damage) -> None:
    method = Counting()
    whole = ask(method, images, tmp_path)
    sorted(tmp_path.iterdir())[2].write_bytes(damage)
    assert torch.equal(ask(method, images, tmp_path), whole)
    assert method.asked[4:] == [1]


def test_a_map_of_another_size_or_pickled_is_no_map(images, tmp_path) -> None:
    method = Counting()
    whole = ask(method, images, tmp_path)
    paths = sorted(tmp_path.iterdir())
    np.save(paths[0], np.zeros((1, 1, 8, 8), np.float16))
    np.save(paths[1], np.array([{}], dtype=object), allow_pickle=True)
    assert torch.equal(ask(method, images, tmp_path), whole)
    assert method.asked[4:] == [2]


def test_a_run_that_is_cut_off_loses_one_batch(images, tmp_path) -> None:
    cut = Counting(last=2)
    with pytest.raises(KeyboardInterrupt):
        ask(cut, images, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    rest = Counting()
    assert torch.allclose(ask(rest, images, tmp_path), expected(images), atol=3e-4)
    assert rest.asked == [2, 1]


def test_processes_share_what_is_missing(images, tmp_path) -> None:
    ask(Counting(), images[:2], tmp_path)
    barrier, methods, found = Barrier(2, timeout=20), [Counting(), Counting()], {}

    def run(rank: int) -> None:
        found[rank] = ask(methods[rank], images, tmp_path, batch=1, rank=rank, world=2, wait=barrier.wait)

    threads = [Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sum(method.asked) for method in methods] == [3, 2]
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0], expected(images), atol=3e-4)


def test_a_folder_that_cannot_be_written(images, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no map can be kept in"):
        ask(Counting(), images, tmp_path / "file")


def test_a_map_that_goes_missing_is_said(images, tmp_path) -> None:
    def sweep() -> None:
        for path in tmp_path.iterdir():
            path.unlink()

    with pytest.raises(ConfigError, match="gone or damaged"):
        ask(Counting(), images, tmp_path, wait=sweep)


def test_maps_that_cannot_be(images, tmp_path) -> None:
    maps = torch.rand(7, 2, 1, 8, 8)
    check_maps(maps, images)
    for wrong in (maps[:6], maps[:, :1], maps[..., :4], maps.expand(-1, -1, 3, -1, -1)):
        with pytest.raises(ConfigError, match=r"expected \(7, 2, 1, 8, 8\)"):
            check_maps(wrong, images)
    for wrong in (1.5 * maps / maps.max(), maps - 1):
        with pytest.raises(ConfigError, match=r"expected \[0, 1\]"):
            check_maps(wrong, images)
    maps[3, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ConfigError, match="NaN or infinity"):
        check_maps(maps, images)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        ask(Counting(scale=float("nan")), images, tmp_path)
    assert not list(tmp_path.iterdir())
