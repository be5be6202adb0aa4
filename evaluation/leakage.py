"""What a linear reader makes of the label from each part of a code, as AUC on held-out patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from common import first_of_each_class
from torch import Tensor

from diffcf.data.dataset import ScanDataset
from diffcf.metrics.classification import auc, bootstrap_interval
from diffcf.metrics.probes import linear_probe


@torch.no_grad()
def leakage(
    generator: Any, sets: Mapping[str, ScanDataset], *, read: int, batch: int, resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """`auc`, `auc_low` and `auc_high` by part of the code: "semantic code", and "x_T" where there is one.

    generator: of scans "b s c h w". sets: "train", which the reader learns from, and "test". read: at most so many
    scans of each class; 0 takes all. The interval resamples patients.
    """
    codes: dict[str, dict[str, Tensor]] = {}
    labels: dict[str, Tensor] = {}
    patients: dict[str, list[str]] = {}
    for split, scans in sets.items():
        index = first_of_each_class(scans.labels, range(len(scans)), read)
        found = [generator.encode(part) for part in scans.images[index].split(batch)]
        codes[split] = {"semantic code": torch.cat([code.semantic.flatten(1) for code in found])}
        x_t = [code.stochastic.flatten(1) for code in found if code.stochastic is not None]
        if x_t:
            codes[split]["x_T"] = torch.cat(x_t)
        labels[split] = scans.labels[index]
        patients[split] = [scans.patients[i] for i in index]
    rows = {}
    truth = labels["test"].numpy()
    for part in codes["train"]:
        scores = linear_probe(codes["train"][part], labels["train"], codes["test"][part]).numpy()

        def figure(index: np.ndarray, scores: np.ndarray = scores) -> float:
            return auc(scores[index], truth[index])

        low, high = bootstrap_interval(figure, groups=patients["test"], resamples=resamples, seed=seed)
        rows[part] = {"n": len(truth), "auc": figure(np.arange(len(truth))), "auc_low": low, "auc_high": high}
    return rows
