"""One of the processes that evaluation/maps.py times: a module of its own, which a new process can import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from acat_runs import AcatRun

from diffcf.saliency import SaliencyMethod
from diffcf.saliency.maps import maps_of

_scene: dict[str, Any] = {}  # what this process has loaded


def prepare(run: Path, manifest: Path, split: str, most: int, method: SaliencyMethod, world: int, barrier: Any) -> None:
    """Load everything, once a process."""
    torch.set_num_threads(1)
    source = AcatRun(run)
    images = source.scans(source.rows(manifest, split)).images[:most]
    _scene.update(blackbox=source.baseline, generator=source.generator, images=images)
    _scene.update(method=method, world=world, barrier=barrier)


def ready(rank: int) -> None:
    """Return when all processes have loaded; one call for each."""
    _scene["blackbox"](_scene["images"][:1])
    _scene["barrier"].wait()


def make(folder: Path, rank: int) -> None:
    """The share of one process, and all maps read; one call for each, since all wait for each other."""
    maps_of(
        _scene["method"],
        _scene["blackbox"],
        _scene["images"],
        _scene["generator"],
        folder=folder,
        versions="cost",
        rank=rank,
        world=_scene["world"],
        wait=_scene["barrier"].wait,
    )
