"""train/agent.py from manifest to files, over a generator and a black box that are linear and therefore known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from einops import rearrange
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from diffcf.cards import ClassifierCard, GeneratorCard, Preparation
from diffcf.classifiers.agent import load_agent
from diffcf.classifiers.conv_agent import ConvAgent
from diffcf.distillation import KL, L1, MSE
from diffcf.errors import ConfigError
from diffcf.types import Code

ROOT = Path(__file__).parents[2]
SLICES, SIZE = 2, 4
PREPARATION = Preparation(size=SIZE, slices=SLICES)


class LinearGenerator:
    """A code that is the image in other units; encodes and decodes exactly, and counts what it was asked."""

    card = GeneratorCard(PREPARATION)
    encodes = 0

    def to(self, device: torch.device) -> LinearGenerator:
        return self

    def encode_semantic(self, image: Tensor) -> Tensor:
        self.encodes += len(image)
        return 5 * rearrange(image, "b s c h w -> b s (c h w)") - 1

    def encode(self, image: Tensor) -> Code:
        return Code(self.encode_semantic(image))

    def decode(self, code: Code) -> Tensor:
        return rearrange((code.semantic + 1) / 5, "b s (c h w) -> b s c h w", c=1, h=SIZE)


class LinearBlackBox(nn.Module):
    """Affine features of all slices together, and a linear head (or none to be seen)."""

    def __init__(self, head: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(SLICES * SIZE * SIZE, 6)
        self.last = nn.Linear(6, 2)
        nn.init.normal_(self.last.weight, std=3)
        self.head = self.last if head else None
        self.card = ClassifierCard(PREPARATION, ["no", "yes"])

    def features(self, image: Tensor) -> Tensor:
        return self.layer(rearrange(image, "b s c h w -> b (s c h w)"))

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.features(image))

    def view_of(self, preparation: Preparation):
        assert preparation == PREPARATION
        return lambda image: image


@pytest.fixture
def script(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, its models and images replaced by known ones; `script.generator` and `.blackbox` are what it gets."""
    script.generator, script.blackbox = LinearGenerator(), LinearBlackBox()
    pixels = torch.rand(120, SLICES, 1, SIZE, SIZE) * 2 - 1
    monkeypatch.setattr(script, "load_generator", lambda name, **options: name)
    monkeypatch.setattr(script, "SliceWise", lambda generator: script.generator)
    monkeypatch.setattr(script, "load_blackbox", lambda name: script.blackbox)
    monkeypatch.setattr(script, "content_hash", lambda name, part: f"hash of {name}")
    monkeypatch.setattr(
        script,
        "ScanDataset",
        lambda manifest, preparation, split: SimpleNamespace(
            images=torch.stack([pixels[int(row.path.stem)] for row in manifest.split(split)])
        ),
    )
    return script


def write_manifest(folder: Path, name: str = "manifest.csv", patients: str = "p", rows: range = range(120)) -> Path:
    lines = []
    for i in rows:
        (folder / f"{i}.npy").touch()
        lines.append(f"{i}.npy,{patients}{i},,{'train' if i < 80 else 'val'}")
    (folder / name).write_text("\n".join(["path,patient,label,split", *lines]))
    return folder / name


def configure(script: ModuleType, folder: Path, **changes: object):
    config = script.Config(
        out=folder / "run",
        manifests=[write_manifest(folder)],
        generator="gen",
        classifier="black",
        epochs=2,
        cache=folder / "cache",
    )
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("loss", [L1(), MSE(), KL()])
def test_an_agent_is_trained_written_and_agrees(script, tmp_path: Path, loss) -> None:
    figures = script.main(configure(script, tmp_path, loss=loss))
    assert figures["kl"] < 1e-5
    assert figures["accuracy"] == 1
    agent = load_agent(tmp_path / "run" / "agent")
    assert agent.card.blackbox_hash == "hash of black"
    assert agent.card.generator_hash == "hash of gen"
    assert agent.card.classes == ["no", "yes"]
    assert agent.card.about["loss"] == type(loss).__name__
    assert agent.card.about["validation"]["kl"] == pytest.approx(figures["kl"])
    assert torch.equal(agent.head.weight, script.blackbox.head.weight)


