"""The loss in closed form, and the judge of reconstructions."""

from __future__ import annotations

import pytest
import torch
from tiny_generator import SIZE, tiny

from diffcf.cards import GeneratorCard, Preparation, Sampling
from diffcf.training.diffusion import DiffusionLoss, judge_reconstruction, picture_grid


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
