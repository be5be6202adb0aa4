"""`diffcf explain` with models that the scripts trained, by every method."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scripts import explain, explained, run

from diffcf.cards import AgentCard, read_card
from diffcf.commands.models import find_models
from diffcf.counterfactuals import METHODS, Exemplars
from diffcf.options import ExplainOptions
from diffcf.scans import read_scan
from diffcf.weights import content_hash

DIRECTIONS = ("--method", "attributes", "--attributes", "runs/tiny/attributes/attributes")


@pytest.mark.parametrize(
    "method",
    ["latent", "latent-shift", *(pytest.param(name, marks=pytest.mark.slow) for name in ("minimal", "pixels"))],
)
def test_every_method_ends_in_the_same_files(trained, method: str) -> None:
    """Without an agent: these methods ask the black box itself. They end like the default, in the same files."""
    said = explained(f"by-{method}", "--method", method, "--steps", "3")
    assert METHODS[method].__name__ == said["provenance"]["method"]["name"]
    assert said["decision"]["agent"]["factual"] is None
    assert "agent" not in said["provenance"]["models"]
    assert "agent_agreement" not in [check["name"] for check in said["trust"]]
    assert (said["cost"]["generator_backwards"] > 0) == (method != "pixels")
    edit = next(check["message"] for check in said["trust"] if check["name"] == "edit_size")
    assert ("another noise seed" in edit) == (method != "pixels")


def test_explain_in_attribute_space(attributes, trained) -> None:
    said = explained("by-attributes", *DIRECTIONS, "--freeze", "column", "--steps", "3")
    assert {changed["name"] for changed in said["attributes"]} <= {"row"}
    assert said["provenance"]["method"]["name"] == "Attributes"
    assert said["provenance"]["method"]["frozen"] == ["column"]
    known = said["provenance"]["models"]["attributes"]
    assert known == {"name": DIRECTIONS[3], "hash": content_hash(DIRECTIONS[3])}


def test_an_agent_of_attributes_is_asked_together_with_the_black_box(attribute_agent, trained) -> None:
    assert attribute_agent.card.about["scans"] == 60
    folder = "runs/tiny/attribute-agent/agent"
    said = explained("by-both", *DIRECTIONS, "--attribute-agent", folder, "--steps", "3")
    assert said["provenance"]["models"]["attribute_agent"] == {"name": folder, "hash": content_hash(folder)}


@pytest.mark.parametrize(
    ("freeze", "says"),
    [("colour,row", "colour do not exist; there are column, row"), ("column,row", "Free at least one")],
)
def test_what_cannot_be_frozen_is_refused(attributes, trained, capsys, freeze: str, says: str) -> None:
    assert explain("none", *DIRECTIONS, "--freeze", freeze) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not Path("none").exists()


def test_exemplars_beside_the_agent_make_them_the_default(trained) -> None:
    shutil.copytree("runs/tiny/agent/agent", "with/agent")
    run("train", "exemplars", "--agent", "with/agent")
    assert Exemplars.load("with/agent").counts(("a", "b")) == {"a": 2, "b": 2}
    assert (
        read_card(AgentCard, Path("with/agent")).about["exemplars"]["command"].startswith("python train/exemplars.py")
    )
    said = explained("by-exemplar", "--agent", "with/agent", "--steps", "3")
    assert said["provenance"]["method"]["name"] == "Exemplar"
    assert "exemplars" not in said["provenance"]["method"]  # no path of the machine
    assert said["decision"]["agent"]["factual"] is not None
    assert said["search"]["path_previewed"]


def test_an_agent_beside_the_models_is_taken_only_where_it_belongs_to_both(trained, capsys) -> None:
    shutil.copytree("runs/tiny/agent/agent", "set/agent")
    shutil.copytree("runs/tiny/classifier/blackbox", "set/classifier")
    options = ExplainOptions(scan="x", out="y", classifier="set", generator="runs/tiny/diffae", method="latent")
    assert find_models(options).agent == Path("set/agent")
    card = Path("set/classifier/card.yaml")
    card.write_text(card.read_text().replace("std: 1.0", "std: 1.25"))
    assert find_models(options).agent is None
    assert "set/agent is of another classifier or generator, and is not used" in capsys.readouterr().err
    assert explain("none", "--classifier", "set", "--method", "agent") == 2
    assert "set/agent is of another pair): give --agent, or train one" in capsys.readouterr().err
    assert explain("none", "--classifier", "set", "--agent", "set/agent") == 4
    assert not Path("none").exists()


def test_a_method_that_needs_exemplars_says_how_to_get_them(trained, capsys) -> None:
    assert explain("none", "--agent", "runs/tiny/agent/agent", "--method", "exemplar") in (2, 4)
    assert not Path("none").exists()


def test_explain_from_the_command_line_and_the_same_bytes_again(trained, capsys) -> None:
    codes = [explain(out, "--agent", "runs/tiny/agent/agent", "--seed", "3") for out in ("one", "two")]
    assert codes[0] == codes[1]
    assert codes[0] in (0, 10, 11, 12)
    assert "<- target" in capsys.readouterr().out
    names = sorted(path.name for path in Path("one").iterdir())
    assert len(names) == 6
    for name in names:
        if name != "explanation.json":
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name
    one, two = (json.loads(Path(out, "explanation.json").read_text()) for out in ("one", "two"))
    assert one.pop("cost") != {}
    two.pop("cost")
    assert one == two
    factual, edited = read_scan("runs/tiny/data/4.npz"), read_scan("one/counterfactual.nii.gz")
    assert edited.volume.shape == factual.volume.shape
