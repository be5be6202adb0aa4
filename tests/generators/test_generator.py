"""The generator: round trips, counting, slices, files."""

from __future__ import annotations

import pytest
import torch
import yaml
from tiny_generator import SIZE, tiny

from diffcf.cards import GeneratorCard, Preparation, Sampling
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.generator import DiffusionGenerator, SliceWise, load_generator, save_generator
from diffcf.generators.space import same_stochastic
from diffcf.types import Code
from diffcf.weights import MODEL_WEIGHTS

CARD = GeneratorCard(Preparation(size=SIZE), Sampling(steps=5), None)
CODES = ["global", "spatial"]


def made(code: str = "global", **sampling) -> DiffusionGenerator:
    return DiffusionGenerator(tiny(code), CARD, Sampling(**{"steps": 5, **sampling}))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, SIZE, SIZE) * 2 - 1


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "cubic", "logsnr"])
def test_exact_inversion_returns_in_float64(code: str, spacing: str, images) -> None:
    generator = made(code, sampler="obelm", spacing=spacing, steps=20).double()
    with torch.no_grad():
        encoded = generator.encode(images.double())
        back = generator.decode(encoded)
    assert encoded.stochastic.shape == (3, 2, 1, SIZE, SIZE)
    assert float((back - images).abs().max()) < 1e-8


@pytest.mark.parametrize("sampler", ["ddim", "dpm", "obelm"])
def test_forwards_are_counted(sampler: str, images) -> None:
    generator = made(sampler=sampler)
    encoded = generator.encode(images)
    assert generator.forwards == 5
    generator.decode(encoded)
    assert generator.forwards <= 10
    before = generator.forwards
    generator.encode_semantic(images)
    assert generator.forwards == before


@pytest.mark.parametrize("sampler", ["ddim", "dpm", "obelm"])
@pytest.mark.parametrize("code", CODES)
def test_decode_is_differentiable_in_the_semantic_code(sampler: str, code: str, images) -> None:
    """Against finite differences in float64."""
    generator = made(code, sampler=sampler, steps=3).double()
    encoded = generator.encode(images[:1].double())
    start = encoded.semantic.detach().requires_grad_(True)
    weights = torch.randn(1, 1, SIZE, SIZE, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((generator.decode(Code(start, encoded.stochastic)) * weights).sum(), start)
    direction = torch.randn_like(start)

    def along(step: float) -> float:
        with torch.no_grad():
            return float((generator.decode(Code(start + step * direction, encoded.stochastic)) * weights).sum())

    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)
    assert all(weight.grad is None for weight in generator.parameters())


def test_codes_of_another_sampler_are_refused(images) -> None:
    encoded = made(sampler="obelm").encode(images)
    with pytest.raises(ConfigError, match="2 noise state"):
        made().decode(encoded)
    with pytest.raises(ConfigError, match="fresh_stochastic"):
        made().decode(Code(encoded.semantic))
    with pytest.raises(ConfigError, match="carries two"):
        made(sampler="obelm").noised_stochastic(images, 0)
    with pytest.raises(ConfigError, match="sampler"):
        made(sampler="euler")


