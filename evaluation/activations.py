"""Does attention steady the network? (paper 003, section 4.6, Table 3)

    python evaluation/activations.py --config configs/evaluation/activations_lidc.yaml

Variances over test scans of what each convolution of the image network gives before normalisation and activation, each
number's own, averaged over them; `noised`: of images with a standard Gaussian added, as in the paper, in units of half
a window. Rows: each layer of the baseline and of a classifier with attention; `ratio` is the latter's by the former's.
Means over runs, Student's t intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from acat_runs import BASELINE, AcatRun, over_runs
from common import RESULTS, write_result
from torch import Tensor, nn

from diffcf.errors import ConfigError
from diffcf.saliency import CounterfactualSaliency, SaliencyMethod
from diffcf.training.command import run_script


@dataclass(frozen=True)
class Config:
    """Which runs.

    Args:
        name: the result is written to docs/results/activations_NAME.json.
        manifest: CSV file; labelled rows of each run's own `split`.
        runs: folders that train/acat.py wrote.
        method: folder of the classifier with attention; the paper's is trained from random weights.
        saliency: where its maps came from in training.
        noise: standard deviation. split: which scans.
        chosen_on: runs by whose validation scans settings were chosen; their patients are left out.
        data: what the scans are, in words. seed: of the noise. out: folder of the result.
    """

    name: str
    manifest: Path
    runs: list[Path]
    method: str = "scratch"
    saliency: SaliencyMethod = field(default_factory=CounterfactualSaliency)
    noise: float = 1.0
    split: str = "test"
    chosen_on: list[Path] = field(default_factory=list)
    data: str = ""
    seed: int = 0
    out: Path = RESULTS


@torch.no_grad()
def variances(model: nn.Module, network: nn.Module, given: Sequence[Tensor]) -> list[float]:
    """The mean variance over scans of every convolution's output in `network`, in the order of the forward."""
    found: list[float] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(float(output.var(0).mean()))

    handles = [one.register_forward_hook(note) for one in network.modules() if isinstance(one, nn.Conv2d)]
    try:
        model(*given)
    finally:
        for handle in handles:
            handle.remove()
    return found


def main(config: Config) -> list[dict[str, Any]]:
    """Measure every layer in every run; prints and writes the table, returns its rows."""
    measured: list[dict[str, list[float]]] = []
    for place, folder in enumerate(config.runs):
        run = AcatRun(folder)
        scans = run.scans(run.rows(config.manifest, config.split, chosen_on=config.chosen_on))
        random = torch.Generator().manual_seed(config.seed + place)
        noise = config.noise * torch.randn(scans.images.shape, generator=random)
        one: dict[str, list[float]] = {}  # figure -> of every layer
        for label, name in (("baseline", BASELINE), ("attention", config.method)):
            model, part = run.part(name, scans, config.saliency)
            image, *maps = part.at(slice(None), torch.device("cpu"))
            for kind, shown in (("original", image), ("noised", image + noise)):
                one[f"{label}_{kind}"] = variances(model, model.network, (shown, *maps))
        if len({len(values) for values in one.values()}) > 1:
            raise ConfigError(f"{folder}: {config.method} has other convolutions than the baseline; compare the same.")
        measured.append(one)
    rows = []
    for layer in range(len(measured[0]["baseline_original"])):
        each = [{key: values[layer] for key, values in run.items()} for run in measured]
        for figures in each:
            for kind in ("original", "noised"):
                figures[f"ratio_{kind}"] = figures[f"attention_{kind}"] / figures[f"baseline_{kind}"]
        row = {"layer": layer + 1, "data": config.name, "split": config.split, "runs": len(each)}
        for key in each[0]:
            row |= over_runs(key, [figures[key] for figures in each])
        rows.append(row)
    write_result(__file__, config, "Variances of pre-activations (paper 003, Table 3)", rows)
    return rows


if __name__ == "__main__":
    run_script(main, Config)
