"""Does the agent say what the black box says? Table 1 of paper 004, on held-out cases.

    python evaluation/agreement.py --config configs/evaluation/agreement_lidc.yaml

The black box's predictions are the ground truth. Intervals are 95% bootstrap intervals over patients. The last row is a
control that has seen no image: it always answers with the black box's mean probabilities on the training split, and so
with its majority class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_result
from einops import repeat
from torch import Tensor

from diffcf.classifiers.agent import load_agent
from diffcf.classifiers.blackbox import load_blackbox
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.distillation import DistillationSet, agreement, cached_distillation_set, observe, predict
from diffcf.errors import ConfigError
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.metrics.classification import bootstrap_interval
from diffcf.training.command import run_script
from diffcf.weights import content_hash


@dataclass(frozen=True)
class Config:
    """Which agents to compare, with which black box, on what.

    Args:
        name: the result is written to docs/results/agreement_NAME.json.
        manifest: CSV file; its rows of `split` are judged, its "train" rows set the control.
        generator: folder or bundled name.
        classifier: folder or bundled name.
        agents: method -> folder or bundled name of its agent; the first is the shipped default.
        split: test, or val while something is still being chosen.
        positive: the class that sensitivity and specificity are about; the last by default.
        data: what the data are, in words.
        cache: where codes are kept; null keeps none.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    generator: str
    classifier: str
    agents: dict[str, str]
    split: str = "test"
    positive: int = -1
    data: str = ""
    cache: Path | None = Path("runs/cache")
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


def judge(
    student: Tensor, teacher: Tensor, patients: list[str], positive: int, resamples: int, seed: int
) -> dict[str, float]:
    """Figures of Table 1 with KEY_low and KEY_high over resampled patients; logits are "n k"."""
    figures = agreement(student, teacher, positive)
    row = dict(figures)
    for key in figures:
        low, high = bootstrap_interval(
            lambda index, key=key: agreement(student[index], teacher[index], positive)[key],
            groups=patients,
            resamples=resamples,
            seed=seed,
        )
        row |= {f"{key}_low": low, f"{key}_high": high}
    return row


def majority(train: DistillationSet, count: int) -> Tensor:
    """Logits "n k" of the control: the black box's mean probabilities on the training split, whatever the image."""
    mean = train.teacher.logits.double().softmax(1).mean(0)
    return repeat(mean.log(), "k -> n k", n=count)


def main(config: Config) -> list[dict[str, Any]]:
    """Judge every agent and the control; prints and writes the table, returns its rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = SliceWise(load_generator(config.generator))
    generator.to(device)
    blackbox = load_blackbox(config.classifier).to(device)
    preparation = replace(generator.card.preparation, slices=blackbox.card.preparation.slices)
    view = blackbox.view_of(preparation)
    hashes = [content_hash(config.generator, "generator"), content_hash(config.classifier, "classifier")]
    manifest = Manifest.read(config.manifest)
    cases = {split: ScanDataset(manifest, preparation, split=split) for split in ("train", config.split)}
    sets = {
        split: cached_distillation_set(
            scans.images,
            lambda image: generator.encode_semantic(image.to(device)),
            lambda image: observe(blackbox, view(image.to(device))),
            models=hashes,
            folder=config.cache,
        )
        for split, scans in cases.items()
    }
    test = sets[config.split]
    students = {method: load_agent(name) for method, name in config.agents.items()}
    for method, agent in students.items():
        if agent.card is None or [agent.card.generator_hash, agent.card.blackbox_hash] != hashes:
            raise ConfigError(f"agent {method!r} was trained with another generator or black box; see its card.yaml.")
    logits = {method: predict(agent, test) for method, agent in students.items()}
    logits["majority control"] = majority(sets["train"], len(test))
    patients = cases[config.split].patients
    table = [
        {
            "method": method,
            "data": config.name,
            "split": config.split,
            "classifier": blackbox.card.architecture,
            "n": len(test),
            "patients": len(set(patients)),
            "default": method == next(iter(config.agents)),
            **judge(student, test.teacher.logits, patients, config.positive, config.resamples, config.seed),
        }
        for method, student in logits.items()
    ]
    title = "Agreement of the agent with its black box on held-out cases (paper 004, Table 1)"
    write_result(__file__, config, title, table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
