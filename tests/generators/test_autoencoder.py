"""Plain autoencoders as generators: codes, counting, gradient, files."""

from __future__ import annotations

import pytest
import torch

from diffcf.cards import GeneratorCard, Preparation
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.autoencoder import NETWORKS, Autoencoder, AutoencoderGenerator, ConvAutoencoder, KLAutoencoder
from diffcf.generators.generator import SliceWise, load_diffusion, load_generator, save_generator
from diffcf.types import Code

SIZE = 16
CARD = GeneratorCard(Preparation(size=SIZE), trust=None)
both = pytest.mark.parametrize("network", sorted(NETWORKS))


def made(network: str = "conv", **changes) -> Autoencoder:
    return NETWORKS[network](**{"image_size": SIZE, "channels": (8, 16, 16), "code_dim": 16, **changes})


@both
def test_a_code_is_a_map_and_sizes_must_divide(network: str) -> None:
    model, image = made(network), torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    assert model.encode_semantic(image).shape == (2, 16, 4, 4)
    assert model(image).shape == image.shape
    assert any(model.last is weight for weight in model.parameters())
    assert model.last.shape[:2] == (1, 8)  # from the narrowest level to a grey image
    with pytest.raises(ConfigError, match="fewer blocks"):
        made(network, image_size=18)


def test_the_mean_of_diffusers_posterior_is_the_code() -> None:
    model, image = made("kl"), torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    assert isinstance(model, KLAutoencoder)
    theirs = model.network(image, sample_posterior=False).sample
    torch.testing.assert_close(model(image), theirs, rtol=0, atol=0)
    torch.testing.assert_close(model.encode_semantic(image), model.network.encode(image).latent_dist.mode())
    assert (2, *model.code_shape) == model.posterior(image).std.shape


def test_three_blocks_each_way_and_a_code_as_large_as_the_image() -> None:
    model = made()
    image = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    code = model.encode_semantic(image)
    assert code.shape == (2, 16, 4, 4)
    assert code[0].numel() == image[0].numel()
    assert isinstance(model, ConvAutoencoder)
    for part in (model.encoder.blocks, model.blocks):
        assert sum(type(block).__name__ == "ResidualBlock" for block in part) == 3


def test_codes_have_no_noise_and_decodes_are_counted() -> None:
    generator = AutoencoderGenerator(made(), CARD)
    image = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    code = generator.encode(image)
    assert code.stochastic is None
    assert generator.forwards == 0
    torch.testing.assert_close(generator.decode(code), generator.model(image))
    torch.testing.assert_close(generator.preview(code), generator.model(image))
    assert generator.forwards == 2
    assert generator.spatial
    with pytest.raises(ConfigError, match="purif"):
        generator.purified(image, 0)


@both
def test_decode_is_differentiable_in_the_code(network: str) -> None:
    """Twice, against finite differences in float64; the weights get no gradient."""
    generator = AutoencoderGenerator(made(network), CARD).double()
    start = generator.encode(torch.rand(1, 1, SIZE, SIZE, dtype=torch.float64)).semantic.requires_grad_(True)
    weights = torch.randn(1, 1, SIZE, SIZE, dtype=torch.float64)
    direction = torch.randn_like(start)

    def value(code: torch.Tensor) -> torch.Tensor:
        return (generator.decode(Code(code)) * weights).sum()

    def slope(code: torch.Tensor) -> torch.Tensor:
        (gradient,) = torch.autograd.grad(value(code), code, create_graph=True)
        return (gradient * direction).sum()

    near = {"conv": 1e-5, "kl": 1e-3}[network]  # diffusers takes the softmax of its attention in single precision
    (curvature,) = torch.autograd.grad(slope(start), start)
    ahead, behind = ((start + step * direction).detach().requires_grad_() for step in (1e-5, -1e-5))
    assert float(slope(start)) == pytest.approx(float(value(ahead) - value(behind)) / 2e-5, rel=near)
    bent = float(slope(ahead) - slope(behind)) / 2e-5
    assert float((curvature * direction).sum()) == pytest.approx(bent, rel=near)
    assert all(weight.grad is None for weight in generator.parameters())


def test_slice_by_slice() -> None:
    lifted = SliceWise(AutoencoderGenerator(made(), CARD))
    scan = torch.rand(2, 3, 1, SIZE, SIZE) * 2 - 1
    code = lifted.encode(scan)
    assert code.semantic.shape == (2, 3, 16, 4, 4)
    assert code.stochastic is None
    torch.testing.assert_close(lifted.decode(code)[1, 2:], lifted.generator.model(scan[1, 2:]))
    torch.testing.assert_close(lifted.preview(code), lifted.decode(code))


@both
def test_one_loader_reads_all_kinds(network: str, tmp_path) -> None:
    model, image = made(network), torch.rand(1, 1, SIZE, SIZE) * 2 - 1
    save_generator(model, CARD, tmp_path / "set" / "generator")
    loaded = load_generator(tmp_path / "set", steps=7)
    assert isinstance(loaded, AutoencoderGenerator)
    assert type(loaded.model) is NETWORKS[network]
    torch.testing.assert_close(loaded.model(image), model(image), rtol=0, atol=0)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    with pytest.raises(ConfigError, match="plain autoencoder"):
        load_diffusion(tmp_path / "set")
    with pytest.raises(ConfigError, match="one step already"):
        load_generator(tmp_path / "set", onestep=tmp_path / "student")
    made(network, code_dim=8).save_config(tmp_path / "set" / "generator")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_generator(tmp_path / "set")
