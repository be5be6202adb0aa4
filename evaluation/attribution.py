"""Which attributes caused the label, case by case (paper 001, section 4.3 and appendix C.5).

    python evaluation/attribution.py --config configs/evaluation/attribution_lidc.yaml

The probability of the positive class by binary attributes is fitted to the training scans: a table smoothed towards a
logistic model that counts as so many cases a cell as the validation scans find likeliest (`strength`). Attributes that
run against the label there are turned round (`flipped`). Held-out cases are then attributed by CCCE. Three tables:

NAME, by attribute, 1 as `means` says unless `flipped`: the share of held-out cases in whose set it is (`causal`), among
those of the positive class (`causal_1`) and of the other (`causal_0`), and of those that have it as it is coded
(`present`). Of monotonicity over the training scans, before anything is turned round: `effect`, by how much the
attribute raises the probability on average over cells; in how many `cells` that can be compared it `falls`, in how many
of those beyond sampling error (`violated`), and by how much at `worst`. `effect_here` is the effect in the held-out
cases. `model_falls` is the share of cells in which the fitted table falls after the turning; CCCE assumes that it never
does.

NAME_edges: lines of the PC skeleton over attributes and label in the training scans (`found`), and whether they are
there among the held-out cases too (`found_here`), which are fewer; drawn to FIGURES/attribution_NAME.png.

NAME_truth, phantoms only: the label's own noise is known, so what would have flipped it is known case by case. An
attribute that is turned goes to the end of its range. `found`: the chosen set is one of the smallest (of at most three
attributes) that flip the label; `sufficient`: it flips it; `size`: attributes in it; `n`: cases in which some set does.
Nodules `as drawn` have attributes by degrees, of which the binary ones tell one bit, and a hidden aggressiveness
behind all of them; in those of `two levels` every attribute lies at the end of its range on its side of the middle, so
that the assumptions of CCCE hold; `odds x K` sharpens the table from attributes to label. `known` is the true table,
not fitted: what it finds by the rule `likeliest` is, up to chance, the most that attributes and label can tell; the
rest is noise. The default tolerance and the logistic model's penalty were settled after a look at such phantoms, some
of this set among them; the tests hold both against another set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import RESULTS, mean_row, write_result
from einops import rearrange

from diffcf.alignment.attributes import coded_attributes
from diffcf.alignment.attribution import (
    LogisticModel,
    Monotonicity,
    ProbabilityModel,
    TableModel,
    attribute,
    ccce,
    effects,
    flip,
    likeliest,
    monotonicity,
    smallest,
    subsets,
)
from diffcf.alignment.graph import draw, edges, skeleton
from diffcf.data.lidc_attributes import CODINGS, LIDC_ATTRIBUTES
from diffcf.data.manifest import Manifest, ManifestRow, Split
from diffcf.data.phantom.folder import SEEDS
from diffcf.data.phantom.labels import MALIGNANCY
from diffcf.data.phantom.nodule import DRAWN, nodule_draw
from diffcf.errors import ConfigError
from diffcf.training.command import run_script

PHANTOM = tuple(MALIGNANCY.terms)  # attributes that the phantom's label depends on
WEIGHT, CENTRE = (np.array([term[k] for term in MALIGNANCY.terms.values()]) for k in (0, 1))
LOW, HIGH = (np.array([DRAWN[name][k] for name in PHANTOM]) for k in (3, 4))


@dataclass(frozen=True)
class Config:
    """Whose labels.

    Args:
        name: of the results, docs/results/attribution_NAME.json and the two with more to their names.
        manifest: CSV file with the attributes; rows without a label or one of the attributes are left out.
        coding: how ratings become 0 and 1: LIDC's as in paper 000, or a phantom's at the middle of what is drawn.
        without: attributes that are left out.
        phantom_seed: of the set of phantom nodules that the manifest was written as; None without known truth.
        split: whose labels are attributed; fitted is on train, the smoothing chosen on val.
        strengths: to choose from.
        tolerances: of the smallest set near the highest score; the first is the one of NAME.
        odds: how sharp the tables of NAME_truth are, 1 as the phantom's own.
        alpha: level of the tests of monotonicity and of the PC algorithm.
        figures: folder of the picture.
        data: what the data are, in words.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        out: folder of the results.
    """

    name: str
    manifest: Path
    coding: Literal["lidc", "middle"] = "lidc"
    without: list[str] = field(default_factory=list)
    phantom_seed: int | None = None
    split: Split = "test"
    strengths: list[float] = field(default_factory=lambda: [1.0, 3.0, 10.0, 30.0, 100.0, 300.0])
    tolerances: list[float] = field(default_factory=lambda: [0.1, 0.05, 0.2])
    odds: list[float] = field(default_factory=lambda: [1.0, 3.0, 10.0])
    alpha: float = 0.01
    figures: Path = RESULTS.parent / "figures"
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


@dataclass(frozen=True, eq=False)
class Cases:
    """Labelled and fully rated cases of a split. coded: "n p" of 0 and 1, labels: "n", patients: "n".

    values and noise: of phantoms, attributes by degrees "n p" and the labels' noise "n".
    """

    coded: np.ndarray
    labels: np.ndarray
    patients: list[str]
    values: np.ndarray
    noise: np.ndarray


def names_of(config: Config) -> tuple[str, ...]:
    """The attributes. Errors: ConfigError where one that is left out does not exist, or all are."""
    every = LIDC_ATTRIBUTES if config.coding == "lidc" else PHANTOM
    names = tuple(name for name in every if name not in config.without)
    if not names or not set(config.without) <= set(every):
        raise ConfigError(f"without {', '.join(config.without)}: expected some, not all, of {', '.join(every)}.")
    return names


def load(manifest: Manifest, split: Split, config: Config) -> Cases:
    """The cases of a split. Errors: ConfigError where there are none, or not those of the phantom set that is named."""
    names, rows = names_of(config), manifest.split(split)
    rated = [[row.attributes.get(name) for name in names] for row in rows]
    values = np.array(rated, dtype=np.float64).reshape(len(rows), len(names))
    middle = {name: DRAWN[name][0] for name in names} if config.coding == "middle" else None
    coded = coded_attributes(rows, names, "lidc" if config.coding == "lidc" else "binary", middle)
    kept = [i for i, row in enumerate(rows) if row.label in (0, 1) and not np.isnan(coded[i]).any()]
    if not kept:
        raise ConfigError(f"{manifest.source}: no case of {split} has a label of 0 or 1 and all of {', '.join(names)}.")
    rows, values = [rows[i] for i in kept], values[kept]
    labels = np.array([row.label for row in rows])
    noise = np.full(len(rows), np.nan)
    if config.phantom_seed is not None:
        noise = noise_of(rows, config.phantom_seed)
        if (abs(values - [scene_values(row, config.phantom_seed) for row in rows]) > 1e-9).any() or (
            labels != (noise < disease(values))
        ).any():
            raise ConfigError(
                f"{manifest.source}: not the nodules of the phantom set with seed {config.phantom_seed}, labelled by "
                "their disease; its own noise is needed for the truth. Leave phantom_seed out for other data."
            )
    return Cases(coded[kept].astype(np.int64), labels, [row.patient for row in rows], values, noise)


def noise_of(rows: Sequence[ManifestRow], seed: int) -> np.ndarray:
    """The noise of phantoms' labels, "n"."""
    return np.array([nodule_draw(SEEDS * (seed + 1) + row.index)[1] for row in rows])


