"""What does an explanation cost, against the reference protocol of diffusion autoencoders?

    python evaluation/speed.py --config configs/evaluation/speed_lidc.yaml

All rows explain the same held-out scans with the same weights, in one run. The first one is what the others are
compared with. The reference protocol (Preechakul et al. 2022) inverts in 250 and decodes in 100 evenly spaced steps,
one image after the other, and decodes in full whatever it looks at: every point that a search tries and every frame of
the path. `evaluations` and `backwards` are of the generator, an image; `seconds` an image, search, path and noise floor
included: of the processors without an accelerator, so that what else they do does not count, and of the clock with one.
`evaluations_ratio` and `time_ratio` are the first row's mean by this row's. `psnr` is of the plain decode,
`cause_precision` the share of the absolute change that lies in the known cause. Intervals resample patients.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import RESULTS, first_of_each_class, mean_row, write_result
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.classifiers.agent import load_agent
from diffcf.classifiers.blackbox import BlackBox, load_blackbox
from diffcf.counterfactuals import Method, StepSearch
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.errors import ConfigError
from diffcf.explain import Explainer, ExplainSettings
from diffcf.generators.generator import DiffusionGenerator, SliceWise, load_diffusion
from diffcf.metrics.classification import bootstrap_interval
from diffcf.metrics.counterfactual import cause_precision
from diffcf.metrics.images import psnr
from diffcf.training.command import run_script
from diffcf.types import Code, Explanation


@dataclass(frozen=True)
class Way:
    """One row: how the same weights are used.

    Args:
        agent: folder or bundled name; null where the method does without.
        method: null is the default for this generator and agent.
        encode_steps, decode_steps: null takes the generator's.
        spacing: of the steps; null takes the generator's.
        previews: look at codes in one evaluation where the search does so; otherwise every look is a full decode.
        batch: scans explained together.
        channels_last: memory layout of the generator's weights.
        precision: "bf16" decodes in bfloat16; inversion stays in single precision.
    """

    agent: str | None = None
    method: Method | None = None
    encode_steps: int | None = None
    decode_steps: int | None = None
    spacing: Literal["uniform", "quadratic", "cubic", "logsnr"] | None = None
    previews: bool = True
    batch: int = 1
    channels_last: bool = False
    precision: Literal["no", "bf16"] = "no"


@dataclass(frozen=True)
class Config:
    """Which models, which ways, on what.

    Args:
        name: the result is written to docs/results/speed_NAME.json.
        manifest: CSV file; labelled rows of `split` are explained.
        generator, classifier: folders or bundled names.
        ways: name -> how the weights are used; the first is what the others are compared with.
        default: which of them is ours.
        search, path_points: as in `ExplainSettings`.
        dilate: pixels by which a mask is widened before a change is called inside.
        scans: of each class, the first that the black box classifies correctly.
        split: test, or val while something is still being chosen.
        data: what the data are, in words.
        resamples: of the bootstrap over patients.
        seed: of the noise floor and the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    generator: str
    classifier: str
    ways: dict[str, Way]
    default: str
    search: StepSearch = field(default_factory=StepSearch)
    path_points: int = 9
    dilate: int = 0
    scans: int = 5
    split: str = "test"
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


class Protocol(nn.Module):
    """A diffusion generator that inverts and decodes as a `Way` says; images "b c h w"."""

    def __init__(self, generator: DiffusionGenerator, way: Way) -> None:
        super().__init__()
        own = generator.sampling
        spaced = replace(own, spacing=way.spacing or own.spacing)
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        generator.model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        self.inverting, self.decoding = (
            DiffusionGenerator(
                generator.model, generator.card, replace(spaced, steps=steps or own.steps), generator.onestep
            )
            for steps in (way.encode_steps, way.decode_steps)
        )
        self.card, self.spatial, self.way = generator.card, generator.spatial, way

    @property
    def forwards(self) -> int:
        """Network evaluations per image so far."""
        return self.inverting.forwards + self.decoding.forwards

    @property
    def previews(self) -> bool:
        """Whether `preview` is something else than the full decode."""
        return self.way.previews and self.decoding.previews

    def encode_semantic(self, image: Tensor) -> Tensor:
        """The semantic code alone."""
        return self.inverting.encode_semantic(image)

    def encode(self, image: Tensor) -> Code:
        """The code with its inverted x_T."""
        return self.inverting.encode(image)

    def decode(self, code: Code) -> Tensor:
        """The full decode."""
        with self._precision(code):
            return self.decoding.decode(code).float()

    def preview(self, code: Code) -> Tensor:
        """One evaluation, or the full decode for a way without previews."""
        if not self.way.previews:
            return self.decode(code)
        with self._precision(code):
            return self.decoding.preview(code).float()

    def fresh_stochastic(self, semantic: Tensor, seed: int) -> Tensor:
        """White noise."""
        return self.decoding.fresh_stochastic(semantic, seed)

    def _precision(self, code: Code) -> AbstractContextManager[Any]:
        half = self.way.precision == "bf16"
        return torch.autocast(code.semantic.device.type, torch.bfloat16) if half else nullcontext()