def test_fresh_noise_depends_on_the_seed_alone(images) -> None:
    generator = made()
    semantic = generator.encode_semantic(images)
    one, same, other = (generator.fresh_stochastic(semantic, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (3, 1, 1, SIZE, SIZE)
    noised = generator.noised_stochastic(images, 1)
    alpha, sigma = float(generator.grid.alpha[-1]), float(generator.grid.sigma[-1])
    torch.testing.assert_close(noised[:, 0], alpha * images + sigma * one[:, 0])


@pytest.mark.parametrize("sampler", ["ddim", "obelm"])
@pytest.mark.parametrize("code", CODES)
def test_slice_by_slice(code: str, sampler: str) -> None:
    generator = made(code, sampler=sampler).double()
    lifted = SliceWise(generator)
    scans = torch.rand(2, 3, 1, SIZE, SIZE, dtype=torch.float64) * 2 - 1
    encoded = lifted.encode(scans)
    assert encoded.semantic.shape[:2] == (2, 3)
    assert encoded.stochastic.shape[:3] == (2, 3, generator.states)
    whole = lifted.decode(encoded)
    assert whole.shape == scans.shape
    single = generator.decode(generator.encode(scans[1, 2:3]))
    torch.testing.assert_close(whole[1, 2:3], single)
    fresh = lifted.fresh_stochastic(encoded.semantic, 3)
    assert fresh.shape == encoded.stochastic.shape
    assert not torch.equal(fresh[0, 0], fresh[0, 1])


def test_saved_and_loaded(tmp_path, images) -> None:
    model = tiny("spatial", "v")
    save_generator(model, CARD, tmp_path / "generator")
    for source in (tmp_path / "generator", tmp_path):
        loaded = load_generator(source)
        torch.testing.assert_close(loaded.encode_semantic(images), model.encode_semantic(images), rtol=0, atol=0)
    assert loaded.sampling == Sampling(steps=5)
    assert load_generator(tmp_path, steps=9, sampler="dpm", spacing=None).sampling == Sampling("dpm", 9)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert sorted(path.name for path in (tmp_path / "generator").iterdir()) == [
        "card.yaml",
        "config.json",
        MODEL_WEIGHTS,
    ]
    with pytest.raises(ConfigError, match="sampler, steps and spacing"):
        load_generator(tmp_path, stride=3)


def test_half_precision_files_are_half_as_large_and_computed_in_single(tmp_path, images) -> None:
    model = tiny()
    save_generator(model, CARD, tmp_path / "full")
    save_generator(model, CARD, tmp_path / "half", half=True)
    full, half = ((tmp_path / name / MODEL_WEIGHTS).stat().st_size for name in ("full", "half"))
    assert half < 0.62 * full
    loaded = load_generator(tmp_path / "half")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.encode_semantic(images), model.encode_semantic(images), rtol=0, atol=5e-3)


def test_broken_folders_are_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="bundled"):
        load_generator(tmp_path / "nothing")
    save_generator(tiny(), CARD, tmp_path / "a")
    card = yaml.safe_load((tmp_path / "a" / "card.yaml").read_text())
    card["preparation"]["size"] = 32
    (tmp_path / "a" / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(CheckpointError, match="correct the card"):
        load_generator(tmp_path / "a")
    save_generator(tiny(), CARD, tmp_path / "b")
    other = tiny(code_dim=12)
    other.save_config(tmp_path / "b")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_generator(tmp_path / "b")
    (tmp_path / "b" / MODEL_WEIGHTS).write_bytes(b"pickle?")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_generator(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_generator(tmp_path / "b")


def predicting(what: str) -> DiffusionGenerator:
    return DiffusionGenerator(tiny("spatial", what), CARD, Sampling(steps=5))


def test_a_preview_is_one_evaluation_and_differentiable(images) -> None:
    generator = predicting("v")
    image = images[:2]
    code = generator.encode(image)
    before = generator.forwards
    semantic = code.semantic.clone().requires_grad_(True)
    seen = generator.preview(Code(semantic, code.stochastic))
    assert generator.forwards == before + 1
    assert generator.previews
    assert SliceWise(generator).previews
    assert seen.shape == image.shape
    (slope,) = torch.autograd.grad(seen.square().sum(), semantic)
    assert slope.abs().sum() > 0
    # x_0 = alpha x_T - sigma v at the noisiest level.
    t = torch.full((2,), int(generator.grid.timesteps[-1]))
    alpha, sigma = generator.model.levels(t, image)
    noise = code.stochastic[:, -1]
    exact = alpha * noise - sigma * generator.model(noise, t, code.semantic)
    torch.testing.assert_close(seen, exact, atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match="previewed"):
        generator.preview(Code(code.semantic))


def test_a_network_that_predicts_epsilon_is_decoded_instead(images) -> None:
    generator = predicting("epsilon")
    code = generator.encode(images)
    torch.testing.assert_close(generator.preview(code), generator.decode(code))
    assert not generator.previews
    assert not SliceWise(generator).previews


def test_purification_forgets_what_is_finer_than_its_noise() -> None:
    """With a denoiser that knows the data to be 0, what comes back is 0, whatever was added."""
    generator = predicting("v")

    def knows(x: torch.Tensor, t: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        alpha, sigma = generator.model.levels(t, x)
        return alpha * x / sigma

    generator.model.forward = knows
    image = 0.1 * torch.sign(torch.randn(2, 1, SIZE, SIZE))
    cleaned = generator.purified(image, seed=0)
    assert cleaned.shape == image.shape
    assert float(cleaned.abs().mean()) < 0.1 * float(image.abs().mean())


@pytest.mark.parametrize("sampler", ["ddim", "obelm"])
def test_the_same_noise_does_not_depend_on_the_neighbours(sampler: str) -> None:
    """The exact sampler's pair of states depends on the code, that of its own scan."""
    lifted = SliceWise(made("spatial", sampler=sampler))
    semantic = lifted.encode_semantic(torch.rand(3, 2, 1, SIZE, SIZE) * 2 - 1)
    together = same_stochastic(lifted, semantic, 5)
    torch.testing.assert_close(together[2:], same_stochastic(lifted, semantic[2:], 5))
    assert torch.allclose(together[0], together[2]) == (sampler == "ddim")


def test_a_spacing_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="spacing 'quad'"):
        made(spacing="quad")
