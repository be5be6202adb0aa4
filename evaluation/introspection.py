"""What does a black box go by, in attributes that people have words for? (paper 002, section 4.2)

    python evaluation/introspection.py --config configs/evaluation/introspection_phantom.yaml

Held-out scans that the black box classifies correctly are pushed to the other class over amounts of attributes, all of
them free and then with the planted one frozen, as the paper freezes young/old. Three tables:

NAME, by the search and, for phantoms, by drawing each scene anew with one attribute changed, the least change that
turns the decision, which is what truly does where one attribute is enough (`by`): `validity`, the share that gets the
asked score; `top`, the share of queries that do with the planted attribute as the most changed one, in standard
deviations, and `top3`, among the three; of the queries that do: `first` and `second`, the attributes that are most
often the most changed one, `changed`, how many change, `distance`, by how much together, and, for phantoms,
`confirmed`, the share of the search's answers with which the scene itself, drawn anew with all its amounts, turns the
decision.

NAME_frequency, by direction and attribute (Fig. 7), of the queries that are reached: the share in which it changes at
all (`changes`), more of it is put in (`up`) or less (`down`), the mean change (`spreads`), and by how much the two
classes differ in it over the training scans (`in_data`).

NAME_typicality (Fig. 8): a typical case of its class is near to its prototype, the point where the black box is `sure`
of it, and far from its criticism, the point where the black box takes it for the other class. Rank correlations of
these distances (one that is not reached is the longest) with the probability of its class that the scene was made
from: `prototype`, `criticism`, and `typicality` = (criticism - prototype) / (criticism + prototype); `score` is that of
the black box's own score, which has seen the image only.

The paper's distance is of the images, ours of the attributes (`diffcf.counterfactuals.attributes`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pictures
from asking import Asked, Case, Query, Question
from common import RESULTS, mean_row, write_result
from scenes import confirmed, drawn_anew
from scipy.stats import rankdata, spearmanr

from diffcf.metrics.classification import bootstrap_interval
from diffcf.training.command import run_script


@dataclass(frozen=True)
class Config:
    """Which black boxes, over which attributes.

    Args:
        name: of the results, docs/results/introspection_NAME.json and the two with more to their names.
        how: everybody is asked.
        cases: name -> a black box.
        pictures: so many queries of every case are drawn, to FIGURES/introspection_NAME.png; 0 draws nothing.
        figures: folder of the pictures.
        data: what the data are, in words.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        out: folder of the results.
    """

    name: str
    how: Question
    cases: dict[str, Case]
    pictures: int = 3
    figures: Path = RESULTS.parent / "figures"
    data: str = ""
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


def bias_row(
    queries: Sequence[Query], planted: str | None, config: Config, more: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Any]:
    """How often the planted attribute is the most changed one, which ones are, and more figures of the queries."""
    first = [query.order[0] for query in queries if query.reached and query.order]
    often = [f"{name} ({count / len(first):.2f})" for name, count in Counter(first).most_common(2)]
    orders = [query.order if query.reached else [] for query in queries]
    values = {
        "validity": [float(query.reached) for query in queries],
        "top": [np.nan if planted is None else float(order[:1] == [planted]) for order in orders],
        "top3": [np.nan if planted is None else float(planted in order[:3]) for order in orders],
        "changed": [float(len(query.order)) if query.reached else np.nan for query in queries],
        "distance": [query.distance if query.reached else np.nan for query in queries],
    }
    patients = [query.patient for query in queries]
    row = dict(zip(("first", "second"), [*often, "none", "none"], strict=False))
    return {**row, **mean_row({**values, **(more or {})}, patients, resamples=config.resamples, seed=config.seed)}


def in_data(asked: Asked, name: str, spread: float, label: int, other: int) -> float:
    """By how many spreads the training scans of class `other` have more of an attribute than those of `label`."""
    rated = [(row.label, row.attributes.get(name)) for row in asked.manifest.split("train")]
    means = [np.mean([value for k, value in rated if value is not None and k == wanted]) for wanted in (label, other)]
    return float(means[1] - means[0]) / spread


def frequency_rows(asked: Asked, queries: Sequence[Query], config: Config) -> list[dict[str, Any]]:
    """How often every attribute changes, in which direction, by direction of the decision."""
    card, rows = asked.card(), []
    for label, start in enumerate(asked.classes):
        mine = [query for query in queries if query.label == label]
        if len(asked.classes) != 2 or not any(query.reached for query in mine):
            continue
        for name, spread in zip(card.names, card.spread, strict=True):
            change = [query.change[name] for query in mine if query.reached]
            values = {
                "changes": [float(by != 0) for by in change],
                "up": [float(by > 0) for by in change],
                "down": [float(by < 0) for by in change],
                "spreads": change,
            }
            row: dict[str, Any] = {"direction": f"{start} to {asked.classes[1 - label]}", "attribute": name}
            row |= {"n": len(change), "in_data": in_data(asked, name, spread, label, 1 - label)}
            patients = [query.patient for query in mine if query.reached]
            rows.append({**row, **mean_row(values, patients, resamples=config.resamples, seed=config.seed)})
    return rows


def typicality_of(prototypes: Sequence[Query], criticisms: Sequence[Query]) -> dict[str, np.ndarray]:
    """Distances of every case, infinite where nothing was reached, and (c - p) / (c + p), from -1 to 1."""
    near, far = (
        np.array([query.distance if query.reached else np.inf for query in queries])
        for queries in (prototypes, criticisms)
    )
    longest = np.max([one[np.isfinite(one)].max(initial=1.0) for one in (near, far)])
    p, c = np.minimum(near, longest), np.minimum(far, longest)
    return {"prototype": near, "criticism": far, "typicality": (c - p) / np.maximum(c + p, 1e-9)}


def typicality_row(
    asked: Asked, prototypes: Sequence[Query], criticisms: Sequence[Query], config: Config
) -> dict[str, Any]:
    """Rank correlations with what the scenes were made from."""
    assert asked.case.truth is not None
    column = asked.scans.attribute_names.index(asked.case.truth)
    truth, label = asked.scans.attributes[asked.chosen, column].numpy(), asked.scans.labels[asked.chosen].numpy()
    own = np.where(label == len(asked.classes) - 1, truth, 1 - truth)
    score = asked.probability[asked.chosen, label].numpy()
    patients = [query.patient for query in criticisms]
    row: dict[str, Any] = {"sure": config.how.sure}
    row["prototypes_reached"] = float(np.mean([query.reached for query in prototypes]))
    row["criticisms_reached"] = float(np.mean([query.reached for query in criticisms]))
    for name, values in {**typicality_of(prototypes, criticisms), "score": score}.items():

        def rank(index: np.ndarray, values: np.ndarray = values) -> float:
            if not np.ptp(rankdata(values[index])) or not np.ptp(own[index]):
                return float("nan")
            return float(np.asarray(spearmanr(values[index], own[index]))[0])

        low, high = bootstrap_interval(rank, groups=patients, resamples=config.resamples, seed=config.seed)
        row |= {name: rank(np.arange(len(own))), f"{name}_low": low, f"{name}_high": high}
    return row


def main(config: Config) -> list[dict[str, Any]]:
    """Ask every case; prints and writes the tables, returns all rows."""
    bias: list[dict[str, Any]] = []
    frequency: list[dict[str, Any]] = []
    typicality: list[dict[str, Any]] = []
    drawn: list[pictures.Strip] = []
    for name, case in config.cases.items():
        asked = Asked(case, config.how)
        common = {"method": name, "data": config.name, "split": config.how.split, "default": False}
        common |= {"classifier": asked.explainer.blackbox.card.architecture, "planted": case.planted or "none"}
        count = {"n": len(asked.chosen), "patients": len({asked.scans.patients[i] for i in asked.chosen})}
        free = asked.queries()
        frequency += [{**common, **row, "default": False} for row in frequency_rows(asked, free, config)]
        held: list[tuple[str, ...]] = [()] if case.planted is None else [(), (case.planted,)]
        for frozen in held:
            top, said = (None, frozen[0]) if frozen else (case.planted, "none")
            answers = {"search": asked.queries(frozen) if frozen else free}
            drawn_with: dict[str, dict[str, list[float]]] = {}
            if case.scenes is not None:
                drawn_with["search"] = {"confirmed": confirmed(asked, case.scenes, answers["search"])}
                answers["scenes drawn anew"] = drawn_anew(asked, case.scenes, frozen)
            for by, queries in answers.items():
                row = {
                    **common,
                    "by": by,
                    "frozen": said,
                    **count,
                    **bias_row(queries, top, config, drawn_with.get(by)),
                }
                bias.append({**row, "default": not bias})
        if case.truth is not None:
            prototypes = asked.queries(same=True)
            typicality.append({**common, **count, **typicality_row(asked, prototypes, free, config)})
            order = np.argsort(typicality_of(prototypes, free)["typicality"])
            ends = {"typical": asked.chosen[order[-1]], "untypical": asked.chosen[order[0]]}
            for word, index in ends.items() if config.pictures else ():
                drawn += pictures.strips(asked, [index], f"{word}, its criticism")
                drawn += pictures.strips(asked, [index], f"{word}, its prototype", same=True)
        if config.pictures:
            shown = np.linspace(0, len(asked.chosen) - 1, config.pictures).round().astype(int)
            drawn += pictures.strips(asked, [asked.chosen[i] for i in shown], name)
    for more, title, rows in (
        ("", "What turns a black box's decision, in attributes (paper 002, section 4.2)", bias),
        ("_frequency", "Which attributes change, by direction (paper 002, Fig. 7)", frequency),
        ("_typicality", "Prototypes and criticisms of typical and of untypical cases (paper 002, Fig. 8)", typicality),
    ):
        if rows:
            write_result(__file__, replace(config, name=config.name + more), title, rows)
    if drawn:
        pictures.draw(drawn, config.figures / f"introspection_{config.name}.png")
    return bias + frequency + typicality


if __name__ == "__main__":
    run_script(main, Config)
