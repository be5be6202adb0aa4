"""What judges searches, agents and attributes; and the sets that ship."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from scripts import load, result, run

from diffcf import weights
from diffcf.classifiers.agent import load_agent
from diffcf.commands.models import find_models
from diffcf.counterfactuals import METHODS
from diffcf.data.phantom.folder import PhantomSet, write_scenes
from diffcf.data.phantom.labels import MALIGNANCY
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.attribute_flow import load_attributes
from diffcf.generators.attributes import AttributeDirections
from diffcf.options import ExplainOptions
from diffcf.weights import content_hash


def test_agreement(trained) -> None:
    run("evaluation", "agreement")
    assert [row["method"] for row in result(trained[0], "agreement")["rows"]] == ["L1", "majority control"]


def test_counterfactuals(trained) -> None:
    run("evaluation", "counterfactuals")
    rows = result(trained[0], "counterfactuals")["rows"]
    assert {row["method"] for row in rows} == {"agent", "latent, without an agent"}
    assert {row["direction"] for row in rows} == {"both", "left to right", "right to left"}
    both = [row for row in rows if row["direction"] == "both"]
    assert [row["default"] for row in both] == [True, False]
    for row in both:
        assert row["n"] == 2
        assert 0 <= row["validity"] <= row["decision_validity"] <= 1
        assert row["evaluations"] >= 8
        assert 0 <= row["cause_precision"] <= 1


def test_digits(trained) -> None:
    run("evaluation", "digits")
    rows = result(trained[0], "digits")["rows"]
    assert [(row["method"], row["target"], row["n"]) for row in rows] == [
        (name, target, 1) for name in ("latent", "minimal") for target in ("all", "right")
    ]
    assert [row["default"] for row in rows] == [True, False, False, False]
    for row in rows:
        assert 0 <= row["validity"] <= row["decision_validity"] <= 1
        assert row["transfer_validity"] == row["decision_validity"]  # the other classifier is the black box itself
        assert (row["detour"], row["through"]) == (0, "none")  # of two classes
    for row in result(trained[0], "digits", "tiny_prototypes")["rows"]:
        assert row["n"] == 2
        assert row["before"] <= row["after"] + 1e-6
        assert row["asked"] == 0.9
    rows = result(trained[0], "digits", "tiny_regulariser")["rows"]
    assert [(row["method"], row["weight"], row["lambda"]) for row in rows] == [
        ("minimal", weight, each) for weight, each in ((0, None), (1000, 0.001))
    ]
    free, held = rows
    assert held["proximity_l1"] < free["proximity_l1"]
    assert held["validity"] <= free["validity"]
    for part in ("", "_prototypes", "_regulariser"):
        assert (trained[0] / "runs" / "tiny" / "figures" / f"digits_tiny{part}.png").stat().st_size > 5000
    with pytest.raises(ConfigError, match="'8': expected one of left, right"):
        run("evaluation", "digits", "--subject", "8")
    with pytest.raises(ConfigError, match="no weight of the distance"):
        load("evaluation", "digits").Weighted(METHODS["latent-shift"](), [1.0]).at(1.0)


def test_indeterminate(trained) -> None:
    run("evaluation", "indeterminate")
    rows = result(trained[0], "indeterminate")["rows"]
    assert [row["method"] for row in rows] == ["to 'left' at 0.95", "to 'right' at 0.95"]
    assert all(-1 <= row["opposite"] <= 1 for row in rows if row["opposite"] is not None)
    assert (trained[0] / "runs" / "tiny" / "figures" / "indeterminate_tiny.png").stat().st_size > 5000


def test_attribute_directions_are_fitted(attributes, capsys) -> None:
    assert attributes.card.names == ["column", "row"]
    assert attributes.card.about["read"]["column"] > 0.5
    assert attributes.card.about["scans"] == 60
    assert AttributeDirections.load("runs/tiny/attributes/attributes").card == attributes.card
    for names, says in (("[colour]", "in no manifest; there are column, row"), ("[column, gone]", "gone")):
        with pytest.raises(ConfigError, match=says):
            run("train", "attributes", "--names", names)


def test_a_flow_of_attributes_is_trained_and_resumed_and_introspects(attribute_agent, trained, capsys) -> None:
    figures = run("train", "attribute_flow", "--steps", "30")
    more = run("train", "attribute_flow")
    assert "resumed at step 30" in capsys.readouterr().out
    assert more["velocity"] < figures["velocity"]
    flow = load_attributes("runs/tiny/attribute-flow/attributes")
    assert flow.card.names == ["column", "row"]
    assert flow.card.about["read"]["column"] > 0.5
    assert (flow.card.about["steps"], flow.card.about["scans"]) == (60, 60)
    with pytest.raises(ConfigError, match="Take batch 6 or more"):
        run("train", "attribute_flow", "--batch", "4")
    run("evaluation", "introspection")
    free, frozen = result(trained[0], "introspection")["rows"]
    assert [(row["frozen"], row["default"], row["n"]) for row in (free, frozen)] == [
        ("none", True, 2),
        ("column", False, 2),
    ]
    assert 0 <= free["top"] <= free["top3"] <= 1
    assert frozen["top"] is None
    for row in (free, frozen):  # what is not reached is no answer
        assert (row["distance"] is None) == (row["first"] == "none") == (row["validity"] == 0)
    assert frozen["first"].startswith(("row", "none"))
    [typical] = result(trained[0], "introspection", "tiny_typicality")["rows"]
    assert -1 <= typical["score"] <= 1
    assert (trained[0] / "runs" / "tiny" / "figures" / "introspection_tiny.png").stat().st_size > 5000


def test_attribution(trained) -> None:
    write_scenes(PhantomSet("nodule", 240, size=16), "runs/tiny/nodules")
    run("evaluation", "attribution")
    rows = result(trained[0], "attribution")["rows"]
    assert [row["attribute"] for row in rows] == list(MALIGNANCY.terms)
    for row in rows:
        assert 0 <= row["causal"] <= 1
        assert row["violated"] <= row["falls"] <= row["cells"]
        assert row["effect"] * MALIGNANCY.terms[row["attribute"]][0] > 0 or abs(row["effect"]) < 0.15
    for row in result(trained[0], "attribution", "tiny_edges")["rows"]:
        assert row["found"] or row["found_here"]
    rows = result(trained[0], "attribution", "tiny_truth")["rows"]
    assert {row["nodules"] for row in rows} == {"as drawn", "two levels", "two levels, odds x 10"}
    for row in rows:
        assert 0 <= row["found"] <= row["sufficient"] <= 1
    best = [row for row in rows if row["model"] == "known" and row["nodules"].endswith("10")]
    assert all(row["found"] > 0.85 for row in best)
    assert (trained[0] / "runs" / "tiny" / "figures" / "attribution_tiny.png").stat().st_size > 5000
    for more, says in (
        (("--phantom_seed", "1"), "not the nodules of the phantom set with seed 1"),
        (("--without", "[colour]", "--phantom_seed", "null"), "expected some, not all, of spiculation"),
        (("--coding", "lidc"), "their coding is 'middle'"),
        (("--coding", "lidc", "--phantom_seed", "null"), "no row of the manifest has the attribute calcification"),
    ):
        with pytest.raises(ConfigError, match=says):
            run("evaluation", "attribution", *more)


def test_sanity(trained) -> None:
    run("evaluation", "sanity")
    rows = {row["method"]: row for row in result(trained[0], "sanity")["rows"]}
    assert rows["composition: 3 cycle(s)"]["psnr"] <= rows["composition: 1 cycle(s)"]["psnr"]
    assert 0 <= rows["leakage: x_T"]["auc"] <= 1
    assert rows["randomisation: another trained network"]["randomisation"] == pytest.approx(1, abs=1e-4)  # itself
    assert rows["randomisation: random weights"]["randomisation"] < 0.999
    assert rows["randomisation: other patients"]["randomisation"] < 0.999
    assert {"stability over x_T", "three answers"} <= set(rows)


def test_a_set_is_bundled_with_model_cards(trained, tmp_path, monkeypatch) -> None:
    module = load("train", "bundle")
    models = [Path("runs/tiny", part) for part in ("diffae/generator", "classifier/blackbox", "agent/agent")]
    config = module.Config("tiny", *models, ["agreement_tiny"], Path("runs/tiny/results"), tmp_path / "assets")
    run("evaluation", "agreement")
    module.main(config)
    monkeypatch.setattr(weights, "ASSETS", tmp_path / "assets")
    assert content_hash("tiny/generator") == content_hash(config.generator)
    assert load_agent("tiny/agent").card.generator_hash == content_hash("tiny/generator")
    card = (tmp_path / "assets" / "tiny" / "agent" / "README.md").read_text()
    assert "- L1, test split, n = 20: auc " in card
    assert content_hash("tiny/agent") in card
    # A second set over the same classifier does not hold it again, and explains with the agent that belongs to it.
    shared = dataclasses.replace(config, name="second", classifier=tmp_path / "assets" / "tiny" / "classifier")
    parts = {path.name for path in module.main(shared).iterdir()}
    assert parts == {"generator", "agent"}
    shutil.copytree("runs/tiny/classifier/blackbox", tmp_path / "own" / "classifier")
    shutil.copytree(tmp_path / "assets" / "second" / "agent", tmp_path / "own" / "agent")
    card = tmp_path / "own" / "agent" / "card.yaml"
    card.write_text(card.read_text().replace(content_hash("tiny/generator"), "f" * 64))
    options = ExplainOptions(
        scan="x", out="y", classifier=str(tmp_path / "own" / "classifier"), generator="second", method="agent"
    )
    assert find_models(options).agent == tmp_path / "assets" / "second" / "agent"
    monkeypatch.setattr(module, "MOST_MB", 0.001)
    with pytest.raises(ConfigError, match="more than"):
        module.main(config)
    other = dataclasses.replace(config, agent=tmp_path / "assets" / "tiny" / "agent", generator=tmp_path / "gone")
    with pytest.raises(CheckpointError, match="no card"):
        module.main(other)
