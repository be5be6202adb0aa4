"""Algorithm 1 of paper 003 on `configs/tiny`, and every evaluation of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scripts import ROOT, load, result, run, workspace
from train_runs import launch, losses

from diffcf.classifiers.blackbox import load_blackbox
from diffcf.classifiers.guided import load_guided
from diffcf.errors import ConfigError

RUNS = ("runs/tiny/acat", "runs/tiny/acat-1")
SECOND = ("--seed=1", "--split=3", f"--out={RUNS[1]}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Any:
    """Two runs, each with its baseline, autoencoder, maps and ACAT."""
    with workspace(tmp_path_factory) as folder:
        yield folder, [run("train", "acat"), run("train", "acat", *SECOND)]


def test_all_stages_are_written(trained) -> None:
    _, figures = trained
    for folder, figure in zip(RUNS, figures, strict=True):
        assert figure["accuracy"] > 0.8
        assert load_blackbox(f"{folder}/baseline/blackbox").card.about["split"] == (3 if folder == RUNS[1] else None)
        assert load_guided(f"{folder}/acat/classifier").guidance.reads_maps
        assert Path(folder, "autoencoder", "generator", "card.yaml").is_file()
    manifest = load("evaluation", "acat_runs").Manifest.read(Path("runs/tiny/data/manifest.csv"))
    parts = manifest.split("train") + manifest.split("val")
    assert len(list(Path(RUNS[0], "maps").glob("*.npy"))) == len(parts)  # of training and validation alone


def test_a_finished_run_is_not_trained_again(trained) -> None:
    baseline, maps = (Path(RUNS[0], *parts) for parts in (("baseline", "blackbox", "card.yaml"), ("maps",)))
    before = baseline.stat().st_mtime_ns, sorted((path.name, path.stat().st_mtime_ns) for path in maps.iterdir())
    assert run("train", "acat") == {}
    assert before == (
        baseline.stat().st_mtime_ns,
        sorted((path.name, path.stat().st_mtime_ns) for path in maps.iterdir()),
    )


def test_what_cannot_be_is_refused(trained) -> None:
    with pytest.raises(ConfigError, match="another stage's"):
        run("train", "acat", "--name=baseline")
    with pytest.raises(ConfigError, match="70 training scans were asked for; there are 60"):
        run("train", "acat", "--scans=70", "--out=runs/tiny/many")
    with pytest.raises(ConfigError, match=r"another .*balance"):
        run("train", "acat", "--balance=true")
    with pytest.raises(ConfigError, match="trained on maps by"):
        run("evaluation", "acat", "--saliency=InputGradient", config="evaluation_acat")
    with pytest.raises(ConfigError, match="no method 'best'"):
        run("evaluation", "acat", "--default=best", config="evaluation_acat")


def test_classifiers_are_judged(trained) -> None:
    run("evaluation", "acat", config="evaluation_acat")
    baseline, acat = result(trained[0], "acat")["rows"]
    assert (baseline["method"], acat["method"]) == ("baseline", "ACAT")
    assert (baseline["default"], acat["default"]) == (False, True)
    assert baseline["gain"] == 0
    for row in (baseline, acat):
        assert row["runs"] == 2
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["sensitivity"] > 0.5


def test_patients_that_settings_were_chosen_by_are_not_judged(trained) -> None:
    acat_run, manifest = load("evaluation", "acat_runs").AcatRun, Path("runs/tiny/data/manifest.csv")
    first, second = (acat_run(Path(folder)) for folder in RUNS)
    chosen = {row.patient for row in first.rows(manifest, "val")}
    judged = {row.patient for row in second.rows(manifest, "test")}
    assert chosen & judged  # each run has a split of its own
    left = {row.patient for row in second.rows(manifest, "test", chosen_on=[first.folder])}
    assert left == judged - chosen


def test_activations_are_measured(trained) -> None:
    run("evaluation", "activations")
    rows = result(trained[0], "activations")["rows"]
    assert [row["layer"] for row in rows] == list(range(1, 8))
    for row in rows:
        assert row["baseline_original"] > 0
        assert row["attention_noised"] > 0
    assert rows[0]["baseline_noised"] > 3 * rows[0]["baseline_original"]


def test_maps_are_judged_by_where_they_lie(trained) -> None:
    run("evaluation", "localisation")
    rows = {row["method"]: row for row in result(trained[0], "localisation")["rows"]}
    assert set(rows) == {"ours", "gradient", "ours, of acat"}
    assert rows["ours"]["dice"] > rows["ours"]["chance"]  # the square is what decides
    for row in rows.values():
        assert row["n"] == 8
        assert 0 <= row["dice_low"] <= row["dice"] <= row["dice_high"] <= 1
        assert row["class_averaged_dice"] > row["dice"]
    assert "dice_gain" not in rows["ours"]
    with pytest.raises(ConfigError, match="trained on maps by"):
        run("evaluation", "localisation", "--methods.ours.distance_weight=0.02", "--most=1")
    assert np.isclose(rows["gradient"]["dice_gain"], rows["ours"]["dice"] - rows["gradient"]["dice"], atol=1e-5)


def test_lesions_outside_the_field_are_left_out(trained) -> None:
    module, acat_run = load("evaluation", "localisation"), load("evaluation", "acat_runs").AcatRun(Path(RUNS[0]))
    manifest = trained[0] / "runs" / "tiny" / "data" / "manifest.csv"
    whole = module.Lesions.of(acat_run, module.Config(name="", manifest=manifest, runs=[]))
    mask = Path(whole.scans.rows[2].mask)
    seen = np.load(mask)
    np.savez(manifest.with_name("empty.npz"), volume=0 * seen["volume"], spacing=seen["spacing"])
    changed = manifest.with_name("outside.csv")
    changed.write_text(manifest.read_text().replace(f",{mask.name},", ",empty.npz,"))
    left = module.Lesions.of(acat_run, module.Config(name="", manifest=changed, runs=[]))
    kept = [place for place in range(len(whole.region)) if place != 2]
    assert [row.path for row in left.scans.rows] == [whole.scans.rows[place].path for place in kept]
    assert torch.equal(left.region, whole.region[kept])


def test_ways_to_the_other_class_are_followed(trained) -> None:
    run("evaluation", "shift")
    shift, ours = result(trained[0], "shift")["rows"]
    assert (shift["method"], ours["method"], ours["n"]) == ("latent shift", "ours", 8)
    for row in (shift, ours):
        assert row["start"] < 0.5
        assert row["best"] >= max(row["start"], row["last"])
        assert abs(row["lost"] - (row["best"] - row["last"])) < 1e-5
        assert row["reached"] <= row["reached_half"]
    with pytest.raises(ConfigError, match="no methods to compare"):
        run("evaluation", "shift", "--methods={}")


def test_maps_cost_what_is_counted(trained) -> None:
    run("evaluation", "maps", "--repeats=0")
    (row,) = result(trained[0], "maps")["rows"]
    assert 0 < row["backwards"] <= row["forwards"]
    assert row["again"] == 0


@pytest.mark.slow
def test_maps_of_two_processes_are_timed(trained) -> None:
    run("evaluation", "maps")
    (row,) = result(trained[0], "maps")["rows"]
    assert row["processes"] == 2
    assert row["time_ratio"] > 0


@pytest.mark.slow
def test_two_processes_train_what_one_does(trained) -> None:
    folder, _ = trained
    given = ROOT / "configs" / "tiny" / "acat.yaml"
    launch("acat", given, folder / "two", folder / "runs" / "tiny" / "data" / "manifest.csv", 2)
    state = load_file(folder / "two" / "acat" / "classifier" / "model.safetensors")
    assert all(value.isfinite().all() for value in state.values())
    assert len(list((folder / "two" / "maps").iterdir())) == 80  # of training and validation, each once
    one, two = ([losses(Path(parent, part)) for part in ("baseline", "acat")] for parent in (RUNS[0], folder / "two"))
    assert one[0] == pytest.approx(two[0], abs=1e-4)
    assert one[1][0] == pytest.approx(two[1][0], rel=0.02)  # dropout of the slices' weights is each process's own
