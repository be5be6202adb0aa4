"""Write docs/results/README.md: every result as a table, from the JSON files beside it.

    python evaluation/tables.py

Nothing in it is written by hand, and the tests fail where it is not what the files say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from common import RESULTS, cell, columns_of

from diffcf.training.command import run_script

INTRODUCTION = """# Results
Written by `python evaluation/tables.py` from the JSON files in this folder, which the scripts in `evaluation/` write.
Means with 95% bootstrap intervals over patients, or over runs where the script says so, on patients that no model has
seen and nothing was chosen by. Where all cases are 0, or all 1, the bootstrap has no width; the true share of n cases
may then be as far off as 1 - 0.025^(1/n), 0.26 of 12 and 0.14 of 24. What the columns mean stands at the top of each
script. Of the widest tables the chief columns are shown; the files have all.
"""
CHIEF = {  # of scripts with more columns than a page can show
    "counterfactuals": (
        "method", "search", "direction", "n", "validity", "decision_validity", "cause_precision", "cause_recall",
        "cause_area", "proximity_l1", "sparsity", "cout", "identity", "kid_excess",
        "transfer_validity", "survival_validity", "reader", "plausible", "trusted", "evaluations", "seconds",
    ),
    "alignment": (
        "method", "n", "seeds", "accuracy", "reversal_accuracy", "reversal_gap", "accuracy_gap", "auc",
        "saliency_precision", "gradcam_precision", "hirescam_precision", "occlusion_precision", "chance",
        "relevance_mass", "pointing", "roi_precision", "validity", "decoded_roi", "decoded_validity",
    ),
    "acat": (
        "method", "n", "runs", "accuracy", "gain", "auc", "sensitivity", "specificity",
        *(f"accuracy_grade_{grade}" for grade in range(5)),
    ),
    "activations": (
        "layer", "runs", "baseline_original", "attention_original", "ratio_original", "baseline_noised",
        "attention_noised", "ratio_noised",
    ),
    "localisation": (
        "method", "n", "runs", "dice", "dice_gain", "dice_smoothed", "iou", "class_averaged_dice", "class_averaged_iou",
        "pointing", "pointing_gain", "hits", "hits_gain", "hits_small", "hits_small_gain", "hits_smoothed", "chance",
    ),
    "throughput": (
        "method", "parameters", "throughput", "throughput_ratio", "matrix_share", "memory_mb", "gflop", "share_inputs",
        "share_forward", "share_backward", "share_clip", "share_optimiser", "share_average", "share_log", "seconds",
        "images", "denoising", "psnr_random",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Where.

    Args:
        folder: of the JSON files; README.md is written there.
    """

    folder: Path = RESULTS


def markdown(written: dict[str, Any], script: str = "") -> Iterator[str]:
    """The lines of one result of a script."""
    rows, device = written["rows"], written["device"]
    same, columns = columns_of(rows)
    columns = [key for key in columns if key in CHIEF.get(script, columns)]
    made = f"Seed {written['seed']}, commit {written['commit'][:12]}, on {device['gpu'] or device['cpu']}."
    yield f"{written['data']}." if written["data"] else ""
    yield f"`{written['command']}`  "
    yield " ".join([made, *(f"{key}: {value}." for key, value in same.items() if key != "data")])
    yield ""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(cell(row, key) for key in columns)} |"


def page(folder: Path) -> str:
    """The whole page: a section for each script, a subsection for each of its results."""
    lines = [INTRODUCTION]
    files = sorted(folder.glob("*_*.json"))
    for script, of_script in groupby(files, key=lambda file: file.stem.partition("_")[0]):
        for place, file in enumerate(of_script):
            written = json.loads(file.read_text(encoding="utf-8"))
            if not place:
                lines += [f"## {script.capitalize()}", f"{written['table']}.", ""]
            lines += [f"### {file.stem.partition('_')[2].replace('_', ' ')}", *markdown(written, script), ""]
    return "\n".join(lines)


def main(config: Config) -> Path:
    """Write the page; returns its path."""
    path = config.folder / "README.md"
    path.write_text(page(config.folder), encoding="utf-8")
    return path


if __name__ == "__main__":
    run_script(main, Config)
