"""The multi-task network of paper 003 against its two tasks, written apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from diffcf.cards import ClassifierCard, Preparation
from diffcf.classifiers.blackbox import load_blackbox, save_blackbox
from diffcf.classifiers.multitask import MultiTask7, halves, joint
from diffcf.classifiers.network import build_classifier
from diffcf.errors import CheckpointError, ConfigError

CLASSES = ["no lesion", "left", "right", "both"]
CARD = ClassifierCard(
    Preparation(size=32, slices=3), CLASSES, "timm", "diffcf_mtl7", {"width": 4}, slice_mode="average"
)


def test_cross_entropy_over_four_classes_is_that_of_both_tasks() -> None:
    lesion, side = (torch.randn(40, tasks, dtype=torch.float64, requires_grad=True) for tasks in (2, 3))
    label = torch.arange(40) % 4
    together = F.cross_entropy(joint(lesion, side), label, reduction="sum")
    positive = label > 0
    apart = F.cross_entropy(lesion, positive.long(), reduction="sum")
    apart = apart + F.cross_entropy(side[positive], label[positive] - 1, reduction="sum")
    torch.testing.assert_close(together, apart, rtol=1e-13, atol=0)
    for one, other in zip(*(torch.autograd.grad(loss, (lesion, side)) for loss in (together, apart)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(joint(lesion, side).exp().sum(1), torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize("width", [6, 7])
def test_halves_are_the_left_and_the_mirrored_right(width: int) -> None:
    picture = torch.rand(2, 1, 4, width)
    left, right = halves(picture)[0::2], halves(picture)[1::2]
    middle = width % 2
    assert torch.equal(torch.cat([left, right.flip(-1)[..., middle:]], dim=-1), picture)
    assert torch.equal(halves(picture.flip(-1))[0::2], right)


@torch.no_grad()
def test_a_mirrored_picture_swaps_the_features_of_the_sides() -> None:
    network, picture = MultiTask7(width=4), torch.rand(2, 1, 32, 32)
    features, mirrored = (
        network.forward_head(network.forward_features(seen), pre_logits=True) for seen in (picture, picture.flip(-1))
    )
    torch.testing.assert_close(mirrored, features.roll(16, dims=1))
    assert not torch.allclose(mirrored, features)


def test_it_has_seven_convolutions() -> None:
    assert sum(isinstance(module, torch.nn.Conv2d) for module in MultiTask7().modules()) == 7


@torch.no_grad()
def test_slices_are_averaged_before_the_heads_and_it_is_read_again(tmp_path) -> None:
    classifier = build_classifier(CARD).eval()
    net, image = classifier.network.net, torch.rand(2, 3, 1, 32, 32) * 2 - 1
    each = [net.forward_head(net.forward_features(image[:, s]), pre_logits=True) for s in range(3)]
    mean = sum(each) / 3
    expected = joint(net.head.lesion(mean), net.head.side(mean))
    torch.testing.assert_close(classifier(image), expected)
    assert not torch.allclose(sum(net.head(features) for features in each) / 3, expected)
    save_blackbox(classifier, CARD, tmp_path / "box")
    blackbox = load_blackbox(tmp_path / "box")
    assert torch.equal(blackbox(image), classifier(image))
    assert blackbox.head is None
    with pytest.raises(ConfigError, match="KL loss"):
        blackbox.features(image)


def test_it_learns_the_side() -> None:
    image = torch.zeros(4, 3, 1, 32, 32)
    image[1, :, :, 12:20, 4:12] = image[2, :, :, 12:20, 20:28] = 1.0
    image[3] = image[1] + image[2]
    classifier, label = build_classifier(CARD), torch.arange(4)
    optimiser = torch.optim.Adam(classifier.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(classifier(image), label).backward()
        optimiser.step()
    assert classifier(image).argmax(1).tolist() == [0, 1, 2, 3]


def test_what_it_cannot_be() -> None:
    with pytest.raises(CheckpointError, match="tells four"):
        build_classifier(replace(CARD, classes=["no", "yes"]))
    with pytest.raises(CheckpointError, match="concatenate"):
        build_classifier(replace(CARD, slice_mode="concatenate"))