def scene_values(row: ManifestRow, seed: int) -> list[float]:
    """The attributes of a phantom, drawn again."""
    drawn, _ = nodule_draw(SEEDS * (seed + 1) + row.index)
    return [drawn[name] for name in PHANTOM]


def disease(values: np.ndarray, odds: float = 1.0) -> np.ndarray:
    """P(malignant) of phantoms' attributes "... p" by degrees."""
    return 0.5 * (1 + np.tanh(odds * (MALIGNANCY.intercept + (values - CENTRE) @ WEIGHT) / 2))


def ends(coded: np.ndarray) -> np.ndarray:
    """Attributes by degrees "... p": every one at the end of its range on its side."""
    return np.where(coded == 1, HIGH, LOW)


def chosen_table(train: Cases, val: Cases, against: Sequence[bool], strengths: Sequence[float]) -> TableModel:
    """The table whose strength the validation scans find likeliest."""
    tables = [TableModel.fit(flip(train.coded, against), train.labels, strength) for strength in strengths]

    def likelihood(table: TableModel) -> float:
        p = table(flip(val.coded, against))
        return float(np.log(np.where(val.labels == 1, p, 1 - p)).sum())

    return max(tables, key=likelihood)


def turned_round(cases: Cases, alpha: float) -> tuple[list[Monotonicity], list[bool]]:
    """What is known of monotonicity, and which attributes run against the label."""
    found = monotonicity(cases.coded, cases.labels, alpha)
    return found, [one.against for one in found]


