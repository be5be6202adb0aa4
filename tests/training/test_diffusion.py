"""The loss in closed form, and the judge of reconstructions."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_generator import SIZE, tiny

from diffcf.cards import GeneratorCard, Preparation, Sampling
from diffcf.errors import ConfigError
from diffcf.training.diffusion import DiffusionLoss, judge_reconstruction, min_snr_weight, picture_grid


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_of_a_network_that_says_zero(norm: str, prediction: str, monkeypatch) -> None:
    model = tiny(prediction=prediction)
    monkeypatch.setattr(model, "forward", lambda x, t, semantic: torch.zeros_like(x))
    image, noise = torch.rand(4, 1, SIZE, SIZE) * 2 - 1, torch.randn(4, 1, SIZE, SIZE)
    t = torch.tensor([0, 100, 500, 999])
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t].reshape(4, 1, 1, 1).float()
    target = noise if prediction == "epsilon" else bar.sqrt() * noise - (1 - bar).sqrt() * image
    expected = target.abs().mean() if norm == "l1" else target.square().mean()
    torch.testing.assert_close(DiffusionLoss(model, norm)(image, t, noise), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_min_snr_weighs_errors_of_the_image_by_the_lesser_of_snr_and_gamma(prediction: str, monkeypatch) -> None:
    """Whatever a network predicts, its weighted error is min(snr, gamma) times that of the x_0 it stands for."""
    model = tiny(prediction=prediction)
    image, noise, said = (torch.randn(4, 1, SIZE, SIZE, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([0, 100, 500, 999])
    monkeypatch.setattr(model, "encode_semantic", lambda image: None)
    monkeypatch.setattr(model, "forward", lambda x, t, semantic: said)
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t].reshape(4, 1, 1, 1)
    noisy = bar.sqrt() * image + (1 - bar).sqrt() * noise
    if prediction == "epsilon":
        meant = (noisy - (1 - bar).sqrt() * said) / bar.sqrt()
    else:
        meant = bar.sqrt() * noisy - (1 - bar).sqrt() * said
    snr = bar / (1 - bar)
    assert snr[0] > 5 > snr[-1]
    expected = (snr.clamp(max=5) * (meant - image).square()).mean().float()
    torch.testing.assert_close(DiffusionLoss(model, "l2", 5.0)(image, t, noise).float(), expected, rtol=1e-4, atol=0)


def test_min_snr_of_a_level_without_signal_or_without_noise() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    assert min_snr_weight(zero, one, 5.0, "epsilon") == 1
    assert min_snr_weight(zero, one, 5.0, "v") == min_snr_weight(one, zero, 5.0, "v") == 0


@pytest.mark.parametrize(("norm", "gamma"), [("l1", 5.0), ("l2", 0.0)])
def test_a_weighting_that_is_none_is_refused(norm: str, gamma: float) -> None:
    with pytest.raises(ConfigError, match="above 0, with l2"):
        DiffusionLoss(tiny(), norm, gamma)


@pytest.mark.parametrize("code", ["global", "spatial"])
def test_channels_last_changes_no_loss_and_no_weight(code: str) -> None:
    plain = tiny(code, "v")
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    given = torch.rand(2, 1, SIZE, SIZE) * 2 - 1, torch.tensor([100, 900]), torch.randn(2, 1, SIZE, SIZE)
    losses = [DiffusionLoss(model, "l2")(*given) for model in (plain, last)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)
    for loss in losses:
        loss.backward()
    assert last.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_encoder_and_denoiser_learn_together() -> None:
    model = tiny("spatial", "v")
    loss = DiffusionLoss(model)
    loss(torch.rand(2, 1, SIZE, SIZE), torch.tensor([500, 900]), torch.randn(2, 1, SIZE, SIZE)).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_reconstructions_are_judged_and_drawn() -> None:
    images = torch.rand(5, 1, SIZE, SIZE) * 2 - 1
    card = GeneratorCard(Preparation(size=SIZE), Sampling("obelm", 4), None)
    made = judge_reconstruction(tiny("spatial"), card, images, batch=2)
    assert made.figures["psnr"] > 60  # an exact sampler returns even what an untrained network made
    assert made.figures["psnr_random"] < 20
    grid = picture_grid(images, made, columns=4)
    assert grid.shape == (1, 3 * SIZE, 4 * SIZE)
    assert grid.min() >= 0
    assert grid.max() <= 1
