"""train/autoencoder.py as it is launched: files, learning, exact resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from jsonargparse import auto_cli
from safetensors.torch import load_file
from tiny_data import write_tiny_data

from diffcf.errors import ConfigError
from diffcf.generators.autoencoder import AutoencoderGenerator, ConvAutoencoder
from diffcf.generators.generator import load_generator
from diffcf.trust import TrustStatistics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data"), scans=100)


def configure(script, manifest: Path, out: Path, **changes):
    path = ROOT / "configs" / "tiny" / "autoencoder.yaml"
    config = auto_cli(script.Config, as_positional=False, args=["--config", str(path)])
    return dataclasses.replace(config, manifests=[manifest], out=out, **changes)


def test_an_autoencoder_learns_and_is_written_with_trust_statistics(script, manifest, tmp_path) -> None:
    early = script.main(configure(script, manifest, tmp_path / "early", steps=1))
    late = script.main(configure(script, manifest, tmp_path / "late"))
    assert late["psnr"] > early["psnr"] + 3
    generator = load_generator(tmp_path / "late")
    assert isinstance(generator, AutoencoderGenerator)
    assert len(TrustStatistics.load(tmp_path / "late" / "generator").held_out["psnr"]) == 20


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_a_cut_run_resumes_bit_for_bit(script, manifest, tmp_path, loss) -> None:
    def run(out: str, steps: int) -> None:
        script.main(configure(script, manifest, tmp_path / out, cooldown=0.0, steps=steps, loss=loss))

    run("whole", 17)
    run("cut", 10)
    run("cut", 17)
    whole, resumed = (
        load_file(tmp_path / out / "checkpoints" / "step-000000017" / "tensors.safetensors") for out in ("whole", "cut")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_cannot_be_trained_is_refused(script, manifest, tmp_path) -> None:
    with pytest.raises(ConfigError, match="colour"):
        script.main(configure(script, manifest, tmp_path / "a", model={"colour": 3}))
    with pytest.raises(ConfigError, match="the loss is nan"):
        script.main(configure(script, manifest, tmp_path / "b", learning_rate=1e30, warmup=0, clip=1e30))
    few = write_tiny_data(tmp_path / "data", scans=30)
    script.main(configure(script, few, tmp_path / "c", steps=1))
    assert load_generator(tmp_path / "c").card.trust is None


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "autoencoder").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_valid_and_their_networks_can_be_built(script, path: Path) -> None:
    config = auto_cli(script.Config, as_positional=False, args=["--config", str(path)])
    model = ConvAutoencoder(image_size=config.preparation.size, **config.model)
    code = model.encode_semantic(torch.zeros(1, 1, config.preparation.size, config.preparation.size))
    assert code.numel() >= config.preparation.size**2  # no bottleneck
