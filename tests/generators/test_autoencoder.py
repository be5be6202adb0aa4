"""The plain autoencoder as a generator: codes, counting, gradient, files."""

from __future__ import annotations

import pytest
import torch

from diffcf.cards import GeneratorCard, Preparation
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.autoencoder import AutoencoderGenerator, ConvAutoencoder
from diffcf.generators.generator import SliceWise, load_diffusion, load_generator, save_generator
from diffcf.types import Code

SIZE = 16
CARD = GeneratorCard(Preparation(size=SIZE), trust=None)


def made(**changes) -> ConvAutoencoder:
    return ConvAutoencoder(**{"image_size": SIZE, "channels": (8, 16, 16), "code_dim": 16, **changes})


def test_three_blocks_each_way_and_a_code_as_large_as_the_image() -> None:
    model = made()
    image = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    code = model.encode_semantic(image)
    assert code.shape == (2, 16, 4, 4)
    assert code[0].numel() == image[0].numel()
    assert model(image).shape == image.shape
    for part in (model.encoder.blocks, model.blocks):
        assert sum(type(block).__name__ == "ResidualBlock" for block in part) == 3
    with pytest.raises(ConfigError, match="fewer blocks"):
        made(image_size=18)


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


def test_decode_is_differentiable_in_the_code() -> None:
    """Against finite differences in float64; the weights get no gradient."""
    generator = AutoencoderGenerator(made(), CARD).double()
    start = generator.encode(torch.rand(1, 1, SIZE, SIZE, dtype=torch.float64)).semantic.requires_grad_(True)
    weights = torch.randn(1, 1, SIZE, SIZE, dtype=torch.float64)
    (slope,) = torch.autograd.grad((generator.decode(Code(start)) * weights).sum(), start)
    direction = torch.randn_like(start)
    with torch.no_grad():
        along = [float((generator.decode(Code(start + step * direction)) * weights).sum()) for step in (1e-5, -1e-5)]
    assert float((slope * direction).sum()) == pytest.approx((along[0] - along[1]) / 2e-5, rel=1e-5)
    assert all(weight.grad is None for weight in generator.parameters())


def test_slice_by_slice() -> None:
    lifted = SliceWise(AutoencoderGenerator(made(), CARD))
    scan = torch.rand(2, 3, 1, SIZE, SIZE) * 2 - 1
    code = lifted.encode(scan)
    assert code.semantic.shape == (2, 3, 16, 4, 4)
    assert code.stochastic is None
    torch.testing.assert_close(lifted.decode(code)[1, 2:], lifted.generator.model(scan[1, 2:]))
    torch.testing.assert_close(lifted.preview(code), lifted.decode(code))


def test_one_loader_reads_both_kinds(tmp_path) -> None:
    model, image = made(), torch.rand(1, 1, SIZE, SIZE) * 2 - 1
    save_generator(model, CARD, tmp_path / "set" / "generator")
    loaded = load_generator(tmp_path / "set", steps=7)
    assert isinstance(loaded, AutoencoderGenerator)
    torch.testing.assert_close(loaded.model(image), model(image), rtol=0, atol=0)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    with pytest.raises(ConfigError, match="plain autoencoder"):
        load_diffusion(tmp_path / "set")
    with pytest.raises(ConfigError, match="one step already"):
        load_generator(tmp_path / "set", onestep=tmp_path / "student")
    made(code_dim=8).save_config(tmp_path / "set" / "generator")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_generator(tmp_path / "set")
