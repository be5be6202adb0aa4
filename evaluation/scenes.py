"""Phantoms asked in attribute space without a generator: each scene is drawn anew with other attributes.

One changed at a time, it is what truly turns a black box's decision, for the search in a generator's code to be held
against; with all amounts that a search found, it is whether the answer is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from asking import Asked, Query
from einops import rearrange

from diffcf.cards import Preparation
from diffcf.data.manifest import ManifestRow
from diffcf.data.phantom.folder import SEEDS, PhantomSet
from diffcf.data.phantom.nodule import DRAWN, nodule_scene
from diffcf.data.phantom.shortcut import add_shortcut
from diffcf.errors import ConfigError
from diffcf.scans import prepare

VALUES = 9  # tried over the range of an attribute
MARK = "shortcut"  # the attribute that is the class the mark points to


def drawn(wanted: PhantomSet, index: int, attributes: Mapping[str, float], preparation: Preparation) -> torch.Tensor:
    """Nodule `index` of a set with these attributes, and where there is a mark `MARK` among them, "s 1 h w" in [-1, 1].

    Errors: ConfigError as `nodule_scene`.
    """
    seed = SEEDS * (wanted.seed + 1) + index
    shape = {name: value for name, value in attributes.items() if name in DRAWN}
    scan = nodule_scene(seed, wanted.size, attributes=shape, imbalance=wanted.imbalance).scan
    if wanted.shortcut is not None:
        mark = replace(wanted.shortcut, correlation=1.0)  # it points to what is said
        scan = replace(scan, volume=add_shortcut(scan.volume, round(attributes[MARK]), mark, seed)[0])
    return rearrange(torch.from_numpy(prepare(scan, preparation).unit()), "s h w -> s 1 h w")


def _index(row: ManifestRow) -> int:
    return int(row.path.name.split(".")[0])


def _own(row: ManifestRow) -> dict[str, float]:
    return {name: value for name, value in row.attributes.items() if value is not None}


def _within(name: str, value: float) -> float:
    """As a scene takes it: from the range of the attribute, of a mark 0 or 1."""
    if name == MARK:
        return float(value >= 0.5)
    return min(max(value, DRAWN[name][3]), DRAWN[name][4])


@torch.no_grad()
def confirmed(asked: Asked, wanted: PhantomSet, queries: Sequence[Query]) -> list[float]:
    """For every chosen scan 1 where the scene, drawn anew with all amounts of its query, is given another class, 0
    where it is not, and NaN where the query was not reached."""
    card, answers = asked.card(), []
    preparation, device = asked.explainer.preparation, next(asked.explainer.blackbox.parameters()).device
    for i, query in zip(asked.chosen, queries, strict=True):
        own = _own(asked.rows[i])
        for name, spread in zip(card.names, card.spread, strict=True):
            if query.change.get(name):
                own[name] = _within(name, own[name] + query.change[name] * spread)
        view = asked.scorer.view(drawn(wanted, _index(asked.rows[i]), own, preparation)[None].to(device))  # type: ignore[misc]
        turned = int(asked.explainer.blackbox(view).argmax(1)) != query.label
        answers.append(float(turned) if query.reached else float("nan"))
    return answers


@torch.no_grad()
def drawn_anew(asked: Asked, wanted: PhantomSet, frozen: tuple[str, ...] = ()) -> list[Query]:
    """For every chosen scan the one attribute whose least change turns the decision, by how much, or that none does.

    Errors: ConfigError for a set of other scenes than nodules, with other attributes than the search's, or that is not
    the manifest's, and for more than two classes.
    """
    card, queries = asked.card(frozen), []
    known = {*DRAWN, MARK} if wanted.shortcut is not None else set(DRAWN)
    if wanted.kind != "nodule" or not set(card.names) <= known:
        raise ConfigError(
            f"scenes of the kind {wanted.kind} are asked about {', '.join(card.names)}; expected nodules, and of "
            f"{', '.join(sorted(known))}."
        )
    if len(asked.classes) != 2:
        raise ConfigError(f"{len(asked.classes)} classes; scenes are drawn anew for two.")
    preparation, device = asked.explainer.preparation, next(asked.explainer.blackbox.parameters()).device
    for i in asked.chosen:
        row, label = asked.rows[i], int(asked.scans.labels[i])
        index, own = _index(row), _own(row)
        if not torch.allclose(drawn(wanted, index, own, preparation), asked.scans.images[i], atol=1e-2):
            raise ConfigError(
                f"{row.path} is not scene {index} of the set that `scenes` says; give the set's own settings."
            )
        changes, images = [], []
        for name, mean, spread, low, high in zip(card.names, card.mean, card.spread, card.low, card.high, strict=True):
            values = [0.0, 1.0] if name == MARK else (mean + spread * torch.linspace(low, high, VALUES)).tolist()
            for value in values:
                value = _within(name, value)  # rounding may lead a little out of the range
                changes.append((name, (value - own[name]) / spread))
                images.append(drawn(wanted, index, {**own, name: value}, preparation))
        views = asked.scorer.view(torch.stack(images).to(device))  # type: ignore[misc]
        turned = asked.explainer.blackbox(views).softmax(1)[:, 1 - label] >= asked.question.search.probability
        found = [change for change, there in zip(changes, turned.tolist(), strict=True) if there]
        change = dict.fromkeys(card.names, 0.0)
        if found:
            name, by = min(found, key=lambda one: abs(one[1]))
            change[name] = by
        queries.append(Query(label, asked.scans.patients[i], change, bool(found)))
    return queries