def test_codes_are_computed_once(script, tmp_path: Path) -> None:
    first = script.main(configure(script, tmp_path))
    asked = script.generator.encodes
    assert asked == 2 * 80 + 40  # training images and their mirror images, validation images
    assert script.main(configure(script, tmp_path)) == first
    assert script.generator.encodes == asked
    script.main(configure(script, tmp_path, generator="another"))
    assert script.generator.encodes == 2 * asked


def test_training_from_the_papers_random_start_improves_and_is_repeatable(script, tmp_path: Path) -> None:
    short = configure(script, tmp_path, init="random", epochs=1, learning_rate=1e-6)
    long = configure(script, tmp_path, init="random", epochs=30, learning_rate=3e-3)
    before, after = script.main(short), script.main(long)
    assert after["kl"] < before["kl"] / 5
    assert script.main(long) == after


def test_the_start_is_kept_where_training_only_harms(script, tmp_path: Path) -> None:
    script.main(configure(script, tmp_path, learning_rate=1.0, loss=KL()))
    assert load_agent(tmp_path / "run" / "agent").card.about["best_epoch"] == 0


def test_patience_ends_training(script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    judge = script.evaluate_loss
    monkeypatch.setattr(script, "evaluate_loss", lambda *of: seen.append(of) or judge(*of))
    script.main(configure(script, tmp_path, epochs=50, patience=3, learning_rate=1.0))
    assert len(seen) == 1 + 3  # the start, and three epochs that are no better


def test_edits_join_the_distillation_set(script, tmp_path: Path) -> None:
    script.main(configure(script, tmp_path, edits=2))
    about = load_agent(tmp_path / "run" / "agent").card.about
    assert about["train_codes"] == 2 * 80 + 2 * 80
    assert about["validation"]["n"] == 40  # figures stay on unedited images


def test_manifests_are_joined_and_checked_together(script, tmp_path: Path) -> None:
    halves = [write_manifest(tmp_path, f"{r.start}.csv", rows=r) for r in (range(40), range(40, 120))]
    joined = script.main(configure(script, tmp_path, manifests=halves))
    assert joined == script.main(configure(script, tmp_path))
    text = halves[1].read_text().replace("100.npy,p100,,val", "100.npy,p3,,val")
    halves[1].write_text(text)
    with pytest.raises(ConfigError, match="'p3' is in 2 splits"):
        script.main(configure(script, tmp_path, manifests=halves))


def test_a_convolutional_agent_for_a_spatial_code(script, tmp_path: Path) -> None:
    script.generator.encode_semantic = lambda image: image  # a code that is a map
    wanted = {"width": 8, "init": "random", "loss": KL(), "learning_rate": 1e-2}
    short = script.main(configure(script, tmp_path, epochs=1, **{**wanted, "learning_rate": 1e-6}))
    figures = script.main(configure(script, tmp_path, epochs=40, **wanted, half=True))
    assert figures["kl"] < 0.9 * short["kl"]  # eighty images of noise are few
    agent = load_agent(tmp_path / "run" / "agent")
    assert isinstance(agent, ConvAgent)
    assert agent.card.about["start"] == "random"
    for change in ({"init": "ridge"}, {"loss": L1()}, {"pool": 2}, {"edits": 1}):
        with pytest.raises(ConfigError, match="width > 0"):
            script.main(configure(script, tmp_path, **{**wanted, **change}))


def test_a_black_box_without_features_takes_the_kl_loss_only(script, tmp_path: Path) -> None:
    script.blackbox = LinearBlackBox(head=False)
    with pytest.raises(ConfigError, match="KL loss"):
        script.main(configure(script, tmp_path, loss=L1()))
    assert script.main(configure(script, tmp_path, loss=KL()))["kl"] < 1e-5


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "configs" / "agent").glob("*.yaml"), ROOT / "configs/tiny/agent.yaml"])
)
def test_configs_are_valid(script, path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(script.Config)
    parser.parse_args([f"--config={path}"])


def test_a_launcher_that_splits_the_weights_is_refused(script, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(ConfigError, match="launched with DEEPSPEED, which splits the weights"):
        script.main(configure(script, tmp_path))
    assert not (tmp_path / "run").exists()
