"""The result writer: what is written, what is printed, and what is kept out."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

ROOT = Path(__file__).parents[2]


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    return importlib.import_module("common")


def test_the_first_of_each_class_are_chosen(common) -> None:
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 2])
    everything = range(7)
    assert common.first_of_each_class(labels, everything) == [1, 3, 5, 0, 2, 4, 6]
    assert common.first_of_each_class(labels, everything, 2) == [1, 3, 0, 2, 6]
    assert common.first_of_each_class(labels, [0, 3, 4, 5], 1) == [3, 0]  # of these only, and no class 2
    assert common.first_of_each_class(labels, []) == []


def test_each_patient_is_chosen_once(common) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    patients = ["a", "a", "b", "b", "c", "c"]
    assert common.first_of_each_class(labels, range(6), 2, patients) == [0, 2, 4]  # b is asked about class 0
    # one of class 0, which is not b: the scan of b in class 1 is free, the second one of c is not
    assert common.first_of_each_class(labels, range(6), 1, patients) == [0, 3]
    assert common.first_of_each_class(labels, [1, 2, 5], 0, patients) == [1, 2, 5]


def test_a_result_is_written_and_printed(common, tmp_path: Path) -> None:
    rows = [
        {"method": "L1", "n": 12, "default": True, "auc": np.float32(0.987654321), "auc_low": 0.9, "auc_high": 1.0},
        {"method": "control", "n": 12, "auc": float("nan"), "kl": torch.tensor(0.25)},
    ]
    screen = io.StringIO()
    config = SimpleNamespace(name="toy", data="toys", seed=7, out=tmp_path)
    script = str(ROOT / "evaluation" / "agreement.py")
    path = common.write_result(script, config, "A table", rows, Console(file=screen, width=120))
    result = json.loads(path.read_text())
    assert path == tmp_path / "agreement_toy.json"
    assert list(result) == ["table", "command", "commit", "device", "seed", "data", "rows"]
    assert (result["table"], result["seed"], result["data"]) == ("A table", 7, "toys")
    assert result["command"] == "python evaluation/agreement.py"
    assert result["rows"][0] == {
        "method": "L1",
        "n": 12,
        "default": True,
        "auc": 0.987654,
        "auc_low": 0.9,
        "auc_high": 1,
    }
    assert result["rows"][1]["auc"] is None
    assert result["rows"][1]["kl"] == 0.25
    assert set(result["device"]) == {"cpu", "gpu", "threads", "torch"}
    assert "0.988 [0.900, 1.000]" in screen.getvalue()
    assert "auc_low" not in screen.getvalue()


def test_a_table_fits_the_screen(common) -> None:
    rows = [{"method": m, "data": "toys", "n": 5, "auc": 0.5, "auc_low": 0.25, "auc_high": 0.75} for m in ("a", "b")]

    def shown(width: int) -> str:
        screen = io.StringIO()
        Console(file=screen, width=width).print(common.render_table("T", rows, width))
        return screen.getvalue()

    assert "0.500 [0.250, 0.750]" in shown(80)
    assert "[" not in shown(24)
    assert shown(80).count("toys") == 1  # below the table, not in every row
    assert "data toys, n 5" in shown(80)


def test_rows_are_flat(common, tmp_path: Path) -> None:
    config = SimpleNamespace(name="toy", data="toys", seed=7, out=tmp_path)
    with pytest.raises(TypeError, match="flat"):
        common.write_result("toy.py", config, "t", [{"auc": [1, 2]}], Console(file=io.StringIO()))


def test_the_commit_says_when_the_tree_differs(common, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(common, "REPOSITORY", tmp_path)
    assert common.git_commit() == "unknown"

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "--no-verify", "-m", "start")
    clean = common.git_commit()
    assert len(clean) == 40
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "a.json").write_text("{}")
    assert common.git_commit() == clean
    (tmp_path / "code.py").write_text("")
    assert common.git_commit() == f"{clean}-dirty"
