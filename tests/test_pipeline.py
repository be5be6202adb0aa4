"""From a manifest to explanations and tables: every script in `train/` and `evaluation/` on `configs/tiny`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import auto_cli
from scripts import ROOT, load, result, run, workspace

from diffcf import weights
from diffcf.cards import AgentCard, ClassifierCard, read_card
from diffcf.classifiers.agent import load_agent
from diffcf.cli import main
from diffcf.commands.models import find_models
from diffcf.counterfactuals import METHODS, Exemplars
from diffcf.data.phantom.folder import PhantomSet, write_scenes
from diffcf.data.phantom.labels import MALIGNANCY
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.attributes import AttributeDirections
from diffcf.options import ExplainOptions
from diffcf.scans import read_scan
from diffcf.weights import content_hash


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Any:
    """Generator, black box and agent in runs/tiny, trained by the scripts themselves."""
    with workspace(tmp_path_factory) as folder:
        yield folder, {name: run("train", name) for name in ("diffae", "classifier", "agent")}


def test_the_scripts_train(trained) -> None:
    folder, figures = trained
    assert np.isfinite(figures["diffae"]["psnr"])
    assert figures["classifier"]["auc"] > 0.8
    assert figures["agent"]["auc"] > 0.6
    for part in ("diffae/generator", "classifier/blackbox", "agent/agent"):
        assert (folder / "runs" / "tiny" / part / "card.yaml").is_file()


def test_reconstruction(trained) -> None:
    rows = run("evaluation", "reconstruction")
    written = result(trained[0], "reconstruction")["rows"]
    assert len(written) == len(rows)
    default, *others = written
    assert default["default"]
    assert not any(row["default"] for row in others)
    assert default["psnr_low"] <= default["psnr"] <= default["psnr_high"]
    assert default["lpips"] == "not computed"
    exact = next(row for row in written if row["sampler"] == "obelm")
    assert exact["psnr"] > 60
    assert exact["kl"] < 1e-4
    assert {row["x_T"] for row in written} == {"inverted", "forward-noised", "random"}
    assert {row["network"] for row in written} == {"trained", "untrained"}
    drawn = next(row for row in written if row["x_T"] == "random" and row["sampler"] == "ddim")
    assert drawn["code_std"] == pytest.approx(1, abs=0.05)


def test_a_one_step_decoder_previews_and_its_gap_is_reported(trained) -> None:
    figures = run("train", "onestep")
    assert np.isfinite(figures["psnr_edited"])
    module = load("evaluation", "onestep")
    places = {"generator": "runs/tiny/diffae", "classifier": "runs/tiny/classifier/blackbox"}
    out = Path("runs/tiny/results")
    config = module.Config("tiny", Path("runs/tiny/data/manifest.csv"), **places, resamples=50, out=out)
    assert [row["method"] for row in module.main(config)] == [module.PREVIEW]
    module.main(dataclasses.replace(config, onestep="runs/tiny/onestep"))
    preview, student = result(trained[0], "onestep")["rows"]
    assert (preview["method"], student["method"]) == (module.PREVIEW, module.STUDENT)
    assert [preview["default"], student["default"]] == [False, True]
    for row in (preview, student):
        assert row["n"] == 20
        assert {f"{key}{kind}" for key in ("psnr", "same") for kind in ("", "_edited", "_fresh", "_carried")} <= set(
            row
        )
        assert 0 <= row["same_edited"] <= 1
    assert preview["psnr"] != student["psnr"]
    command = [
        "explain", "--classifier", "runs/tiny/classifier/blackbox", "--generator", "runs/tiny/diffae",
        "--scan", "runs/tiny/data/4.npz", "--method", "latent", "--onestep", "runs/tiny/onestep", "--out", "by-onestep",
    ]  # fmt: skip
    assert main(command) in (0, 10, 11, 12)
    said = json.loads(Path("by-onestep/explanation.json").read_text())
    assert said["provenance"]["models"]["onestep"]["hash"] == content_hash("runs/tiny/onestep/onestep")


def test_a_plain_autoencoder_explains_and_is_judged(trained) -> None:
    run("train", "autoencoder")
    command = [
        "explain", "--classifier", "runs/tiny/classifier/blackbox", "--generator", "runs/tiny/autoencoder",
        "--scan", "runs/tiny/data/4.npz", "--method", "latent", "--out", "by-autoencoder",
    ]  # fmt: skip
    assert main(command) in (0, 10, 11, 12)
    said = json.loads(Path("by-autoencoder/explanation.json").read_text())
    assert said["provenance"]["sampling"] is None
    assert said["cost"]["generator_backwards"] > 0
    module = load("evaluation", "counterfactuals")
    case = module.Case("runs/tiny/classifier/blackbox", "runs/tiny/autoencoder")
    manifest, out = Path("runs/tiny/data/manifest.csv"), Path("runs/tiny/results")
    rows = module.main(module.Config("autoencoder", manifest, {"latent": case}, scans=1, resamples=20, out=out))
    assert {row["search"] for row in rows} == {"Latent"}
    module = load("evaluation", "reconstruction")
    models = {"generator": "runs/tiny/autoencoder", "classifier": "runs/tiny/classifier/blackbox"}
    (row,) = module.main(module.Config("autoencoder", manifest, **models, resamples=20, out=out))
    assert row["psnr"] > 10
    assert row["default"]
    assert not any(key.startswith(("sampler", "code_", "x_T")) for key in row)
    run("evaluation", "semantic")
    rows = {(row["method"], row["code"]): row for row in result(trained[0], "semantic")["rows"]}
    assert {code for _, code in rows} == {"whole", "directions 1 of 4", "noise 1"}
    whole = rows["plain", "whole"]
    assert whole["psnr"] == pytest.approx(whole["psnr_inverted"], abs=1e-3)  # its code is all there is
    assert "probe_x_T" not in whole
    assert max(rows["plain", code]["psnr"] for code in ("noise 1", "directions 1 of 4")) < whole["psnr"]
    drawn = rows["diffusion", "whole"]
    assert (drawn["numbers"], drawn["share"]) == (4 * 4 * 4, 4 * 4 * 4 / 16**2)
    assert drawn["psnr"] < drawn["psnr_inverted"]
    assert 0 <= drawn["probe_x_T"] <= 1


def test_an_adversarial_autoencoder_explains_and_is_judged(trained) -> None:
    run("train", "autoencoder", config="autoencoder_adversarial")
    command = [
        "explain", "--classifier", "runs/tiny/classifier/blackbox", "--generator", "runs/tiny/autoencoder-adversarial",
        "--scan", "runs/tiny/data/4.npz", "--method", "latent", "--steps", "3", "--out", "by-adversarial",
    ]  # fmt: skip
    assert main(command) in (0, 10, 11, 12)
    generator = json.loads(Path("by-adversarial/explanation.json").read_text())["provenance"]["models"]["generator"]
    assert generator["hash"] == content_hash("runs/tiny/autoencoder-adversarial/generator")
    module = load("evaluation", "reconstruction")
    models = {"generator": "runs/tiny/autoencoder-adversarial", "classifier": "runs/tiny/classifier/blackbox"}
    manifest, out = Path("runs/tiny/data/manifest.csv"), Path("runs/tiny/results")
    (row,) = module.main(module.Config("adversarial", manifest, **models, resamples=20, out=out))
    assert (row["method"], row["default"]) == ("adversarial autoencoder", True)
    assert row["psnr"] > 10


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
        assert row["n"] == 4
        assert 0 <= row["validity"] <= row["decision_validity"] <= 1
        assert row["evaluations"] >= 8
        assert 0 <= row["cause_precision"] <= 1


def test_speed(trained) -> None:
    run("evaluation", "speed")
    reference, single, batched, last, half = result(trained[0], "speed")["rows"]
    assert (reference["steps"], single["steps"]) == ("7 + 5", "4 + 4")
    assert [row["default"] for row in (reference, single, batched, last, half)] == [False, False, True, False, False]
    assert reference["evaluations_ratio"] == reference["time_ratio"] == 1
    assert all(row["n"] == 2 for row in (reference, single, batched, last, half))
    # The reference looks with full decodes where ours takes one evaluation; batching changes no count.
    assert single["evaluations_ratio"] > 2
    assert single["evaluations_ratio_low"] <= single["evaluations_ratio"] <= single["evaluations_ratio_high"]
    assert reference["backwards"] > single["backwards"] > 0
    assert batched["evaluations"] == pytest.approx(single["evaluations"], rel=0.1)
    assert batched["psnr"] == pytest.approx(single["psnr"], abs=1e-3)
    assert last["psnr"] == pytest.approx(single["psnr"], abs=1e-3)
    assert half["psnr"] == pytest.approx(single["psnr"], abs=1)
    assert half["psnr"] != single["psnr"]


def test_alignment_is_trained_and_judged(trained) -> None:
    run("train", "align", "--method", "Vanilla", "--out", "runs/tiny/plain")
    for seed in ("0", "1"):
        run("train", "align", "--seed", seed, "--out", f"runs/tiny/align{'-1' * int(seed)}")
    for name, method in (("plain", "Vanilla"), ("align", "CounterfactualAlignment")):
        assert read_card(ClassifierCard, trained[0] / "runs/tiny" / name / "blackbox").about["method"] == method
    run("evaluation", "alignment")
    plain, aligned = result(trained[0], "alignment")["rows"]
    assert (plain["seeds"], aligned["seeds"]) == (1, 2)
    assert [plain["default"], aligned["default"]] == [False, True]
    assert plain["accuracy_gap"] == 0
    assert plain["n"] == aligned["n"] == 20
    assert plain["reversal_gap"] == pytest.approx(plain["reversal_accuracy"] - plain["accuracy"])
    for row in (plain, aligned):
        for key in ("saliency", "gradcam", "hirescam", "occlusion", "change", "roi"):
            assert 0 <= row[f"{key}_precision_low"] <= row[f"{key}_precision"] <= row[f"{key}_precision_high"] <= 1
        assert row["auc_low"] <= row["auc"] <= row["auc_high"]
        assert 0 < row["chance"] < 0.5
    assert "accuracy_std" in aligned
    assert 0 <= aligned["decoded_roi"] <= 1
    for more in ("", "_decoded"):
        assert (trained[0] / f"runs/tiny/figures/alignment_tiny_panels{more}.png").stat().st_size > 5000
    twice = ("--runs.aligned", '{"a": "runs/tiny/align/blackbox", "b": "runs/tiny/align/blackbox"}')
    run("evaluation", "tuning", *twice)
    rows = result(trained[0], "tuning")["rows"]
    assert [(row["method"], row["chosen"]) for row in rows] == [("plain", True), ("aligned", True), ("aligned", False)]
    card = read_card(ClassifierCard, trained[0] / "runs/tiny/plain/blackbox")
    assert rows[0]["auc"] == card.about["validation"]["auc"]
    for sources, said in (
        ('{"a": "runs/tiny/align-1/blackbox"}', "differ in seed"),
        ('{"a": "runs/tiny/classifier/blackbox"}', "no black box of train/align.py"),
    ):
        with pytest.raises(ConfigError, match=said):
            run("evaluation", "tuning", "--runs.aligned", sources)
    run("evaluation", "implicit")
    measured = result(trained[0], "implicit")["rows"]
    good = [row for row in measured if "sign" in row]
    assert {row["method"] for row in good} <= {"gauss_newton", "cg", "jacobian_free"}
    assert all(-1 <= row["cosine"] <= 1 for row in good)
    cost = {row["method"]: row for row in measured if "saved_mb" in row}
    assert cost["search alone"]["adjoint_ratio"] == 0
    assert cost["gauss_newton"]["saved_mb"] < cost["unrolled"]["saved_mb"]
    plain, aligned = (row for row in measured if "step_ratio" in row)
    assert plain["step_ratio"] == 1
    assert aligned["step_ratio"] > 1


def test_digits(trained) -> None:
    run("evaluation", "digits")
    rows = result(trained[0], "digits")["rows"]
    assert [(row["method"], row["target"], row["n"]) for row in rows] == [
        (name, target, 2) for name in ("latent", "minimal") for target in ("all", "right")
    ]
    assert [row["default"] for row in rows] == [True, False, False, False]
    for row in rows:
        assert 0 <= row["validity"] <= row["decision_validity"] <= 1
        assert row["transfer_validity"] == row["decision_validity"]  # the other classifier is the black box itself
        assert (row["detour"], row["through"]) == (0, "none")  # of two classes
    for row in result(trained[0], "digits", "tiny_prototypes")["rows"]:
        assert row["n"] == 4
        assert row["before"] <= row["after"] + 1e-6
        assert row["asked"] == 0.9
    rows = result(trained[0], "digits", "tiny_regulariser")["rows"]
    assert [(row["method"], row["weight"], row["lambda"]) for row in rows] == [
        (name, weight, each) for name in ("minimal", "latent") for weight, each in ((0, None), (1000, 0.001))
    ]
    for free, held in (rows[:2], rows[2:]):
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
    assert [row["method"] for row in rows] == ["to 'left' at 0.7", "to 'right' at 0.7"]
    assert all(-1 <= row["opposite"] <= 1 for row in rows if row["opposite"] is not None)
    assert (trained[0] / "runs" / "tiny" / "figures" / "indeterminate_tiny.png").stat().st_size > 5000


@pytest.fixture(scope="module")
def attributes(trained) -> Any:
    return run("train", "attributes")


def test_attribute_directions_are_fitted(attributes, capsys) -> None:
    assert attributes.card.names == ["column", "row"]
    assert attributes.card.about["read"]["column"] > 0.5
    assert attributes.card.about["scans"] == 60
    assert AttributeDirections.load("runs/tiny/attributes/attributes").card == attributes.card
    for names, says in (("[colour]", "in no manifest; there are column, row"), ("[column, gone]", "gone")):
        with pytest.raises(ConfigError, match=says):
            run("train", "attributes", "--names", names)


def test_introspection(attributes, trained) -> None:
    run("evaluation", "introspection")
    free, frozen = result(trained[0], "introspection")["rows"]
    assert [(row["frozen"], row["default"], row["n"]) for row in (free, frozen)] == [
        ("none", True, 4),
        ("column", False, 4),
    ]
    assert 0 <= free["top"] <= free["top3"] <= 1
    assert frozen["top"] is None
    assert frozen["changed"] <= 1
    assert frozen["first"].startswith(("row", "none"))
    rows = result(trained[0], "introspection", "tiny_frequency")["rows"]
    assert len(rows) == 2 * 2
    for row in rows:
        assert row["changes"] == pytest.approx(row["up"] + row["down"])
    right = next(row for row in rows if (row["direction"], row["attribute"]) == ("left to right", "column"))
    assert 1 < right["in_data"] < 2.5  # spreads: the columns of both classes hardly meet
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


def test_explain_in_attribute_space(attributes, trained) -> None:
    command = [
        "explain", "--classifier", "runs/tiny/classifier/blackbox", "--generator", "runs/tiny/diffae", "--scan",
        "runs/tiny/data/4.npz", "--method", "attributes", "--attributes", "runs/tiny/attributes/attributes",
        "--freeze", "column", "--steps", "3", "--out", "by-attributes",
    ]  # fmt: skip
    assert main(command) in (0, 10, 11, 12)
    said = json.loads(Path("by-attributes/explanation.json").read_text())
    assert {changed["name"] for changed in said["attributes"]} <= {"row"}
    assert said["provenance"]["method"]["name"] == "Attributes"
    assert said["provenance"]["method"]["frozen"] == ["column"]


@pytest.mark.parametrize(
    ("freeze", "says"),
    [("colour,row", "colour do not exist; these directions have column, row"), ("column,row", "Free at least one")],
)
def test_what_cannot_be_frozen_is_refused(attributes, trained, capsys, freeze: str, says: str) -> None:
    command = [
        "explain", "--classifier", "runs/tiny/classifier/blackbox", "--generator", "runs/tiny/diffae", "--scan",
        "runs/tiny/data/4.npz", "--method", "attributes", "--attributes", "runs/tiny/attributes/attributes",
        "--freeze", freeze, "--out", "none",
    ]  # fmt: skip
    assert main(command) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not Path("none").exists()


def test_what_is_out_of_distribution(trained) -> None:
    other = trained[0] / "runs" / "tiny" / "other"
    other.mkdir()
    rng = np.random.default_rng(1)
    for i in range(5):
        volume = (-300 + 80 * rng.standard_normal((2, 16, 16))).astype(np.float32)
        np.savez(other / f"{i}.npz", volume=volume, spacing=np.array([2.0, 1.0, 1.0]))
    run("evaluation", "trust")
    own, bone = result(trained[0], "trust")["rows"]
    assert (own["method"], own["n"], own["default"]) == ("own, test split", 20, True)
    assert own["flagged"] <= 0.3
    assert (bone["method"], bone["n"], bone["flagged"]) == ("bone", 5, 1)
    assert bone["appearance_distance"] > 1


def test_trust_statistics_of_a_finished_generator(trained) -> None:
    module = load("train", "trust")
    made = module.main(
        module.Config(Path("runs/tiny/diffae/generator"), [Path("runs/tiny/data/manifest.csv")], steps=4)
    )
    assert len(made.held_out["psnr"]) == 20


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "evaluation").glob("*.yaml")), ids=lambda path: path.stem)
def test_evaluation_configs_are_valid(path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    script, _, name = path.stem.partition("_")
    config = auto_cli(load("evaluation", script).Config, as_positional=False, args=["--config", str(path)])
    assert config.name == name
    if script not in ("tuning", "cost"):  # which read cards alone, and training scans
        assert getattr(config, "how", config).split == ("val" if name.endswith("settings") else "test")
    assert config.data


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


@pytest.mark.parametrize("method", ["latent", "latent-shift", "minimal", "pixels"])
def test_every_method_ends_in_the_same_files(trained, method: str) -> None:
    """Without an agent: these methods ask the black box itself. They end like the default, in the same files."""
    command = [
        "explain", "--classifier", "runs/tiny/classifier/blackbox", "--generator", "runs/tiny/diffae",
        "--scan", "runs/tiny/data/4.npz", "--method", method, "--steps", "3", "--out", f"by-{method}",
    ]  # fmt: skip
    assert main(command) in (0, 10, 11, 12)
    said = json.loads((Path(f"by-{method}") / "explanation.json").read_text())
    assert METHODS[method].__name__ == said["provenance"]["method"]["name"]
    assert said["decision"]["agent"]["factual"] is None
    assert "agent" not in said["provenance"]["models"]
    assert "agent_agreement" not in [check["name"] for check in said["trust"]]
    assert (said["cost"]["generator_backwards"] > 0) == (method != "pixels")


def test_exemplars_beside_the_agent_make_them_the_default(trained) -> None:
    shutil.copytree("runs/tiny/agent/agent", "with/agent")
    run("train", "exemplars", "--agent", "with/agent")
    assert Exemplars.load("with/agent").counts(("a", "b")) == {"a": 2, "b": 2}
    assert (
        read_card(AgentCard, Path("with/agent")).about["exemplars"]["command"].startswith("python train/exemplars.py")
    )
    command = [
        "explain", "--classifier", "runs/tiny/classifier/blackbox", "--generator", "runs/tiny/diffae",
        "--agent", "with/agent", "--scan", "runs/tiny/data/4.npz", "--steps", "3", "--out", "by-exemplar",
    ]  # fmt: skip
    assert main(command) in (0, 10, 11, 12)
    said = json.loads(Path("by-exemplar/explanation.json").read_text())
    assert said["provenance"]["method"]["name"] == "Exemplar"
    assert "exemplars" not in said["provenance"]["method"]  # no path of the machine
    assert said["decision"]["agent"]["factual"] is not None
    assert said["search"]["path_previewed"]


def test_a_method_that_needs_exemplars_says_how_to_get_them(trained, capsys) -> None:
    command = [
        "explain", "--classifier", "runs/tiny/classifier/blackbox", "--generator", "runs/tiny/diffae",
        "--agent", "runs/tiny/agent/agent", "--scan", "runs/tiny/data/4.npz", "--method", "exemplar", "--out", "none",
    ]  # fmt: skip
    assert main(command) in (2, 4)
    assert not Path("none").exists()


def test_explain_from_the_command_line_and_the_same_bytes_again(trained, capsys) -> None:
    command = [
        "explain", "--classifier", "runs/tiny/classifier/blackbox", "--generator", "runs/tiny/diffae",
        "--agent", "runs/tiny/agent/agent", "--scan", "runs/tiny/data/4.npz", "--seed", "3", "--out",
    ]  # fmt: skip
    codes = [main([*command, out]) for out in ("one", "two")]
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


def test_sanity(trained) -> None:
    run("evaluation", "sanity")
    rows = {row["method"]: row for row in result(trained[0], "sanity")["rows"]}
    assert rows["composition: 3 cycle(s)"]["psnr"] <= rows["composition: 1 cycle(s)"]["psnr"]
    assert 0 <= rows["leakage: x_T"]["auc"] <= 1
    assert rows["randomisation: another trained network"]["randomisation"] == pytest.approx(1, abs=1e-4)  # itself
    assert rows["randomisation: random weights"]["randomisation"] < 0.999
    assert {"stability over x_T", "three answers"} <= set(rows)
