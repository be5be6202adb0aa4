"""What saliency maps cost (paper 003, section 3.2): passes, the cache, and several processes.

    python evaluation/maps.py --config configs/evaluation/maps_lidc.yaml

`forwards` and `backwards`: passes of the baseline for one map, per image. `again`: passes when the
same maps are asked for once more. `time_ratio`: one process of one thread by `processes` of one thread each, over the
same new maps, from when all are ready until the last has read everything; the median of `repeats`, with the smallest
and largest as KEY_low and KEY_high. It means something on a machine that does nothing else.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from acat_runs import AcatRun
from common import RESULTS, write_result
from map_worker import make, prepare, ready
from torch import Tensor, nn

from diffcf.saliency import CounterfactualSaliency, SaliencyMethod
from diffcf.saliency.maps import maps_of
from diffcf.training.command import run_script


@dataclass(frozen=True)
class Config:
    """Which maps.

    Args:
        name: the result is written to docs/results/maps_NAME.json.
        manifest: CSV file; labelled rows of the run's own `split`.
        run: a folder that train/acat.py wrote.
        methods: name -> how maps are made; the first is timed.
        processes: compared with one. most: scans. repeats: of the timing; 0 leaves it out. split: which scans.
        data: what the scans are, in words. seed: of nothing here, for the file. out: folder of the result.
    """

    name: str
    manifest: Path
    run: Path
    methods: dict[str, SaliencyMethod] = field(default_factory=lambda: {"ours": CounterfactualSaliency()})
    processes: int = 2
    most: int = 128
    repeats: int = 3
    split: str = "test"
    data: str = ""
    seed: int = 0
    out: Path = RESULTS


class Counted(nn.Module):
    """A module whose passes are counted per image: `forwards`, and `backwards` where a gradient comes back."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.forwards, self.backwards = inner, 0, 0

    def forward(self, image: Tensor) -> Tensor:
        """What `inner` gives."""
        output = self.inner(image)
        self.forwards += len(image)
        if output.requires_grad:
            output.register_hook(self._note)
        return output

    def _note(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def passes(config: Config, method: SaliencyMethod, folder: Path) -> dict[str, float]:
    """Passes for a map, and when it is asked for again."""
    run = AcatRun(config.run)
    images = run.scans(run.rows(config.manifest, config.split)).images[: config.most]
    counted = Counted(run.baseline)
    figures: dict[str, float] = {}
    for again in (False, True):
        counted.forwards = counted.backwards = 0
        maps_of(method, counted, images, run.generator, folder=folder, versions="cost")
        if again:
            figures["again"] = float(counted.forwards + counted.backwards)
        else:
            figures |= {"forwards": counted.forwards / len(images), "backwards": counted.backwards / len(images)}
    return figures


def seconds(config: Config, world: int) -> float:
    """How long so many processes take for the maps."""
    context = multiprocessing.get_context("spawn")
    method = next(iter(config.methods.values()))
    given = (config.run, config.manifest, config.split, config.most, method, world, context.Barrier(world))
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(world, context, initializer=prepare, initargs=given) as pool,
    ):
        list(pool.map(ready, range(world)))
        start = time.perf_counter()
        list(pool.map(make, [Path(folder)] * world, range(world)))
        return time.perf_counter() - start


def main(config: Config) -> list[dict[str, Any]]:
    """Count and time; prints and writes the table, returns its rows."""
    rows: list[dict[str, Any]] = []
    for name, method in config.methods.items():
        with tempfile.TemporaryDirectory() as folder:
            counted = passes(config, method, Path(folder))
        rows.append({"method": name, "data": config.name, "split": config.split, **counted})
    pairs = [(seconds(config, 1), seconds(config, config.processes)) for _ in range(config.repeats)]
    if pairs:
        ratios = [one / several for one, several in pairs]
        rows[0] |= {"processes": config.processes, "time_ratio": median(ratios)}
        rows[0] |= {"time_ratio_low": min(ratios), "time_ratio_high": max(ratios)}
    write_result(__file__, config, "What saliency maps cost", rows)
    return rows


if __name__ == "__main__":
    run_script(main, Config)
