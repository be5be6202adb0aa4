"""evaluation/introspection.py: what is not reached is no answer."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from scripts import ROOT, load


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    return load("evaluation", "introspection")


def queries(script: ModuleType) -> list[Any]:
    """Of class 0: texture, texture before diameter, and a texture that leads nowhere; of class 1 the diameter."""
    answers = [(0, 1.0, 0.0, True), (0, 2.0, -1.0, True), (0, 9.0, 0.0, False), (1, 0.0, -3.0, True)]
    return [
        script.Query(label, f"patient {k}", {"texture": texture, "diameter": diameter}, reached)
        for k, (label, texture, diameter, reached) in enumerate(answers)
    ]


HOW = SimpleNamespace(resamples=20, seed=0)


def test_shares_are_of_all_queries_and_changes_of_those_that_were_reached(script) -> None:
    row = script.bias_row(queries(script), "texture", HOW, {"confirmed": [1.0, 0.0, float("nan"), 1.0]})
    assert row["validity"] == 0.75
    assert (row["top"], row["top3"]) == (0.5, 0.5)
    assert row["changed"] == pytest.approx(4 / 3)
    assert row["distance"] == pytest.approx((1 + 3 + 3) / 3)
    assert row["confirmed"] == pytest.approx(2 / 3)
    assert (row["first"], row["second"]) == ("texture (0.67)", "diameter (0.33)")
    none = script.bias_row([query for query in queries(script) if not query.reached], None, HOW)
    assert none["validity"] == 0
    assert none["distance"] != none["distance"]  # no number
    assert none["first"] == "none"
    unmoved = script.Query(0, "patient", {"texture": 0.0}, True)
    assert script.bias_row([unmoved], "texture", HOW)["first"] == "none"


def test_how_much_the_classes_differ_is_of_the_rated_training_scans(script) -> None:
    told = [(0, 1.0), (0, 3.0), (0, None), (1, 6.0), (1, 8.0)]
    rows = [SimpleNamespace(label=label, attributes={"texture": value}) for label, value in told]
    asked = SimpleNamespace(manifest=SimpleNamespace(split={"train": rows}.__getitem__))
    assert script.in_data(asked, "texture", 2.0, 0, 1) == 2.5
    assert script.in_data(asked, "texture", 2.0, 1, 0) == -2.5


def test_the_frequency_of_attributes_is_of_what_was_reached(script, monkeypatch) -> None:
    monkeypatch.setattr(script, "in_data", lambda *_: 0.5)
    card = SimpleNamespace(names=["texture", "diameter"], spread=[1.0, 1.0])
    asked = SimpleNamespace(card=lambda: card, classes=("small", "large"))
    rows = script.frequency_rows(asked, queries(script), HOW)
    found = {
        (row["direction"], row["attribute"]): (row["n"], row["changes"], row["up"], row["spreads"]) for row in rows
    }
    assert found == {
        ("small to large", "texture"): (2, 1.0, 1.0, 1.5),
        ("small to large", "diameter"): (2, 0.5, 0.0, -0.5),
        ("large to small", "texture"): (1, 0.0, 0.0, 0.0),
        ("large to small", "diameter"): (1, 1.0, 0.0, -3.0),
    }
    assert all(row["changes"] == row["up"] + row["down"] and row["in_data"] == 0.5 for row in rows)
    failed = [query for query in queries(script) if not query.reached]
    assert script.frequency_rows(asked, failed, HOW) == []
