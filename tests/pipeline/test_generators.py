"""Generators and their one-step decoders: trained, judged, and explained with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scripts import explained, load, result, run

from diffcf.counterfactuals import Latent
from diffcf.counterfactuals.solvers import ProximalGradient
from diffcf.weights import content_hash


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
    said = explained("by-onestep", "--method", "latent", "--steps", "3", "--onestep", "runs/tiny/onestep")
    assert said["provenance"]["models"]["onestep"]["hash"] == content_hash("runs/tiny/onestep/onestep")


def test_a_plain_autoencoder_explains_and_is_judged(trained) -> None:
    run("train", "autoencoder")
    said = explained("by-autoencoder", "--method", "latent", "--steps", "3", generator="autoencoder")
    assert said["provenance"]["sampling"] is None
    assert said["cost"]["generator_backwards"] > 0
    module = load("evaluation", "counterfactuals")
    few = Latent(solver=ProximalGradient(steps=3))
    case = module.Case("runs/tiny/classifier/blackbox", "runs/tiny/autoencoder", method=few)
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


@pytest.mark.slow  # what it adds to tests/train/test_autoencoder.py and the test before this one
def test_an_adversarial_autoencoder_explains_and_is_judged(trained) -> None:
    run("train", "autoencoder", config="autoencoder_adversarial")
    said = explained("by-adversarial", "--method", "latent", "--steps", "3", generator="autoencoder-adversarial")
    generator = said["provenance"]["models"]["generator"]
    assert generator["hash"] == content_hash("runs/tiny/autoencoder-adversarial/generator")
    module = load("evaluation", "reconstruction")
    models = {"generator": "runs/tiny/autoencoder-adversarial", "classifier": "runs/tiny/classifier/blackbox"}
    manifest, out = Path("runs/tiny/data/manifest.csv"), Path("runs/tiny/results")
    (row,) = module.main(module.Config("adversarial", manifest, **models, resamples=20, out=out))
    assert (row["method"], row["default"]) == ("adversarial autoencoder", True)
    assert row["psnr"] > 10


def test_speed(trained) -> None:
    run("evaluation", "speed")
    reference, single, batched, last, half = result(trained[0], "speed")["rows"]
    assert (reference["steps"], single["steps"]) == ("7 + 5", "3 + 3")
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
