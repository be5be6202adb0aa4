"""Saliency maps of classifiers whose reasons are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.cards import ClassifierCard, Preparation
from diffcf.classifiers.network import build_classifier
from diffcf.errors import ConfigError
from diffcf.saliency import HiResCAM, InputGradient, Occlusion, half_resolution_layer


class Linear(nn.Module):
    """log-odds of class 1 = sum of weight * image."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.pooled = nn.AvgPool2d(2)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.pooled(image[:, 0]) * 4
        odds = (maps * self.pooled(self.weight)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(odds), odds], 1)


@pytest.fixture
def linear() -> tuple[Linear, Tensor]:
    weight = torch.zeros(1, 1, 8, 8)
    weight[..., 2:4, 4:6] = 1.0
    weight[..., 6:8, 0:2] = -0.5
    return Linear(weight), torch.rand(3, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_gradient_of_a_linear_classifier_is_its_weight(linear) -> None:
    classifier, image = linear
    found = InputGradient()(classifier, image)
    assert torch.allclose(found, classifier.weight.abs().expand_as(found))


def test_hirescam_is_the_part_of_every_place(linear) -> None:
    classifier, image = linear
    found = HiResCAM("pooled")(classifier, image, torch.ones(3, dtype=torch.long))
    part = (F.avg_pool2d(image[:, 0], 2) * 4 * F.avg_pool2d(classifier.weight, 2)).clamp(min=0)
    assert torch.allclose(found[:, 0], F.interpolate(part, (8, 8), mode="bilinear", align_corners=False))
    assert half_resolution_layer(classifier, image) == "pooled"
    with pytest.raises(ConfigError, match=r"no layer 'absent'; there are pooled"):
        HiResCAM("absent")(classifier, image)
    with pytest.raises(ConfigError, match="name a layer"):
        half_resolution_layer(nn.Flatten(), image)


def test_occlusion_falls_where_the_reason_is(linear) -> None:
    classifier, image = linear
    bright = image.clone()
    bright[..., 2:4, 4:6] = 3.0
    found = Occlusion(2, 2)(classifier, bright, torch.ones(3, dtype=torch.long))
    assert torch.equal(found.flatten(1).argmax(1), torch.full((3,), 2 * 8 + 4))
    assert float(found.min()) >= 0
    assert not bool(found[..., :2, :4].any())


def test_slices_of_a_scan_have_a_map_each() -> None:
    card = ClassifierCard(
        Preparation(size=16, slices=3), ["a", "b"], architecture="diffcf_cnn7", architecture_args={"width": 4},
        slice_mode="average",
    )  # fmt: skip
    classifier = build_classifier(card).eval()
    image = torch.rand(2, 3, 1, 16, 16)
    layer = half_resolution_layer(classifier, image)
    for method in (InputGradient(), HiResCAM(layer), Occlusion(8, 8)):
        assert method(classifier, image).shape == (2, 3, 1, 16, 16)