def attribute_rows(train: Cases, val: Cases, here: Cases, config: Config) -> list[dict[str, Any]]:
    """How often each attribute is causal, and whether the label rises with it."""
    found, against = turned_round(train, config.alpha)
    model = chosen_table(train, val, against, config.strengths)
    turned = flip(here.coded, against)
    causal = attribute(model, turned, here.labels, tolerance=config.tolerances[0]).causal.astype(float)
    falls = (effects(model, len(found)) < 0).mean(1)
    own = monotonicity(here.coded, here.labels, config.alpha)
    rows = []
    for j, (name, one) in enumerate(zip(names_of(config), found, strict=True)):
        means = CODINGS[name].one if config.coding == "lidc" else "above its middle"
        values = {
            "causal": causal[:, j],
            "causal_1": np.where(here.labels == 1, causal[:, j], np.nan),
            "causal_0": np.where(here.labels == 0, causal[:, j], np.nan),
            "present": here.coded[:, j].astype(float),
        }
        rows.append(
            {"attribute": name, "means": means, "flipped": one.against, "split": config.split, "n": len(here.labels)}
            | mean_row(values, here.patients, resamples=config.resamples, seed=config.seed)
            | {"effect": one.effect, "effect_here": own[j].effect, "cells": one.cells, "falls": one.falls}
            | {"violated": one.violated, "worst": one.worst, "model_falls": falls[j], "strength": model.strength}
        )
    return rows


def edge_rows(train: Cases, here: Cases, config: Config) -> list[dict[str, Any]]:
    """Lines of the skeleton in either split; draws that of the training scans."""
    names = (*names_of(config), "label")
    own, other = (skeleton(cases.coded, cases.labels, config.alpha) for cases in (train, here))
    draw(own, names, config.figures / f"attribution_{config.name}.png", f"PC skeleton, alpha {config.alpha:g}")
    found, found_here = edges(own, names), edges(other, names)
    numbers = {"n": len(here.labels), "n_train": len(train.labels), "alpha": config.alpha}
    return [
        {"between": first, "and": second, "split": config.split, **numbers}
        | {"found": (first, second) in found, "found_here": (first, second) in found_here}
        for first, second in edges(own | other, names)
    ]


@dataclass(frozen=True, eq=False)
class World:
    """Phantom nodules whose structure is known: how they are called, and three splits of them."""

    nodules: str
    odds: float
    levels: bool
    train: Cases
    val: Cases
    here: Cases


