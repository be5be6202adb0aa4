"""The page of results says what the files say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    return importlib.import_module("tables")


def test_the_page_is_that_of_its_files(tables) -> None:
    shown = (tables.RESULTS / "README.md").read_text(encoding="utf-8")
    assert shown == tables.page(tables.RESULTS), "run python evaluation/tables.py"


def test_results_are_complete_and_of_test_splits(tables) -> None:
    files = sorted(tables.RESULTS.glob("*.json"))
    assert files
    for file in files:
        written = json.loads(file.read_text(encoding="utf-8"))
        assert set(written) == {"table", "command", "commit", "device", "seed", "data", "rows"}, file
        assert not written["commit"].endswith("-dirty"), file
        chooses = file.name.startswith("tuning_") or file.stem.endswith("_settings")
        assert {row["split"] for row in written["rows"]} == {"val" if chooses else "test"}, (
            file
        )  # selection reads no test


def test_a_page_is_written(tables, tmp_path: Path) -> None:
    result = {
        "table": "Toys",
        "command": "python evaluation/toy.py",
        "commit": "0123456789abcdef",
        "device": {"cpu": "a processor", "gpu": None},
        "seed": 3,
        "data": "toys",
        "rows": [
            {"method": "a", "n": 5, "default": True, "auc": 0.5, "auc_low": 0.25, "auc_high": 0.75, "kl": None},
            {"method": "b", "n": 5, "default": False, "auc": 1.0, "auc_low": 1.0, "auc_high": 1.0, "kl": 0.125},
        ],
    }
    (tmp_path / "toy_small_ones.json").write_text(json.dumps(result))
    text = tables.main(tables.Config(tmp_path)).read_text()
    assert "## Toy\nToys.\n\n### small ones\n" in text
    assert "Seed 3, commit 0123456789ab, on a processor. n: 5." in text
    assert "| method | auc | kl |" in text
    assert "| a | 0.500 [0.250, 0.750] | - |" in text
    assert "| b | 1.000 [1.000, 1.000] | 0.125 |" in text


def test_of_the_widest_tables_only_chief_columns_are_shown(tables) -> None:
    row = {"method": "a", "n": 5, "validity": 0.5, "validity_low": 0.25, "validity_high": 0.75, "step": 3.0}
    written = {"seed": 0, "device": {"cpu": "a processor", "gpu": None}, "commit": "0123456789abcdef", "data": "toys"}
    written |= {"command": "python evaluation/toy.py", "rows": [row, row | {"method": "b", "validity": 1.0}]}
    assert "| method | validity |" in list(tables.markdown(written, "counterfactuals"))
    assert "| method | validity | step |" in list(tables.markdown(written, "toy"))
    first = tables.CHIEF["counterfactuals"]
    assert len(set(first)) == len(first)