def chosen_scans(scans: ScanDataset, blackbox: BlackBox, view: Callable[[Tensor], Tensor], most: int) -> list[int]:
    """The first scans of every class that the black box classifies correctly, one a patient."""
    device = next(blackbox.parameters()).device
    with torch.no_grad():
        said = torch.cat([blackbox(view(part.to(device))).argmax(1).cpu() for part in scans.images.split(64)])
    right = (said == scans.labels).nonzero().squeeze(1).tolist()
    chosen = first_of_each_class(scans.labels, right, most, scans.patients)
    if not chosen:
        raise ConfigError("the black box classifies no scan correctly; check labels and class order.")
    return chosen


def figures_of(explanation: Explanation, mask: Tensor | None) -> dict[str, float]:
    """What is measured on one explanation. mask: "s 1 h w", the known cause, or None."""
    change = explanation.difference.cpu()
    return {
        "evaluations": float(explanation.cost.generator_forwards),
        "backwards": float(explanation.cost.generator_backwards),
        "psnr": float(psnr(explanation.reconstruction, explanation.factual).mean()),
        "validity": float(explanation.reachable[0]),
        "cause_precision": np.nan if mask is None else float(cause_precision(change, mask[None])),
    }


def explain_all(
    explainer: Explainer, way: Way, scans: ScanDataset, chosen: list[int], config: Config
) -> dict[str, np.ndarray]:
    """Figures of every chosen scan, "n" each."""
    device = next(explainer.blackbox.parameters()).device
    figures: dict[str, list[float]] = {}
    for start in track(range(0, len(chosen), way.batch), description="explaining"):
        index = chosen[start : start + way.batch]
        images, before = scans.images[index].to(device), time.process_time()
        explanations = explainer.explain_batch(images, seed=config.seed)
        busy = (time.process_time() - before) / len(index)
        for i, explanation in zip(index, explanations, strict=True):
            mask = scans.masks[i] if scans.masks is not None and bool(scans.has_mask[i]) else None
            if mask is not None and config.dilate:
                mask = F.max_pool2d(mask, 2 * config.dilate + 1, stride=1, padding=config.dilate)
            seconds = {"seconds": busy if device.type == "cpu" else explanation.cost.seconds}
            for key, value in {**figures_of(explanation, mask), **seconds}.items():
                figures.setdefault(key, []).append(value)
    return {key: np.asarray(values) for key, values in figures.items()}


def ratio_of(reference: np.ndarray, own: np.ndarray, patients: list[str], config: Config) -> tuple[float, float, float]:
    """The reference's mean by one's own, and its interval over resampled patients."""

    def ratio(index: np.ndarray) -> float:
        return float(reference[index].mean() / own[index].mean())

    low, high = bootstrap_interval(ratio, groups=patients, resamples=config.resamples, seed=config.seed)
    return ratio(np.arange(len(own))), low, high


def main(config: Config) -> list[dict[str, Any]]:
    """Explain in every way; prints and writes the table, returns its rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = load_diffusion(config.generator).to(device)
    blackbox = load_blackbox(config.classifier).to(device)
    preparation = replace(generator.card.preparation, slices=blackbox.card.preparation.slices)
    rows = [row for row in Manifest.read(config.manifest).split(config.split) if row.label is not None]
    scans = ScanDataset(rows, preparation, mask=True)
    chosen = chosen_scans(scans, blackbox, blackbox.view_of(preparation), config.scans)
    patients = [scans.patients[i] for i in chosen]
    table: list[dict[str, Any]] = []
    reference: dict[str, np.ndarray] = {}
    for name, way in config.ways.items():
        settings = ExplainSettings(way.method, config.search, batch=way.batch, path_points=config.path_points)
        agent = None if way.agent is None else load_agent(way.agent).to(device)
        explainer = Explainer(SliceWise(Protocol(generator, way)), blackbox, agent, settings)
        figures = explain_all(explainer, way, scans, chosen, config)
        reference = reference or figures
        row: dict[str, Any] = {
            "method": name,
            "search": type(explainer.method).__name__,
            "data": config.name,
            "split": config.split,
            "n": len(chosen),
            "patients": len(set(patients)),
            "default": name == config.default,
            "steps": f"{explainer.generator.generator.inverting.sampling.steps} + "
            f"{explainer.generator.generator.decoding.sampling.steps}",
            "batch": way.batch,
            **mean_row(figures, patients, resamples=config.resamples, seed=config.seed),
        }
        for key, of in (("evaluations_ratio", "evaluations"), ("time_ratio", "seconds")):
            row[key], row[f"{key}_low"], row[f"{key}_high"] = ratio_of(reference[of], figures[of], patients, config)
        table.append(row)
    write_result(__file__, config, "What an explanation costs, against the reference protocol", table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
