"""train/classifier.py from manifest to black box, on scans whose class can be seen."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DistributedType
from jsonargparse import ArgumentParser
from sklearn.metrics import roc_auc_score
from tiny_data import write_tiny_data
from train_runs import launch

from diffcf.cards import Preparation
from diffcf.classifiers.blackbox import load_blackbox
from diffcf.classifiers.network import build_network
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.errors import ConfigError
from diffcf.training.classification import Augmentation

ROOT = Path(__file__).parents[2]
CONFIGS = sorted([*(ROOT / "configs" / "classifier").glob("*.yaml"), ROOT / "configs/tiny/classifier.yaml"])
ARGUMENTS = {"channels": [4, 4, 8, 8]}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data"), scans=100)


def configure(script: ModuleType, manifest: Path, out: Path, **changes: object):
    config = script.Config(
        out=out,
        manifests=[manifest],
        classes=["left", "right"],
        preparation=Preparation(size=16, slices=2, field="resize"),
        architecture="resnet18",
        architecture_args=ARGUMENTS,
        slice_mode="average",
        augmentation=Augmentation("none", shift=1, jitter=10),
        epochs=6,
        batch=8,
        learning_rate=1e-2,
    )
    return dataclasses.replace(config, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_blackbox(folder / "blackbox").state_dict())


def test_what_can_be_seen_is_learned_and_written(script, manifest: Path, tmp_path: Path) -> None:
    changes = {"balance": "sampling", "ema": 0.5, "select": "auc", "smoothing": 0.1}
    config = configure(script, manifest, tmp_path / "run", data="squares", epochs=8, **changes)
    figures = script.main(config)
    assert figures["auc"] > 0.9
    blackbox = load_blackbox(tmp_path / "run" / "blackbox")
    val = ScanDataset(Manifest.read(manifest), config.preparation, split="val")
    with torch.no_grad():
        score = blackbox(val.images).softmax(1)[:, 1]
    assert roc_auc_score(val.labels, score) == pytest.approx(figures["auc"])
    about = blackbox.card.about
    assert about["validation"]["auc"] == pytest.approx(figures["auc"], abs=1e-4)
    assert (about["train"], about["validation"]["n"]) == (60, 20)
    assert about["data"] == "squares"
    assert blackbox.card.classes == ["left", "right"]


def test_the_same_seed_gives_the_same_weights(script, manifest: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        script.main(configure(script, manifest, tmp_path / name, seed=seed, epochs=1, batch=10))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_test_rows_are_never_read(script, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    plain = script.ScanDataset
    monkeypatch.setattr(script, "ScanDataset", lambda rows, *of: read.extend(rows) or plain(rows, *of))
    script.main(configure(script, manifest, tmp_path / "own", epochs=1))
    script.main(configure(script, manifest, tmp_path / "folds", epochs=1, fold="all", folds=2))
    assert len(read) == 80 + 2 * 80
    assert {row.split for row in read} == {"train", "val"}


def test_every_fold_has_its_black_box_and_a_run_of_all_is_resumed(script, manifest, tmp_path: Path, capsys) -> None:
    config = configure(script, manifest, tmp_path, epochs=2, batch=20, fold="all", folds=3)
    means = script.main(config)
    result = json.loads((tmp_path / "folds.json").read_text())
    auc = [one["auc"] for one in result["folds"]]
    assert len(auc) == 3
    assert means["auc"] == result["mean"]["auc"] == pytest.approx(np.mean(auc))
    assert result["std"]["auc"] == pytest.approx(np.std(auc, ddof=1))
    single = script.main(configure(script, manifest, tmp_path / "one", epochs=2, batch=20, fold=1, folds=3))
    assert single == result["folds"][1]
    one, same = weights(tmp_path / "one"), weights(tmp_path / "fold-1")
    assert all(torch.equal(one[name], same[name]) for name in one)
    again = dataclasses.replace(config, out=tmp_path / "cut")
    cut(script, again, 3)  # in the second epoch of the second fold
    capsys.readouterr()
    assert script.main(again) == means
    assert [line for line in capsys.readouterr().out.splitlines() if "resumed" in line] == [
        "resumed after epoch 2",
        "resumed after epoch 1",
    ]
    assert not list((tmp_path / "cut").glob("**/checkpoints"))


def cut(script, config, whole_epochs: int) -> None:
    """The run, interrupted while the epoch after so many is judged."""
    real, judged = script.judge, itertools.count()

    def judge(*of) -> dict[str, float]:
        if next(judged) == whole_epochs:
            raise KeyboardInterrupt
        return real(*of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "judge", judge)
        with pytest.raises(KeyboardInterrupt):
            script.main(config)


def test_a_cut_run_resumes_bit_for_bit(script, manifest: Path, tmp_path: Path, capsys) -> None:
    changes = {"epochs": 4, "batch": 20, "ema": 0.5, "architecture_args": {**ARGUMENTS, "drop_rate": 0.3}}
    whole = configure(script, manifest, tmp_path / "whole", **changes)
    figures = script.main(whole)
    again = dataclasses.replace(whole, out=tmp_path / "cut")
    cut(script, again, 2)
    assert not (tmp_path / "cut" / "blackbox").exists()
    with pytest.raises(ConfigError, match="another learning_rate; give another run folder, or delete it"):
        script.main(dataclasses.replace(again, learning_rate=0.1))
    capsys.readouterr()
    assert script.main(again) == figures
    assert "resumed after epoch 2" in capsys.readouterr().out
    one, same = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not (tmp_path / "cut" / "checkpoints").exists()
    with pytest.raises(ConfigError, match="holds a black box already"):
        script.main(again)


def test_the_best_epoch_is_kept(script, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([0.6, 0.9, 0.7, 0.9, 0.8, 0.95])
    seen = []

    def judge(classifier, *of) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in classifier.network.net.state_dict().items()})
        return {"auc": next(told), "sum": 1.0, "saturated": 0.0}

    monkeypatch.setattr(script, "judge", judge)
    script.main(configure(script, manifest, tmp_path, select="auc", patience=3))
    assert len(seen) == 5  # three epochs without better than the second
    blackbox = load_blackbox(tmp_path / "blackbox")
    assert (blackbox.card.about["epoch"], blackbox.card.about["seed"]) == (2, 0)
    assert all(torch.equal(value, seen[1][name]) for name, value in blackbox.network.net.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["left", "right", "middle"]}, r"labels \[0, 1\], not one for each"),
        ({"fold": 7}, "expected 0 to 4"),
        ({"architecture_args": {"channels": [4, 4, 8, 8], "pretrained": True}}, "leave them out"),
    ],
)
def test_what_cannot_be_meant_is_refused(script, manifest: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(Exception, match=message) as raised:
        script.main(configure(script, manifest, tmp_path / "run", **changes))
    assert raised.value.exit_code in (2, 4)
    assert not (tmp_path / "run").exists()


def test_losses_that_are_not_numbers_leave_nothing(script, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finite"):
        script.main(configure(script, manifest, tmp_path / "run", epochs=1, learning_rate=1e30))
    assert not (tmp_path / "run" / "blackbox").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_valid(script, path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(script.Config)
    values = parser.instantiate(parser.parse_args([f"--config={path}"]))
    config = script.Config(**{field.name: values[field.name] for field in dataclasses.fields(script.Config)})
    card = script.ClassifierCard(**{name: getattr(config, name) for name in script.OF_CARD})
    if path.stem != "paper":  # a whole DenseNet121 takes a while to try
        parameters = sum(weight.numel() for weight in build_network(card).parameters())
        assert parameters * 2 < 4e6  # bytes in half precision: the weights come in the package


def test_a_launcher_that_splits_the_weights_is_refused(script, manifest, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match="launched with FSDP, which splits the weights"):
        script.main(configure(script, manifest, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_does(manifest: Path, tmp_path: Path) -> None:
    """With classes of unequal weight, of which each process's share of a batch has its own numbers."""
    lines = manifest.read_text().splitlines()
    few = manifest.with_name("few.csv")  # of the class "left" every fourth training scan
    rare = [line for line in lines if ",train," in line and line.split(",")[2] == "0"]
    few.write_text("\n".join(line for line in lines if line not in rare or line in rare[::4]) + "\n")
    given = tmp_path / "classifier.yaml"  # GroupNorm: statistics of a batch would be each process's own
    given.write_text(
        "classes: [left, right]\npreparation: {size: 16, slices: 1, field: resize}\narchitecture: diffcf_cnn7\n"
        "architecture_args: {width: 4}\naugmentation: {views: none, shift: 0, jitter: 0}\nbalance: loss\n"
        "epochs: 2\nbatch: 8\nlearning_rate: 0.01\n"
    )
    for processes in (1, 2):
        launch("classifier", given, tmp_path / str(processes), few, processes)
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-3, rtol=1e-3, msg=name)
