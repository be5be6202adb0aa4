"""Where counterfactuals in training are searched."""

from __future__ import annotations

import pytest
import torch
from tiny_generator import tiny
from torch import nn

from diffcf.alignment.loss import AlignmentLoss, Inner
from diffcf.alignment.spaces import Latent, Pixels
from diffcf.cards import GeneratorCard, Preparation, Sampling
from diffcf.generators.autoencoder import NETWORKS, AutoencoderGenerator
from diffcf.generators.generator import DiffusionGenerator, SliceWise


def lifted(kind: str) -> SliceWise:
    torch.manual_seed(0)
    card = GeneratorCard(Preparation(size=16, slices=1), Sampling(steps=3))
    if kind in NETWORKS:
        return SliceWise(AutoencoderGenerator(NETWORKS[kind](16, channels=(8, 16), code_dim=4), card))
    return SliceWise(DiffusionGenerator(tiny(kind, prediction="v"), card))


def images() -> torch.Tensor:
    return torch.rand(3, 2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_pixels_are_the_image_in_its_window() -> None:
    image = images()
    opened = Pixels().at(image)
    assert opened.start is image
    assert opened.image(image) is image
    assert (Pixels.low, Pixels.high) == (-1, 1)


@pytest.mark.parametrize("kind", ["conv", "kl", "spatial", "global"])
def test_a_code_left_alone_is_the_image_and_one_that_moves_changes_it(kind: str) -> None:
    space, image = Latent(lifted(kind)), images()
    assert not any(weight.requires_grad for weight in space.parameters())
    assert not space.train().generator.training
    opened = space.at(image)
    assert torch.allclose(opened.image(opened.start), image, atol=1e-6)
    moved = (opened.start + 0.3).requires_grad_()
    changed = opened.image(moved)
    assert changed.shape == image.shape
    assert float((changed - image).abs().max().detach()) > 0
    (slope,) = torch.autograd.grad(changed.square().sum(), moved)
    assert bool(slope.any())
    again = space.at(image)  # the same noise every time
    assert torch.equal(again.image(moved), changed)


@pytest.mark.parametrize("kind", ["conv", "kl", "spatial"])
def test_alignment_through_a_decoder(kind: str) -> None:
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(2 * 16 * 16, 8), nn.SiLU(), nn.Linear(8, 2))
    image, region = images(), torch.zeros(3, 2, 1, 16, 16)
    region[..., 4:12, 4:12] = 1
    loss = AlignmentLoss(classifier, Inner(distance_weight=0.01), space=Latent(lifted(kind)))
    found = loss(image, region)
    found.penalty.mean().backward()
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in classifier.parameters())
    assert any(bool(weight.grad.any()) for weight in classifier.parameters() if weight.grad is not None)
    assert float(found.moved.min()) > 0