def worlds(train: Cases, val: Cases, here: Cases, odds: Sequence[float]) -> list[World]:
    """As drawn; and with two levels, the labels drawn again with the same noise from tables of several sharpnesses."""

    def at_ends(cases: Cases, sharp: float) -> Cases:
        values = ends(cases.coded)
        return replace(cases, values=values, labels=(cases.noise < disease(values, sharp)).astype(int))

    found = [World("as drawn", 1.0, False, train, val, here)]
    for sharp in odds:
        splits = [at_ends(cases, sharp) for cases in (train, val, here)]
        found.append(World("two levels" if sharp == 1 else f"two levels, odds x {sharp:g}", sharp, True, *splits))
    return found


def flipping(world: World, against: Sequence[bool], sets: np.ndarray) -> np.ndarray:
    """Does the label flip, bool "n k", when the attributes of a set that speak for it are turned, the noise held?"""
    here = world.here
    turned = flip(here.coded, against)
    other = np.where(sets[None], (1 - here.labels)[:, None, None], turned[:, None, :])
    far = ends(flip(rearrange(other, "n k p -> (n k) p"), against))
    far = rearrange(far, "(n k) p -> n k p", k=len(sets))
    values = np.where(other == turned[:, None, :], here.values[:, None, :], far)
    return (here.noise[:, None] < disease(values, world.odds)) != (here.labels == 1)[:, None]


def truth_rows(world: World, config: Config) -> list[dict[str, Any]]:
    """What is found of the smallest sufficient sets of one world."""
    here, against = world.here, turned_round(world.train, config.alpha)[1]
    sets = subsets(len(PHANTOM))
    flips = flipping(world, against, sets)
    some = flips.any(1)
    size = np.where(flips, sets.sum(1), len(PHANTOM) + 1)
    least = flips & (size == size.min(1, keepdims=True))
    turned = flip(here.coded, against)
    models: dict[str, ProbabilityModel] = {
        "table": chosen_table(world.train, world.val, against, config.strengths),
        "logistic": LogisticModel.fit(flip(world.train.coded, against), world.train.labels),
    }
    if world.levels:
        models["known"] = lambda a: disease(ends(flip(a, against)), world.odds)
    rows = []
    for name, model in models.items():
        scores = ccce(model, turned, here.labels, sets)
        picks: dict[tuple[str, float | None], np.ndarray]
        picks = {("smallest", tolerance): smallest(scores, sets, tolerance) for tolerance in config.tolerances}
        picks["likeliest", None] = likeliest(scores, sets)
        for (rule, tolerance), pick in picks.items():
            each = np.arange(len(pick))
            values = {
                "found": np.where(some, least[each, pick], np.nan),
                "sufficient": np.where(some, flips[each, pick], np.nan),
                "size": np.where(some, sets[pick].sum(1), np.nan),
            }
            rows.append(
                {"nodules": world.nodules, "model": name, "rule": rule, "tolerance": tolerance}
                | {"split": config.split, "n": int(some.sum())}
                | mean_row(values, here.patients, resamples=config.resamples, seed=config.seed)
            )
    return rows


def main(config: Config) -> list[dict[str, Any]]:
    """Fit, attribute, compare; write the results and the picture, and return all rows."""
    if config.phantom_seed is not None and (config.coding != "middle" or config.without):
        raise ConfigError("phantom_seed is for phantom nodules by all of their attributes; their coding is 'middle'.")
    manifest = Manifest.read(config.manifest)
    train, val, here = (load(manifest, split, config) for split in ("train", "val", config.split))
    tables = [
        ("", "Which attributes caused the label (paper 001, section 4.3)", attribute_rows(train, val, here, config)),
        ("_edges", "Attributes and label by the PC algorithm (paper 001, Fig. 8)", edge_rows(train, here, config)),
    ]
    if config.phantom_seed is not None:
        rows = [row for world in worlds(train, val, here, config.odds) for row in truth_rows(world, config)]
        tables.append(("_truth", "What is found of the true causes of phantoms' labels", rows))
    for more, title, rows in tables:
        if rows:
            write_result(__file__, replace(config, name=config.name + more), title, rows)
    return [row for *_, rows in tables for row in rows]


if __name__ == "__main__":
    run_script(main, Config)
