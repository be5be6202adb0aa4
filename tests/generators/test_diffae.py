"""The network: its shapes, what it predicts, and what its code reaches."""

from __future__ import annotations

import pytest
import torch
from tiny_generator import SIZE, tiny

from diffcf.errors import ConfigError
from diffcf.generators.diffae import DiffusionAutoencoder

CODES = ["global", "spatial"]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, SIZE, SIZE) * 2 - 1


@pytest.mark.parametrize("code", CODES)
def test_shapes(code: str, images) -> None:
    model = tiny(code)
    semantic = model.encode_semantic(images)
    assert semantic.shape == ((3, 8) if code == "global" else (3, 4, 4, 4))
    assert model(images, torch.tensor([0, 500, 999]), semantic).shape == images.shape


def test_the_papers_network_has_a_512_vector() -> None:
    model = DiffusionAutoencoder(image_size=32)
    assert model.encode_semantic(torch.zeros(2, 1, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize("code", CODES)
def test_the_code_moves_the_image_and_has_a_gradient(code: str, images) -> None:
    model = tiny(code)
    semantic = model.encode_semantic(images).detach().requires_grad_(True)
    t = torch.full((3,), 400)
    out = model(images, t, semantic)
    (gradient,) = torch.autograd.grad(out.square().sum(), semantic)
    assert gradient.abs().amin() >= 0
    assert gradient.abs().amax() > 0
    assert not torch.allclose(out, model(images, t, semantic + 1))


def test_a_spatial_code_acts_where_it_lies(images) -> None:
    """Moving one corner of the code moves the image there more than elsewhere."""
    model = tiny("spatial", image_size=64, block_channels=(16,), encoder_channels=(8, 16)).eval()
    image = torch.rand(1, 1, 64, 64) * 2 - 1
    semantic = model.encode_semantic(image)
    moved = semantic.clone()
    moved[..., :4, :4] += 1
    change = (model(image, torch.tensor([500]), moved) - model(image, torch.tensor([500]), semantic)).abs()
    assert change[..., :16, :16].mean() > 3 * change[..., 40:, 40:].mean()


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_noise_is_what_is_left_after_the_predicted_image(prediction: str, images) -> None:
    """x_t = alpha x_0 + sigma eps must hold between the noise and the image that the prediction implies."""
    model = tiny(prediction=prediction).double()
    x, t = images.double(), torch.tensor([10, 300, 900])
    semantic = model.encode_semantic(x)
    out, eps = model(x, t, semantic), model.noise(x, t, semantic)
    alpha, sigma = model.levels(t, x)
    data = (x - sigma * eps) / alpha
    if prediction == "epsilon":
        torch.testing.assert_close(eps, out)
    else:
        torch.testing.assert_close(alpha * eps - sigma * data, out)


def test_noise_levels_keep_their_precision_in_a_half_precision_network() -> None:
    model = tiny()
    before = model.levels(torch.tensor([0]), torch.zeros(1, 1, 4, 4, dtype=torch.float64))[1]
    after = model.to(torch.bfloat16).levels(torch.tensor([0]), torch.zeros(1, 1, 4, 4, dtype=torch.float64))[1]
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    assert float(before) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 18}, "not divisible"),
        ({"code": "both"}, "global|spatial"),
        ({"prediction": "x"}, "epsilon"),
        ({"schedule": "Linear"}, "expected linear or cosine"),
        ({"prediction": "epsilon", "schedule": "cosine"}, "predict v"),
    ],
)
def test_impossible_networks_are_refused(changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)
