"""Does attention from saliency make the classifier better? (paper 003, Tables 1, 2, 4, 6 and 7)

    python evaluation/acat.py --config configs/evaluation/acat_lidc.yaml

Every row is a method, trained by `train/acat.py` once a run: another seed and another split of the patients. Test
scans of each run's own split. `accuracy`, `sensitivity`, `specificity` (any class but the first against the first) and
`auc` are means over runs; KEY_se is the standard error that the paper gives, the interval Student's t over runs.
`gain` is the accuracy less that of the reference, paired by run; `accuracy_grade_G` is of the scans with a lesion of
size grade G (0: none), where the manifest has the attribute `grade`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acat_runs import BASELINE, AcatRun, over_runs
from common import RESULTS, write_result
from rich.progress import track

from diffcf.data.dataset import ScanDataset
from diffcf.errors import ConfigError
from diffcf.metrics.classification import accuracy, auc, sensitivity, specificity
from diffcf.saliency import CounterfactualSaliency, SaliencyMethod
from diffcf.training.command import run_script
from diffcf.training.guided import logits_of


@dataclass(frozen=True)
class Config:
    """Which runs, and which of their classifiers.

    Args:
        name: the result is written to docs/results/acat_NAME.json.
        manifest: CSV file; labelled rows of each run's own `split` are judged.
        runs: folders that train/acat.py wrote.
        methods: name -> folder in every run; "baseline" is the network that the others start from.
        saliency: where the maps came from in training.
        saliency_of: method -> another source of its maps, where the table compares sources.
        default, reference: names of `methods`: ours, and the one that `gain` is measured against.
        chosen_on: runs by whose validation scans settings were chosen; their patients are left out.
        split: val to choose settings by, test for a table.
        data: what the scans are, in words. seed: of nothing here, for the file. out: folder of the result.
    """

    name: str
    manifest: Path
    runs: list[Path]
    methods: dict[str, str]
    saliency: SaliencyMethod = field(default_factory=CounterfactualSaliency)
    saliency_of: dict[str, SaliencyMethod] = field(default_factory=dict)
    default: str = "ACAT"
    reference: str = BASELINE
    chosen_on: list[Path] = field(default_factory=list)
    split: str = "test"
    data: str = ""
    seed: int = 0
    out: Path = RESULTS


def figures_of_run(probability: np.ndarray, scans: ScanDataset) -> dict[str, float]:
    """The figures of a method in one run, from probabilities "n k"."""
    label, said = scans.labels.numpy(), probability.argmax(1)
    positive = label > 0
    figures = {
        "accuracy": accuracy(said, label),
        "sensitivity": sensitivity(said > 0, positive),
        "specificity": specificity(said > 0, positive),
        "auc": auc(1 - probability[:, 0], positive),
    }
    if "grade" in scans.attribute_names:
        grade = scans.attributes[:, scans.attribute_names.index("grade")].numpy()
        for value in np.unique(grade[~np.isnan(grade)]):
            figures[f"accuracy_grade_{int(value)}"] = accuracy(said[grade == value], label[grade == value])
    return figures


def main(config: Config) -> list[dict[str, Any]]:
    """Judge every method in every run; prints and writes the table, returns its rows."""
    for name in (config.default, config.reference, *config.saliency_of):
        if name not in config.methods:
            raise ConfigError(f"no method {name!r}; there are {', '.join(config.methods)}.")
    judged: dict[str, list[dict[str, float]]] = {name: [] for name in config.methods}
    count = 0
    for folder in track(config.runs, description="runs"):
        run = AcatRun(folder)
        scans = run.scans(run.rows(config.manifest, config.split, chosen_on=config.chosen_on))
        count += len(scans)
        for name, place in config.methods.items():
            model, part = run.part(place, scans, config.saliency_of.get(name, config.saliency))
            logits = logits_of(model, part, torch.device("cpu"))
            judged[name].append(figures_of_run(logits.double().softmax(1).numpy(), scans))
    reference = judged[config.reference]
    rows = []
    for name, runs in judged.items():
        row = {"method": name, "data": config.name, "split": config.split, "n": count, "runs": len(runs)}
        gains = [own["accuracy"] - other["accuracy"] for own, other in zip(runs, reference, strict=True)]
        row |= over_runs("accuracy", [one["accuracy"] for one in runs]) | over_runs("gain", gains)
        for key in dict.fromkeys(key for one in runs for key in one if key != "accuracy"):
            row |= over_runs(key, [one.get(key, float("nan")) for one in runs])
        rows.append(row | {"default": name == config.default})
    write_result(__file__, config, "Classifiers with attention from saliency (paper 003, Tables 1, 2 and 7)", rows)
    return rows


if __name__ == "__main__":
    run_script(main, Config)
