"""evaluation/tuning.py: cards of runs become rows; what cannot be compared is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, load

from diffcf.cards import ClassifierCard, Preparation, write_card
from diffcf.errors import ConfigError


def card(folder: Path, auc: float, balanced: float, **about: Any) -> str:
    """A run's card with these validation figures."""
    validation = {"n": 10, "auc": auc, "accuracy": 0.8, "balanced_accuracy": balanced}
    said = {"data": "toys", "train": 20, "seed": 0, "step": 5, "method": "Toy", "validation": validation} | about
    folder.mkdir()
    write_card(ClassifierCard(Preparation(size=8), ["a", "b"], about=said), folder)
    return str(folder)


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    return load("evaluation", "tuning")


def test_the_best_setting_of_every_method_is_chosen(tuning, tmp_path: Path) -> None:
    runs = {
        "ours": {"1": card(tmp_path / "a", 0.7, 0.6), "2": card(tmp_path / "b", 0.8, 0.5)},
        "theirs": {"1": card(tmp_path / "c", 0.6, 0.7)},
    }
    rows = tuning.main(tuning.Config("toys", runs, "ours", out=tmp_path))
    assert [(row["setting"], row["chosen"], row["default"]) for row in rows] == [
        ("1", False, True),
        ("2", True, True),
        ("1", True, False),
    ]
    assert [row["balanced_accuracy"] for row in rows] == [0.6, 0.5, 0.7]  # 0.5: every scan was given one class
    assert json.loads((tmp_path / "tuning_toys.json").read_text())["rows"] == rows


def test_runs_of_other_data_are_refused(tuning, tmp_path: Path) -> None:
    runs = {"ours": {"1": card(tmp_path / "a", 0.7, 0.6), "2": card(tmp_path / "b", 0.8, 0.5, data="others")}}
    with pytest.raises(ConfigError, match="differ in data"):
        tuning.main(tuning.Config("toys", runs, "ours", out=tmp_path))
    kept = {"ours": {"1": card(tmp_path / "c", 0.7, 0.6, select="accuracy")}}
    with pytest.raises(ConfigError, match="kept its weights by accuracy, and auc is compared"):
        tuning.main(tuning.Config("toys", kept, "ours", out=tmp_path))
    with pytest.raises(ConfigError, match="no method 'mine'"):
        tuning.main(tuning.Config("toys", runs, "mine", out=tmp_path))
