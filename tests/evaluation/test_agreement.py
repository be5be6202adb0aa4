"""Table 1 over a black box that is known: a perfect agent, a deaf one and the control."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from einops import rearrange
from sklearn.metrics import f1_score, recall_score, roc_auc_score
from torch import Tensor, nn

from diffcf.cards import AgentCard, ClassifierCard, GeneratorCard, Preparation
from diffcf.classifiers.agent import Agent, save_agent
from diffcf.errors import ConfigError

ROOT = Path(__file__).parents[2]
PREPARATION = Preparation(size=4, slices=1)
HASHES = {"generator_hash": "hash of gen", "blackbox_hash": "hash of black"}


class Teacher(nn.Module):
    """Says yes to about a third of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 2)
        self.head.weight.data[1] *= 4
        self.head.bias.data = torch.tensor([0.4, -0.1])
        self.card = ClassifierCard(PREPARATION, ["no", "yes"])

    def features(self, image: Tensor) -> Tensor:
        return rearrange(image, "b s c h w -> b (s c h w)")

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))

    def view_of(self, preparation: Preparation):
        return lambda image: image


def encode_semantic(image: Tensor) -> Tensor:
    return rearrange(image, "b s c h w -> b s (c h w)")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    module = importlib.import_module("agreement")
    teacher = Teacher()
    pixels = torch.rand(100, 1, 1, 4, 4) * 2 - 1

    def dataset(manifest: str, preparation: Preparation, split: str) -> SimpleNamespace:
        chosen = range(40) if split == "train" else range(40, 100)
        return SimpleNamespace(images=pixels[chosen], patients=[f"{split}{i // 2}" for i in chosen])

    generator = SimpleNamespace(
        card=GeneratorCard(PREPARATION), encode_semantic=encode_semantic, to=lambda device: None
    )
    for name, value in {
        "teacher": teacher,
        "pixels": pixels,
        "load_generator": lambda name: name,
        "SliceWise": lambda _: generator,
        "load_blackbox": lambda name: teacher,
        "content_hash": lambda name, part: f"hash of {name}",
        "Manifest": SimpleNamespace(read=str),
        "ScanDataset": dataset,
    }.items():
        monkeypatch.setattr(module, name, value, raising=False)
    return module


def agent_at(folder: Path, teacher: Teacher, noise: float, **hashes: str) -> str:
    agent = Agent.for_blackbox(teacher, (16,))
    with torch.no_grad():
        agent.linear.weight.copy_(torch.eye(16) + noise * torch.randn(16, 16))
        agent.linear.bias.zero_()
    folder.mkdir(parents=True)
    save_agent(agent, AgentCard(["no", "yes"], 1, **{**HASHES, **hashes}), folder)
    return str(folder)


def configure(script: ModuleType, folder: Path, agents: dict[str, str]):
    return script.Config(
        name="toy",
        manifest=folder / "manifest.csv",
        generator="gen",
        classifier="black",
        agents=agents,
        cache=None,
        resamples=40,
        out=folder / "results",
    )


def test_the_table(script, tmp_path: Path) -> None:
    agents = {"L1": agent_at(tmp_path / "a", script.teacher, 0.0), "KL": agent_at(tmp_path / "b", script.teacher, 0.7)}
    script.main(configure(script, tmp_path, agents))
    result = json.loads((tmp_path / "results" / "agreement_toy.json").read_text())
    perfect, noisy, control = result["rows"]
    assert [row["method"] for row in result["rows"]] == ["L1", "KL", "majority control"]
    assert [row["default"] for row in result["rows"]] == [True, False, False]
    assert {row["n"] for row in result["rows"]} == {60}
    assert {row["patients"] for row in result["rows"]} == {30}
    for key in ("auc", "accuracy", "sensitivity", "specificity", "f1"):
        assert perfect[key] == perfect[f"{key}_low"] == perfect[f"{key}_high"] == 1
        assert noisy[f"{key}_low"] <= noisy[key] <= noisy[f"{key}_high"]
    assert perfect["kl"] == pytest.approx(0, abs=1e-9)
    assert 0 < noisy["kl_low"] < noisy["kl"] < noisy["kl_high"]

    with torch.no_grad():
        probability = script.teacher(script.pixels).double().softmax(1)
    mean, test = probability[:40].mean(0), probability[40:]
    share = (test.argmax(1) == mean.argmax()).double().mean()
    assert control["accuracy"] == pytest.approx(float(share), abs=1e-5)
    assert control["auc"] == 0.5
    assert {control["sensitivity"], control["specificity"]} == {0, 1}
    assert control["kl"] == pytest.approx(float((test * (test / mean).log()).sum(1).mean()), rel=1e-4)


def test_figures_equal_scikit_learn(script) -> None:
    student, teacher = torch.randn(2, 80, 2)
    figures = script.agreement(student, teacher)
    truth, said = teacher.argmax(1), student.argmax(1)
    assert figures["auc"] == pytest.approx(roc_auc_score(truth, student.softmax(1)[:, 1]))
    assert figures["accuracy"] == pytest.approx(float((truth == said).double().mean()))
    assert figures["sensitivity"] == pytest.approx(recall_score(truth, said))
    assert figures["specificity"] == pytest.approx(recall_score(truth, said, pos_label=0))
    assert figures["f1"] == pytest.approx(f1_score(truth, said))


def test_several_classes_are_one_against_the_rest(script) -> None:
    student, teacher = torch.randn(2, 80, 3)
    figures = script.agreement(student, teacher, positive=1)
    truth, said = teacher.argmax(1), student.argmax(1)
    assert figures["accuracy"] == pytest.approx(float((truth == said).double().mean()))
    assert figures["sensitivity"] == pytest.approx(recall_score(truth == 1, said == 1))
    assert figures["auc"] == pytest.approx(roc_auc_score(truth == 1, student.softmax(1)[:, 1]))


def test_a_teacher_of_one_mind_has_no_auc(script) -> None:
    teacher = torch.tensor([[2.0, 0.0]]).repeat(10, 1)
    assert math.isnan(script.agreement(torch.randn(10, 2), teacher)["auc"])


def test_the_agent_of_another_black_box_is_refused(script, tmp_path: Path) -> None:
    agents = {"L1": agent_at(tmp_path / "a", script.teacher, 0.0, blackbox_hash="another")}
    with pytest.raises(ConfigError, match="another generator or black box"):
        script.main(configure(script, tmp_path, agents))
