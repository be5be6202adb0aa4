"""train/autoencoder.py as it is launched: files, learning, exact resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import write_tiny_data
from train_runs import launch, losses

from diffcf.errors import ConfigError
from diffcf.generators.autoencoder import NETWORKS, AutoencoderGenerator, KLAutoencoder
from diffcf.generators.generator import load_generator
from diffcf.training.adversarial import Adversarial
from diffcf.training.command import read_config
from diffcf.trust import TrustStatistics

ROOT = Path(__file__).parents[2]
SMALL = Adversarial(start=4, channels=8, layers=2)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data"), scans=100)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Too few validation scans for trust statistics, which take longer than short runs."""
    return write_tiny_data(tmp_path_factory.mktemp("few"), scans=30)


def configure(script, manifest: Path, out: Path, tiny: str = "autoencoder", **changes):
    path = ROOT / "configs" / "tiny" / f"{tiny}.yaml"
    config = read_config(script.Config, ["--config", str(path)])
    return dataclasses.replace(config, manifests=[manifest], out=out, **changes)


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:09d}" / "tensors.safetensors")


def test_an_autoencoder_learns_and_is_written_with_trust_statistics(script, manifest, tmp_path) -> None:
    early = script.main(configure(script, manifest, tmp_path / "early", steps=1))
    late = script.main(configure(script, manifest, tmp_path / "late"))
    assert late["psnr"] > early["psnr"] + 3
    generator = load_generator(tmp_path / "late")
    assert isinstance(generator, AutoencoderGenerator)
    assert len(TrustStatistics.load(tmp_path / "late" / "generator").held_out["psnr"]) == 20


def check_resumes(script, manifest: Path, folder: Path, cut: int, steps: int, **changes) -> set[str]:
    """A run that was cut off ends where a whole one does, in all of its last checkpoint, whose parts are returned."""
    for out, last in (("whole", steps), ("cut", cut), ("cut", steps)):
        script.main(configure(script, manifest, folder / out, cooldown=0.0, steps=last, **changes))
    whole, resumed = weights(folder / "whole", steps), weights(folder / "cut", steps)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    return {name.partition("/")[0] for name in whole}


@pytest.mark.parametrize("loss", [pytest.param("l1", marks=pytest.mark.slow), "l2"])
def test_a_cut_run_resumes_bit_for_bit(script, manifest, tmp_path, loss) -> None:
    assert check_resumes(script, manifest, tmp_path, 10, 17, loss=loss) == {"model", "optimiser", "ema"}


@pytest.mark.parametrize(("network", "cut"), [("conv", 2), pytest.param("conv", 6, marks=pytest.mark.slow), ("kl", 6)])
def test_a_cut_adversarial_run_resumes_bit_for_bit(script, few, tmp_path, network: str, cut: int) -> None:
    parts = check_resumes(script, few, tmp_path, cut, 8, network=network, adversarial=SMALL)
    assert parts == {"model", "optimiser", "ema", "memory"}


@pytest.mark.parametrize("network", ["conv", "kl"])
def test_an_adversarial_run_is_a_plain_one_until_the_discriminator_starts(script, few, tmp_path, network) -> None:
    def run(out: str, steps: int, **changes) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        given = {"cooldown": 0.0, "network": network, "steps": steps, **changes}
        figures = script.main(configure(script, few, tmp_path / out, **given))
        return weights(tmp_path / out, steps), figures

    plain, before, after = run("plain", 4), run("run", 4, adversarial=SMALL), run("run", 5, adversarial=SMALL)
    assert all(torch.equal(value, before[0][name]) for name, value in plain[0].items())
    assert set(plain[1]) == set(before[1]) == {"psnr", "ssim"}
    assert set(after[1]) == {"psnr", "ssim", "hinge", "adaptive_weight"}
    assert after[1]["hinge"] == pytest.approx(1, abs=0.2)  # it has learned nothing yet
    first = "memory/parts.0.weight"
    assert not torch.equal(before[0][first], after[0][first])


def test_an_adversarial_autoencoder_learns_and_says_what_it_is(script, manifest, tmp_path) -> None:
    early = script.main(configure(script, manifest, tmp_path / "early", "autoencoder_adversarial", steps=1))
    late = script.main(configure(script, manifest, tmp_path / "late", "autoencoder_adversarial"))
    assert late["psnr"] > early["psnr"] + 3
    generator = load_generator(tmp_path / "late")
    assert isinstance(generator, AutoencoderGenerator)
    assert isinstance(generator.model, KLAutoencoder)
    assert generator.card.about["adversarial"] == {"weight": 0.5, "start": 10, "channels": 8, "layers": 2}
    assert len(TrustStatistics.load(tmp_path / "late" / "generator").held_out["psnr"]) == 20


def test_bfloat16_passes_train_single_precision_weights(script, few, tmp_path) -> None:
    config = configure(script, few, tmp_path, "autoencoder_adversarial", steps=6, precision="bf16", adversarial=SMALL)
    assert script.main(config)["adaptive_weight"] > 0
    assert {value.dtype for value in weights(tmp_path, 6).values()} == {torch.float32}


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_and_resume_exactly(few, tmp_path) -> None:
    """The adaptive weight is of the whole batch, however many processes share it.

    Small steps on a smooth error: signs of gradients that are all but 0 are rounding, and Adam's first steps are signs.
    """
    tiny = ROOT / "configs" / "tiny" / "autoencoder_adversarial.yaml"
    given = {"cooldown": 0, "loss": "l2", "learning_rate": 1e-3}
    launch("autoencoder", tiny, tmp_path / "one", few, 1, **given, steps=16)
    launch("autoencoder", tiny, tmp_path / "two", few, 2, **given, steps=16)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(two) == 16
    torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=0, atol=2e-5)
    assert min(two[10:]) > max(two[7:10]) + 0.3  # with the hinge loss from there on
    launch("autoencoder", tiny, tmp_path / "cut", few, 2, **given, steps=13)
    launch("autoencoder", tiny, tmp_path / "cut", few, 2, **given, steps=16)
    whole, resumed = weights(tmp_path / "two", 16), weights(tmp_path / "cut", 16)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_cannot_be_trained_is_refused(script, manifest, few, tmp_path) -> None:
    with pytest.raises(ConfigError, match="colour"):
        script.main(configure(script, manifest, tmp_path / "a", model={"colour": 3}))
    with pytest.raises(ConfigError, match="expected arguments of KLAutoencoder"):
        script.main(configure(script, manifest, tmp_path / "d", network="kl", model={"channels": [12, 20]}))
    with pytest.raises(ConfigError, match="16 pixels leave no patch to 3 layers"):
        script.main(configure(script, manifest, tmp_path / "e", adversarial=Adversarial()))
    with pytest.raises(ConfigError, match="the loss is nan"):
        script.main(configure(script, manifest, tmp_path / "b", learning_rate=1e30, warmup=0, clip=1e30))
    script.main(configure(script, few, tmp_path / "c", steps=1))
    assert load_generator(tmp_path / "c").card.trust is None


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "autoencoder").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_valid_and_their_networks_can_be_built(script, path: Path) -> None:
    config = read_config(script.Config, ["--config", str(path)])
    model = NETWORKS[config.network](image_size=config.preparation.size, **config.model)
    code = model.encode_semantic(torch.zeros(1, 1, config.preparation.size, config.preparation.size))
    assert code.numel() >= config.preparation.size**2 or config.network == "kl"  # paper 003 has no bottleneck
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(355_000, rel=0.01)  # both alike
