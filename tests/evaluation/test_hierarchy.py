"""Classifiers that decide by attributes, trained on squares whose column decides, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import run, workspace

from diffcf.errors import ConfigError

ATTRIBUTES = {"names": ["column", "row"], "above": {"column": 7, "row": 4}}
NETWORK = {"attributes": ["column", "row"], "backbone_args": {"width": 8, "places": 2}}


def train(out: str, *more: str) -> Any:
    terms = {"share": 0.25, "wait": 0.5, "attribute_weight": 5.0, "inner": {"solver": {"steps": 2}}}
    method = {"class_path": "HierarchicalAlignment", "init_args": terms}
    settings = {"method": method, "attributes": ATTRIBUTES, "architecture_args": NETWORK, "shortcut": None}
    given = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value))]
    given += ["--architecture", "diffcf_hierarchical", "--slice_mode", "channels", "--views", "none"]
    given += ["--learning_rate", "0.01", "--validate_every", "20", "--out", out]
    return run("train", "align", *given, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with workspace(tmp_path_factory) as folder:
        yield folder


def judged(folder: Path, steps: int) -> list[dict[str, Any]]:
    """Both rows of the table, of a hierarchy trained for so many steps."""
    out = f"runs/tiny/hierarchical-{steps}"
    figures = train(out, "--steps", str(steps))
    assert {"attribute_loss", "reason_outside", "reason_validity", "outside", "swapped"} <= set(figures)
    train("runs/tiny/bottleneck", "--method.align_weight", "0", "--method.reason_weight", "0", "--steps", "10")
    both = json.dumps([f"{out}/blackbox"] * 2)
    run("evaluation", "hierarchy", "--methods.hierarchical alignment", both)
    return json.loads((folder / "runs/tiny/results/hierarchy_tiny.json").read_text())["rows"]


def test_a_hierarchy_is_trained_and_judged(folder: Path) -> None:
    rows = judged(folder, 6)
    assert [row["seeds"] for row in rows] == [1, 2]
    assert [row["default"] for row in rows] == [False, True]
    for row in rows:
        assert row["attribute_auc_low"] <= row["attribute_auc"] <= row["attribute_auc_high"]
        assert row["reason_chance"] == pytest.approx(0.5)  # the column alone decides
        assert 0 <= row["reason_precision"] <= 1


@pytest.mark.slow
def test_attributes_are_learnt(folder: Path) -> None:
    _, aligned = judged(folder, 40)
    assert aligned["attribute_accuracy"] > aligned["commonest"]
    assert aligned["attribute_auc"] > 0.8
    assert aligned["accuracy"] > 0.8
    assert aligned["reason_precision"] > 0.8


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--attributes", "null"], "needs `attributes`"),
        (["--attributes.names", "[row, column]"], "architecture_args name others"),
        (["--attributes.names", "[column, shape]", "--attributes.above", "{}"], "architecture_args name others"),
        (["--architecture", "diffcf_cnn7", "--architecture_args", '{"width": 4}'], "does not decide by attributes"),
        (["--slice_mode", "average"], "slice_mode channels"),
        (["--attributes.above", '{"column": 7}'], "expected 0, 1 or nothing"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, more: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train("runs/tiny/refused", *more)
    assert not Path("runs/tiny/refused/blackbox").exists()


def test_an_evaluation_of_other_attributes_is_refused(folder: Path) -> None:
    if not Path("runs/tiny/bottleneck").exists():
        train("runs/tiny/bottleneck", "--steps", "2")
    with pytest.raises(ConfigError, match="decides by column, row"):
        run("evaluation", "hierarchy", "--attributes.names", "[row]", "--attributes.above", '{"row": 4}')
    with pytest.raises(ConfigError, match="no method 'ours'"):
        run("evaluation", "hierarchy", "--default", "ours")
