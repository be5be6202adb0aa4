"""Realism of edited patches as columns of a table: KID in split form, with intervals by patient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffcf.metrics.realism import split_distances

SPLITS = 16  # random halves of the patients that a figure is the mean of
FEWEST = 8  # patients; with fewer the halves say nothing


def realism_row(features: dict[str, Tensor], patients: Sequence[str], *, seed: int) -> dict[str, float]:
    """`kid`, `kid_reconstruction`, `kid_real` and `kid_excess` = kid - kid_reconstruction, with 95% intervals.

    features: "n d" of the same n patches of the counterfactuals, the reconstructions and the factual images. All are
    compared with the factual patches of the other half of the patients; `kid_real` compares factual patches with
    factual patches, and is 0 but for chance. Intervals: mean +- 1.96 standard errors of the jackknife over patients,
    since the copies that a bootstrap draws are not independent samples to an unbiased kernel distance. Features are
    measured in spreads of the factual patches, so that no scale of the wavelets outweighs the others.
    Fewer than `FEWEST` patients: NaN.
    """
    keys = ("kid", "kid_reconstruction", "kid_real", "kid_excess")
    owners = sorted(set(patients))
    if len(owners) < FEWEST:
        return {f"{key}{end}": math.nan for key in keys for end in ("", "_low", "_high")}
    middle, spread = features["factual"].mean(0), features["factual"].std(0).clamp(min=1e-6)
    features = {name: (values - middle) / spread for name, values in features.items()}
    random = np.random.default_rng(seed)
    halves = [{owner: bool(k % 2) for k, owner in enumerate(random.permutation(owners))} for _ in range(SPLITS)]
    whose = np.array(patients)

    def figures(index: np.ndarray) -> np.ndarray:
        real = features["factual"][index]
        found = []
        for name in ("counterfactual", "reconstruction", "factual"):
            each = []
            for half in halves:
                split = torch.tensor([half[owner] for owner in whose[index]])
                if min(int(split.sum()), int((~split).sum())) > 1:
                    each.append(split_distances(features[name][index], real, split))
            found.append(np.mean(each))
        return np.array([*found, found[0] - found[1]])

    whole = figures(np.arange(len(whose)))
    left_out = np.stack([figures(np.flatnonzero(whose != owner)) for owner in owners])
    error = np.sqrt((len(owners) - 1) / len(owners) * ((left_out - left_out.mean(0)) ** 2).sum(0))
    row = {}
    for key, value, width in zip(keys, whole, 1.96 * error, strict=True):
        row |= {key: float(value), f"{key}_low": float(value - width), f"{key}_high": float(value + width)}
    return row
