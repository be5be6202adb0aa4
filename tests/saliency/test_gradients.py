"""Gradients of classifiers whose weights are known."""

from __future__ import annotations

import torch
from torch import nn

from diffcf.saliency import InputGradient, IntegratedGradients, explained


class Formula(nn.Module):
    """The log-odds of class 1 are what a function of the images gives."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, image):
        odds = self.function(image).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(odds), odds], 1)


def test_the_gradient_of_a_linear_classifier_is_its_weight(scans) -> None:
    weight = torch.randn(scans.shape[1:], generator=torch.Generator().manual_seed(1))
    assert torch.allclose(InputGradient()(Formula(lambda x: x * weight), scans), weight.abs().expand_as(scans))
    colours = torch.cat([scans, 2 * scans], 2)
    found = InputGradient()(Formula(lambda x: x * torch.tensor([1.0, -3.0]).view(2, 1, 1)), colours)
    assert torch.allclose(found, torch.full_like(scans, 3.0))


def test_integrated_gradients_of_a_polynomial_are_exact(scans) -> None:
    cubic = Formula(lambda x: x**3)
    target = torch.ones(3, dtype=torch.long)
    found = IntegratedGradients(steps=2).attributions(cubic, scans, target)
    assert torch.allclose(found, scans**3 + 1, atol=1e-5)
    assert torch.allclose(IntegratedGradients(steps=2)(cubic, scans, target), (scans**3 + 1).abs(), atol=1e-5)
    grey = IntegratedGradients(steps=2, baseline=0.0).attributions(cubic, scans, target)
    assert torch.allclose(grey, scans**3, atol=1e-5)


def test_integrated_gradients_are_complete(convolutions, scans) -> None:
    convolutions.eval().double()
    image, target = scans.double(), torch.tensor([0, 1, 1])
    with torch.no_grad():
        start, end = (explained(convolutions(one), target) for one in (torch.full_like(image, -1.0), image))
    found = IntegratedGradients().attributions(convolutions, image, target)
    assert torch.allclose(found.flatten(1).sum(1), end - start, rtol=2e-2)
    finer = IntegratedGradients(steps=200).attributions(convolutions, image, target)
    assert torch.allclose(finer.flatten(1).sum(1), end - start, rtol=2e-3)


def test_the_class_stays_the_predicted_one_along_the_line(scans) -> None:
    """At black the other class is predicted; its log-odds must not be mixed in."""
    rising = Formula(lambda x: x + 0.5)
    assert torch.equal(rising(torch.full_like(scans, -1.0)).argmax(1), torch.zeros(3, dtype=torch.long))
    found = IntegratedGradients()(rising, scans)
    assert torch.allclose(found, scans + 1, atol=1e-5)
