"""Questions that a map of changes must stand up to, whatever it looks like.

    python evaluation/sanity.py --config configs/evaluation/sanity_lidc.yaml

`composition`: PSNR of the plain decode after 1 and 3 null interventions. `leakage`: what a linear reader makes of the
label from the semantic code and from x_T, as AUC on held-out patients: an edit of the semantic code cannot reach what
only x_T knows. `stability`: rank correlation of the |difference| maps of the same search from other noise (a fresh x_T,
two seeds). `diversity`: three answers, each searched away from the earlier ones: 1 - cosine of their changes, and the
share that is reached. `randomisation` (Adebayo et al. 2018): |rank correlation| of the map for the trained black box
with that for the same network with its weights drawn anew (mean over `draws`), with that for another trained network,
and, for what chance makes of it, with those of other patients' scans. The search there asks no agent, which has learnt
from the trained one. `own`: the same of what is this scan's own, |partial rank correlation| given the mean of the
trained network's maps of other patients: maps of crops around nodules all lie in the middle. The scores of a random
network hardly vary: they are stretched so that its log-odds have the mean and the spread of the trained one's, and both
are asked for the same. Maps are averaged over `smooth` pixels first: of a
sparse one most values are 0. Intervals resample patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, first_of_each_class, mean_row, write_result
from einops import rearrange
from leakage import leakage
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.classifiers.agent import load_agent
from diffcf.classifiers.blackbox import load_blackbox
from diffcf.counterfactuals import (
    AgentScorer,
    Exemplar,
    ImageScorer,
    Latent,
    Method,
    Shift,
    counterfactual,
    diverse,
)
from diffcf.counterfactuals.exemplar import EXEMPLARS_NAME
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.errors import ConfigError
from diffcf.generators.generator import SliceWise, load_diffusion
from diffcf.generators.space import same_stochastic
from diffcf.metrics.counterfactual import diversity, rank_correlation
from diffcf.metrics.probes import composition
from diffcf.training.command import run_script
from diffcf.types import Candidate, Code, Scorer
from diffcf.weights import part_of


@dataclass(frozen=True)
class Config:
    """Which models, on what.

    Args:
        name: the result is written to docs/results/sanity_NAME.json.
        manifest: CSV file; labelled rows of `split` are looked at, those of train and val train the reader of codes.
        generator, classifier, agent: folders or bundled names.
        other: another trained classifier, for the randomisation check.
        method: null is the default for this agent and generator. without_agent: that of the randomisation check.
        scans: at most so many of each class; 0 takes all.
        read: at most so many scans of each class for the reader of codes; 0 takes all.
        draws: so many networks with random weights.
        smooth: pixels a side over which maps are averaged.
        split: test, or val while something is still being chosen.
        batch: scans at once.
        data: what the data are, in words.
        resamples: of the bootstrap over patients.
        seed: of fresh noise, drawn weights and the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    generator: str
    classifier: str
    agent: str
    other: str
    method: Method | None = None
    without_agent: Method = field(default_factory=Latent)
    scans: int = 10
    read: int = 150
    draws: int = 3
    smooth: int = 5
    split: str = "test"
    batch: int = 16
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


@torch.no_grad()
def redrawn(blackbox: Any, seed: int, images: Tensor) -> Any:
    """The black box with all weights drawn anew, as its layers draw them, and with the statistics that its batch norms
    find in its inputs "n ..." then.

    Errors: ConfigError for weights that no layer draws.
    """
    torch.manual_seed(seed)
    norms = []
    for name, module in blackbox.named_modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif own := [part for part, _ in module.named_parameters(recurse=False)]:
            raise ConfigError(f"{name}.{own[0]}: {type(module).__name__} does not say how its weights are drawn.")
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            norms.append((module, module.momentum))
    blackbox.eval()
    for norm, _ in norms:
        norm.train()
        norm.momentum = None  # the mean over all batches
    for part in images.split(64):
        blackbox(part)
    for norm, momentum in norms:
        norm.momentum = momentum
    return blackbox.eval()


