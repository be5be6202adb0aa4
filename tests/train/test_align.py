"""train/align.py: every method trains and is written, resumes exactly, and refuses what it cannot align with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_data import write_tiny_data
from train_runs import launch, losses

from diffcf.alignment.cdep import Decomposition
from diffcf.alignment.icnn import TemplateLoss
from diffcf.alignment.loss import Inner
from diffcf.alignment.methods import Alternating, Augmented, CounterfactualAlignment, RightReasons, Vanilla
from diffcf.alignment.starts import Starts
from diffcf.cards import Preparation
from diffcf.classifiers.blackbox import load_blackbox
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.errors import ConfigError
from diffcf.implicit import GaussNewton
from diffcf.training.checkpoint import newest_checkpoint
from diffcf.training.command import read_config

ROOT = Path(__file__).parents[2]
ALIGNED = CounterfactualAlignment(wait=0.0, share=1.0, inner=Inner(solver=GaussNewton(2)))
WARM = dataclasses.replace(ALIGNED, warm=True)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data"), scans=60)


def configure(script: ModuleType, manifest: Path, out: Path, **changes: object):
    config = script.Config(
        out=out,
        manifests=[manifest],
        classes=["left", "right"],
        preparation=Preparation(size=16, slices=2, field="resize"),
        architecture_args={"width": 4},
        slice_mode="average",
        method=ALIGNED,
        views="none",
        widen=1,
        steps=6,
        batch=8,
        warmup=1,
        learning_rate=3e-3,
        ema=0.9,
        validate_every=3,
        save_every=3,
    )
    return dataclasses.replace(config, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_blackbox(folder / "blackbox").state_dict())


def test_passes_stay_in_single_precision_whatever_the_launcher_says(
    script, manifest: Path, tmp_path, monkeypatch
) -> None:
    script.main(configure(script, manifest, tmp_path / "plain", steps=3))
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    script.main(configure(script, manifest, tmp_path / "launched", steps=3))
    plain, launched = weights(tmp_path / "plain"), weights(tmp_path / "launched")
    assert all(torch.equal(plain[name], launched[name]) for name in plain)


@pytest.mark.parametrize(
    "method",
    [ALIGNED, CounterfactualAlignment(), RightReasons(), RightReasons(1.0, "normalised"),
     Augmented(), Vanilla()],
    ids=["aligned", "default", "rrr", "normalised", "cidg", "vanilla"],
)  # fmt: skip
def test_every_method_trains_and_is_written(script, manifest: Path, tmp_path: Path, method) -> None:
    config = configure(script, manifest, tmp_path / "run", method=method, shortcut=Shortcut("intensity", share=0.3))
    figures = script.main(config)
    assert 0 <= figures["accuracy"] <= 1
    assert figures["cross_entropy"] > 0
    if isinstance(method, CounterfactualAlignment):
        assert 0 <= figures["outside"] <= 1
        assert figures["moved"] > 0
    blackbox = load_blackbox(tmp_path / "run" / "blackbox")
    assert blackbox.card.about["method"] == type(method).__name__
    assert blackbox(blackbox.example()).isfinite().all()


@pytest.mark.parametrize(
    ("method", "architecture"),
    [(Decomposition(decomposition_share=1.0), "diffcf_cnn7"), (TemplateLoss(), "diffcf_icnn")],
)
def test_methods_of_one_architecture_train(script, manifest: Path, tmp_path: Path, method, architecture: str) -> None:
    config = configure(
        script, manifest, tmp_path / "run", method=method, architecture=architecture, slice_mode="channels"
    )
    assert script.main(config)["penalty"] != 0
    assert load_blackbox(tmp_path / "run" / "blackbox").card.architecture == architecture


def cut(script, config, step: int) -> None:
    """Train until `step` begins, and be cut off there."""
    real = script.loop.train

    def interrupted(*arguments, **options):
        inputs = options["inputs"]

        def until(now: int):
            if now == step:
                raise KeyboardInterrupt
            return inputs(now)

        return real(*arguments, **options | {"inputs": until})

    script.loop.train = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            script.main(config)
    finally:
        script.loop.train = real


@pytest.mark.parametrize(
    "changes",
    [pytest.param({"views": "square"}, marks=pytest.mark.slow),
     {"method": WARM, "batch": 16, "alternating": Alternating(1, 2)}],
    ids=["joint", "warm, alternating"],
)  # fmt: skip
def test_a_run_that_was_cut_off_ends_where_a_whole_one_does(script, manifest: Path, tmp_path: Path, changes) -> None:
    whole = configure(script, manifest, tmp_path / "whole", **changes)
    script.main(whole)
    again = dataclasses.replace(whole, out=tmp_path / "cut")
    cut(script, again, 4)
    script.main(again)
    last = [newest_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "cut")]
    assert last[0].step == last[1].step == whole.steps
    for name, value in last[0].tensors.items():
        assert torch.equal(value, last[1].tensors[name]), name
    assert ("memory/change" in last[0].tensors) == whole.method.warm
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "cut")[name]), name


def test_a_warm_run_needs_what_its_checkpoint_keeps(script, manifest: Path, tmp_path: Path, monkeypatch) -> None:
    config = configure(script, manifest, tmp_path / "run", method=WARM, batch=16, views="mirror")
    figures = script.main(config)
    assert 0 < figures["warm"] <= 1
    again = dataclasses.replace(config, out=tmp_path / "cut")
    cut(script, again, 4)
    monkeypatch.setattr(Starts, "restore", lambda starts, named: None)
    script.main(again)
    whole, forgot = (newest_checkpoint(tmp_path / name / "checkpoints").tensors for name in ("run", "cut"))
    assert any(not torch.equal(whole[name], forgot[name]) for name in whole if name.startswith("model/"))


def test_alternating_steps_are_on_one_loss_each(script, manifest: Path, tmp_path: Path) -> None:
    """After one step, which is on classification, the weights are those of plain training; after two they are not."""
    for steps, same in ((1, True), (2, False)):
        for name, method in (("plain", Vanilla()), ("turns", ALIGNED)):
            alternating = Alternating() if name == "turns" else None
            out = tmp_path / f"{name}{steps}"
            script.main(configure(script, manifest, out, method=method, alternating=alternating, steps=steps))
        plain, turns = weights(tmp_path / f"plain{steps}"), weights(tmp_path / f"turns{steps}")
        assert all(torch.equal(value, turns[name]) for name, value in plain.items()) == same
    with pytest.raises(ConfigError, match="alternating: null"):
        script.main(configure(script, manifest, tmp_path / "none", method=Vanilla(), alternating=Alternating()))


def test_a_config_asks_for_warm_starts_and_turns(script, manifest: Path, tmp_path: Path) -> None:
    tiny = ROOT / "configs" / "tiny" / "align.yaml"
    given = ["--method.warm=true", "--alternating.alignment=2", "--steps=6", f"--out={tmp_path / 'run'}"]
    config = read_config(script.Config, [f"--config={tiny}", f'--manifests=["{manifest}"]', *given])
    assert config.method.warm
    assert config.method.share == 1  # what else the config says is kept
    assert config.alternating == Alternating(1, 2)
    assert script.main(config)["warm"] > 0


def test_alignment_changes_what_is_learned(script, manifest: Path, tmp_path: Path) -> None:
    for name, method in (("plain", Vanilla()), ("aligned", ALIGNED)):
        script.main(configure(script, manifest, tmp_path / name, method=method))
    plain, aligned = weights(tmp_path / "plain"), weights(tmp_path / "aligned")
    assert any(not torch.equal(value, aligned[name]) for name, value in plain.items())


def test_any_timm_backbone_and_what_is_said_of_batch_norm(script, manifest: Path, tmp_path: Path) -> None:
    options = {"architecture": "resnet18", "architecture_args": {"channels": [4, 4, 8, 8]}}
    with pytest.warns(UserWarning, match="GroupNorm"):
        script.main(configure(script, manifest, tmp_path / "run", steps=3, **options))
    statistics = weights(tmp_path / "run")["network.net.bn1.running_mean"]
    assert bool(statistics.any())  # the averaged weights come with the trained statistics


@pytest.mark.slow
@pytest.mark.parametrize("warm", [False, True])
def test_two_processes_give_the_losses_of_one(manifest: Path, tmp_path: Path, warm: bool) -> None:
    tiny = ROOT / "configs" / "tiny" / "align.yaml"
    settings = {"share": 1.0, "swapped": 0.0, "inner": {"solver": {"steps": 2}}}  # swapped pairs are of one process
    settings |= {"warm": warm}
    turns = {"alternating": json.dumps({"classification": 1, "alignment": 3}), "views": "square"} if warm else {}
    method = json.dumps({"class_path": "CounterfactualAlignment", "init_args": settings})
    for name, processes in (("one", 1), ("two", 2)):
        launch("align", tiny, tmp_path / name, manifest, processes, batch=12, method=method, **turns)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(two) == 8  # the steps of the tiny config
    torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=0, atol=1e-4)
    # One process or two can be told apart by rounding only: if the launcher had started one, this would be equal.
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    if warm:  # each process keeps what both have found, so that either can write all of it
        kept = [newest_checkpoint(tmp_path / name / "checkpoints").tensors for name in ("one", "two")]
        assert sorted(kept[0]["memory/key"].tolist()) == sorted(kept[1]["memory/key"].tolist())


def rewritten(manifest: Path, change) -> Path:
    lines = manifest.read_text().splitlines()
    other = manifest.parent / "other.csv"
    other.write_text("\n".join([lines[0], *(change(line) for line in lines[1:])]) + "\n")
    return other


def test_scans_without_a_mask_are_refused_or_left_out(script, manifest: Path, tmp_path: Path) -> None:
    without = rewritten(manifest, lambda line: line.replace("m5.npz", "").replace("m10.npz", ""))
    with pytest.raises(ConfigError, match=r"2 scan\(s\) with no mask.*5\.npz"):
        script.main(configure(script, without, tmp_path / "run"))
    script.main(configure(script, without, tmp_path / "run", maskless="leave out", steps=3))


def test_labels_that_are_no_class_are_refused(script, manifest: Path, tmp_path: Path) -> None:
    wrong = rewritten(manifest, lambda line: line.replace(",p6,0,", ",p6,2,"))
    with pytest.raises(ConfigError, match=r"labels \[0, 1, 2\]"):
        script.main(configure(script, wrong, tmp_path / "run"))
