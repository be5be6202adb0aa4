"""train/onestep.py as it is launched: files, learning, exact resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import write_tiny_data
from tiny_generator import SIZE, tiny

from diffcf.cards import GeneratorCard, Preparation, Sampling
from diffcf.errors import ConfigError
from diffcf.generators.generator import load_generator, save_generator
from diffcf.training.command import read_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Data and a generator."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_data(folder / "data", scans=30)
    torch.manual_seed(0)
    card = GeneratorCard(Preparation(size=SIZE, slices=2, field="resize"), Sampling(steps=3), None)
    save_generator(tiny("spatial", "v"), card, folder / "generator")
    return folder


def configure(script, models: Path, out: Path, **changes):
    tiny_config = read_config(script.Config, ["--config", str(ROOT / "configs" / "tiny" / "onestep.yaml")])
    given = {"manifests": [models / "data" / "manifest.csv"], "generator": str(models), "out": out}
    return dataclasses.replace(tiny_config, **given, cache=models / "cache", **changes)


def test_a_student_learns_and_is_previewed_with(script, models, tmp_path, capsys) -> None:
    early = script.main(configure(script, models, tmp_path / "early", steps=1))
    late = script.main(configure(script, models, tmp_path / "late", steps=40))
    assert set(late) == {"psnr_inverted", "psnr_edited", "psnr_fresh"}
    assert late["psnr_edited"] > early["psnr_edited"] + 1
    assert "before:" in capsys.readouterr().out
    generator = load_generator(models, onestep=tmp_path / "late")
    assert generator.onestep is not None
    assert {path.name for path in (tmp_path / "late" / "onestep").iterdir()} == {"card.yaml", "model.safetensors"}


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_cut_run_resumes_bit_for_bit(script, models, tmp_path, precision) -> None:
    def run(out: str, steps: int) -> None:
        script.main(configure(script, models, tmp_path / out, cooldown=0.0, steps=steps, precision=precision))

    run("whole", 9)
    run("cut", 5)
    run("cut", 9)
    whole, resumed = (
        load_file(tmp_path / out / "checkpoints" / "step-000000009" / "tensors.safetensors") for out in ("whole", "cut")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(ConfigError, match="another learning_rate"):
        script.main(configure(script, models, tmp_path / "cut", precision=precision, learning_rate=0.1))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "onestep").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_valid(script, path: Path) -> None:
    config = read_config(script.Config, ["--config", str(path)])
    assert config.data
    assert config.out.name == f"onestep-{path.stem.replace('_', '-')}"