def smoothed(change: Tensor, side: int) -> Tensor:
    """|change| "n s c h w" averaged over side x side pixels, "n ...", away from ties at 0."""
    flat = rearrange(change.abs(), "n s c h w -> (n s) c h w")
    return rearrange(F.avg_pool2d(flat, side, 1, side // 2), "(n s) c h w -> n (s c h w)", s=change.shape[1])


def by_chance(maps: Tensor, patients: Sequence[str]) -> Tensor:
    """Mean |rank correlation| of each map, "n ...", with those of all other patients, "n"; NaN where there are none."""
    others = [[k for k, patient in enumerate(patients) if patient != own] for own in patients]
    alike = [rank_correlation(maps[i].expand_as(maps[k]), maps[k]) for i, k in enumerate(others)]
    return torch.stack([each.abs().nanmean() for each in alike])


def beyond_others(maps: Tensor, others: Tensor, patients: Sequence[str]) -> Tensor:
    """|Partial rank correlation| of `maps` with `others`, both "n ...", given the mean of the maps of all other
    patients, "n"; NaN where there are none, and where one of the two is like that mean to the last rank.

    (r_ab - r_am r_bm) / sqrt((1 - r_am^2) (1 - r_bm^2))
    """
    given = [[k for k, patient in enumerate(patients) if patient != own] for own in patients]
    mean = torch.stack([maps[i].mean(0) for i in given])
    ab, am, bm = (rank_correlation(*pair) for pair in ((maps, others), (maps, mean), (others, mean)))
    left = ((1 - am**2) * (1 - bm**2)).clamp(min=0)
    return torch.where(left > 1e-6, (ab - am * bm) / left.sqrt(), torch.nan).abs()


@torch.no_grad()
def main(config: Config) -> list[dict[str, Any]]:
    """Ask all questions; prints and writes the table, returns its rows."""
    generator = SliceWise(load_diffusion(config.generator))
    blackbox, other = load_blackbox(config.classifier), load_blackbox(config.other)
    agent = AgentScorer(load_agent(config.agent))
    folder = part_of(config.agent, "agent")
    plain = Latent() if generator.spatial else Shift()
    usual = config.method or (Exemplar(folder) if (folder / EXEMPLARS_NAME).is_file() else plain)
    preparation = replace(generator.card.preparation, slices=blackbox.card.preparation.slices)
    manifest = Manifest.read(config.manifest)
    known = [row for name in ("train", "val") for row in manifest.split(name) if row.label is not None]
    asked = [row for row in manifest.split(config.split) if row.label is not None]
    sets = {"train": ScanDataset(known, preparation), "test": ScanDataset(asked, preparation)}
    scans = sets["test"]

    def scorer_of(box: Any) -> ImageScorer:
        return ImageScorer(box, box.view_of(preparation))

    def logits_of(scorer: ImageScorer) -> Tensor:
        views = (scorer.view(part) if scorer.view else part for part in scans.images.split(64))
        return torch.cat([scorer.classifier(view) for view in views])

    decides = scorer_of(blackbox)
    views = decides.view(scans.images) if decides.view else scans.images
    drawn = [redrawn(load_blackbox(config.classifier), config.seed + k, views) for k in range(config.draws)]
    logits = logits_of(decides)
    right = (logits.argmax(1) == scans.labels) & (scans.labels < 2)  # the target is the other one of two
    index = first_of_each_class(scans.labels, right.nonzero().squeeze(1).tolist(), config.scans)
    images, target = scans.images[index], 1 - scans.labels[index]
    patients: Sequence[str] = [scans.patients[i] for i in index]
    common = {"data": config.name, "split": config.split, "default": False}

    def row(name: str, values: dict[str, Any]) -> dict[str, Any]:
        return {
            "method": name,
            "n": len(index),
            **mean_row(values, patients, resamples=config.resamples, seed=config.seed),
        }

    def search(method: Method, scorer: Scorer, seed: int | None = None) -> Any:
        space = generator if seed is None else Refreshed(generator, seed)
        parts = []
        for start in range(0, len(images), config.batch):
            span = slice(start, start + config.batch)
            parts.append(
                counterfactual(
                    images[span],
                    target[span],
                    generator=space,
                    blackbox=scorer,
                    agent=agent if method is usual else None,
                    method=method,
                )
            )
        reached = torch.cat([part.reachable for part in parts]).float().numpy()
        return torch.cat([part.difference for part in parts]), reached

    cycles = composition(images, lambda x: generator.decode(generator.encode(x)).clamp(-1, 1), 3)
    rows = [row(f"composition: {k} cycle(s)", {"psnr": cycles[k - 1].numpy()}) for k in (1, 3)]
    how = {"read": config.read, "batch": config.batch, "resamples": config.resamples, "seed": config.seed}
    rows += [{"method": f"leakage: {part}", **read} for part, read in leakage(generator, sets, **how).items()]

    own, reached = search(usual, decides)
    again = [search(usual, decides, seed=config.seed + k)[0] for k in (1, 2)]
    maps = [smoothed(change, config.smooth) for change in (own, *again)]
    pairs = torch.stack([rank_correlation(maps[a], maps[b]) for a, b in ((0, 1), (0, 2), (1, 2))]).mean(0)
    rows.append(row("stability over x_T", {"stability": pairs.numpy(), "validity": reached}))

    answers = [
        diverse(part, wanted, count=3, method=usual if usual.diverse else Latent(),
                generator=generator, blackbox=decides, agent=agent)
        for part, wanted in zip(images.split(config.batch), target.split(config.batch), strict=True)
    ]  # fmt: skip
    changes = [torch.cat([each[k].difference for each in answers]) for k in range(3)]
    valid = torch.stack([torch.cat([each[k].reachable for each in answers]).float() for k in range(3)]).mean(0)
    rows.append(row("three answers", {"diversity": diversity(changes).numpy(), "validity": valid.numpy()}))

    base = smoothed(search(config.without_agent, decides)[0], config.smooth)

    def compared(name: str, others: list[Scorer]) -> dict[str, Any]:
        found = [search(config.without_agent, each) for each in others]
        maps = [smoothed(change, config.smooth) for change, _ in found]
        alike = torch.stack([rank_correlation(base, each).abs() for each in maps])
        own = torch.stack([beyond_others(base, each, patients) for each in maps])
        valid = np.mean([reached for _, reached in found], axis=0)
        values = {"randomisation": alike.nanmean(0).numpy(), "own": own.nanmean(0).numpy(), "validity": valid}
        return row(f"randomisation: {name}", values)

    rows.append(compared("random weights", [Stretched(box, logits_of(box), logits) for box in map(scorer_of, drawn)]))
    rows.append(compared("another trained network", [scorer_of(other)]))
    rows.append(row("randomisation: other patients", {"randomisation": by_chance(base, patients).numpy()}))
    table = [{**common, **each} for each in rows]
    write_result(__file__, config, "Sanity of codes and maps", table)
    return table


class Stretched:
    """A scorer of two classes whose log-odds are brought to the mean and the spread of another's.

    own, wanted: logits "n 2" of both on the same images.
    """

    def __init__(self, scorer: Scorer, own: Tensor, wanted: Tensor) -> None:
        self.scorer = scorer
        odds, asked = (logits[:, 1] - logits[:, 0] for logits in (own, wanted))
        self.gain = float(asked.std() / odds.std())
        self.offset = float(asked.mean()) - self.gain * float(odds.mean())

    def __call__(self, candidate: Candidate) -> Tensor:
        """Logits "b 2"."""
        logits = self.scorer(candidate)
        odds = self.gain * (logits[:, 1] - logits[:, 0]) + self.offset
        return torch.stack([-odds / 2, odds / 2], 1)


class Refreshed:
    """A generator whose codes get a fresh x_T in place of the inverted one: what a search finds from other noise."""

    def __init__(self, generator: Any, seed: int) -> None:
        self.generator, self.seed = generator, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def encode(self, image: Tensor) -> Code:
        """The image's semantic code with noise from the seed."""
        code = self.generator.encode(image)
        return Code(code.semantic, same_stochastic(self.generator, code.semantic, self.seed).to(image))


if __name__ == "__main__":
    run_script(main, Config)
