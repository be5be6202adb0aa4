"""The adversarial loss: closed forms, what each step holds fixed, and when it starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffcf.errors import ConfigError
from diffcf.generators.autoencoder import NETWORKS
from diffcf.training.adversarial import Adversarial, Adversary, PatchDiscriminator, adaptive_weight, hinge
from diffcf.training.autoencoder import ReconstructionLoss

SIZE = 16


def image() -> Tensor:
    return torch.rand(3, 1, SIZE, SIZE, dtype=torch.float64) * 2 - 1


def made(network: str, start: int = 0) -> ReconstructionLoss:
    """The loss of a tiny autoencoder and its adversary in float64."""
    model = NETWORKS[network](SIZE, channels=(8, 16), code_dim=4)
    adversary = Adversary(Adversarial(0.5, start, 8, 2), SIZE, 1, lambda gradient: gradient)
    return ReconstructionLoss(model, "l1", 1e-6, adversary).double()


def noise_of(network: str) -> Tensor | None:
    return torch.randn(3, 4, 8, 8, dtype=torch.float64) if network == "kl" else None


def test_hinge_of_scores() -> None:
    """(mean max(0, 1 - d(x)) + mean max(0, 1 + d(x'))) / 2 by hand; its gradient ends where scores are sure."""
    of_images = torch.tensor([2.0, 0.5, -1.0], requires_grad=True)  # 0, 0.5, 2
    of_made = torch.tensor([-3.0, 0.0, 1.5], requires_grad=True)  # 0, 1, 2.5
    loss = hinge(of_images, of_made)
    assert loss.item() == pytest.approx((2.5 / 3 + 3.5 / 3) / 2)
    loss.backward()
    torch.testing.assert_close(of_images.grad, torch.tensor([0.0, -1, -1]) / 6)
    torch.testing.assert_close(of_made.grad, torch.tensor([0.0, 1, 1]) / 6)
    assert float(hinge(torch.zeros(4), torch.zeros(4))) == 1


def test_the_adaptive_weight_is_the_ratio_of_slopes() -> None:
    last = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    ours, theirs = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([0.0, 0.2], dtype=torch.float64)
    error, adversarial = (last @ ours).sum(), (last @ theirs).square().sum()  # both rows' slopes are parallel
    # d error = (3, 4) in both rows; d adversarial = 2 * 0.2^2 * (-2, 3) in the second column.
    expected = 50**0.5 / (0.08 * 13**0.5 + 1e-4)
    found = adaptive_weight(error, adversarial, last)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert not found.requires_grad
    assert float(adaptive_weight(error, adversarial, last, lambda gradient: gradient * 0 + 1)) == pytest.approx(
        2 / (2 + 1e-4)
    )
    assert float(adaptive_weight(error, 0 * adversarial, last)) == 1e4  # 70711 otherwise


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_each_learns_while_the_other_is_held_fixed(network: str) -> None:
    """The gradients of the one scalar are those of two losses, made apart: each of its own weights.

    Losses are summed in single precision; everything else here is double.
    """
    loss, x, noise = made(network), image(), noise_of(network)
    model, discriminator = loss.model, loss.adversary.discriminator
    loss(x, noise, 0).backward()
    found = {name: weight.grad.clone() for name, weight in loss.named_parameters()}
    loss.zero_grad()
    plain = ReconstructionLoss(model, "l1", 1e-6)
    if noise is None:
        reconstruction = model(x)
    else:
        posterior = model.posterior(x)
        reconstruction = model.decode(posterior.mean + posterior.std * noise)
    error, fools = (reconstruction - x).abs().mean(), -discriminator(reconstruction).mean()
    slopes = [torch.autograd.grad(value, model.last, retain_graph=True)[0].norm() for value in (error, fools)]
    (plain(x, noise) + 0.5 * slopes[0] / (slopes[1] + 1e-4) * fools).backward()
    near = {"rtol": 1e-5, "atol": 1e-8}
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[f"model.{name}"], weight.grad, **near)
    loss.zero_grad()
    hinge(discriminator(x), discriminator(reconstruction.detach())).backward()
    for name, weight in discriminator.named_parameters():
        torch.testing.assert_close(found[f"adversary.discriminator.{name}"], weight.grad, **near)
    assert all(bool(weight.grad.any()) for weight in (discriminator.parts[0].weight, discriminator.parts[-1].weight))
    assert float(slopes[0] / (slopes[1] + 1e-4)) == pytest.approx(loss.adversary.figures()["adaptive_weight"])


def test_until_it_starts_there_is_nothing_but_the_error() -> None:
    loss, x = made("conv", start=5), image()
    adam = torch.optim.AdamW([loss.adversary.group()], lr=0.1)
    before = {name: value.clone() for name, value in loss.adversary.tensors().items()}
    assert torch.equal(loss(x, None, 4), ReconstructionLoss(loss.model, "l1")(x))
    assert loss.adversary.figures() == {}
    for step, same in ((4, True), (5, False)):
        loss(x, None, step).backward()
        assert all(weight.grad is not None for weight in loss.adversary.parameters())  # what DDP waits for
        adam.step()
        adam.zero_grad()
        assert all(torch.equal(value, before[name]) for name, value in loss.adversary.tensors().items()) == same
    loss.adversary.restore(before)
    assert all(torch.equal(value, before[name]) for name, value in loss.adversary.tensors().items())


def test_the_loss_of_a_sampled_code() -> None:
    """Against torch's own divergence of normal distributions; sums over an image become means."""
    model, x, noise = NETWORKS["kl"](SIZE, channels=(8, 16), code_dim=4).double(), image(), noise_of("kl")
    posterior = model.posterior(x)
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    nats = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum() / 3
    error = (model.decode(posterior.mean + posterior.std * noise) - x).square().mean()
    found = ReconstructionLoss(model, "l2", 0.3)(x, noise)
    torch.testing.assert_close(found, error + 0.3 * nats / SIZE**2)


def test_a_score_a_patch_and_none_of_another_sample() -> None:
    discriminator = PatchDiscriminator(64, 1, 8, 3)
    images = torch.rand(3, 1, 64, 64)
    scores = discriminator(images)
    assert scores.shape == (3, 1, 6, 6)  # 70 pixels wide, 8 apart, as pix2pix: 30 of 256 pixels
    torch.testing.assert_close(scores[1:2], discriminator(images[1:2]), rtol=1e-4, atol=1e-5)
    widths = [part.out_channels for part in PatchDiscriminator(256, 3, 8, 5).parts if isinstance(part, torch.nn.Conv2d)]
    assert widths == [8, 16, 32, 64, 64, 64, 1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"weight": 0.0}, "leave out `adversarial`"),
        ({"start": -1}, "start of 0 or more"),
        ({"channels": 12}, "channels in eights"),
        ({"layers": 0}, "1 layer or more"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(given: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Adversarial(**given)


def test_images_must_leave_a_patch() -> None:
    assert PatchDiscriminator(12, 1, 8, 2)(torch.zeros(1, 1, 12, 12)).shape == (1, 1, 1, 1)
    with pytest.raises(ConfigError, match=r"16 pixels leave no patch to 3 layers.*fewer layers"):
        PatchDiscriminator(16, 1, 8, 3)
