"""Contextual decomposition against what is known of it, and the templates of interpretable networks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from diffcf.alignment.cdep import Decomposition, decomposed, through
from diffcf.alignment.icnn import TemplateLoss, template_loss
from diffcf.alignment.methods import Batch, TrainingLoss
from diffcf.cards import ClassifierCard, Preparation
from diffcf.classifiers.icnn import ICNN, templates
from diffcf.classifiers.network import build_classifier
from diffcf.errors import ConfigError

CARD = ClassifierCard(
    preparation=Preparation(size=16, slices=1),
    classes=["no", "yes"],
    architecture="diffcf_cnn7",
    architecture_args={"width": 4, "places": 2},
    mean=0.1,
    std=0.5,
)


@pytest.fixture
def batch() -> Batch:
    drawn = torch.Generator().manual_seed(1)
    image = torch.rand(6, 1, 1, 16, 16, generator=drawn, dtype=torch.float64) * 1.6 - 0.8
    region = torch.zeros_like(image)
    region[..., 4:10, 5:12] = 1
    return Batch(image, torch.tensor([0, 1, 0, 1, 1, 0]), region)


def test_both_parts_are_the_whole(batch) -> None:
    classifier = build_classifier(CARD).double()
    own, rest = decomposed(classifier, batch.image, batch.region)
    torch.testing.assert_close(own + rest, classifier(batch.image))
    everything, nothing = decomposed(classifier, batch.image, torch.ones_like(batch.region))
    silent = torch.zeros_like(batch.image)
    assert not torch.allclose(everything, own)
    # Of nothing comes nothing but what activations and shared biases make of it: with all inside, γ starts at 0.
    torch.testing.assert_close(everything + nothing, classifier(batch.image))
    none, whole = decomposed(classifier, batch.image, silent)
    assert not bool(none.any())
    torch.testing.assert_close(whole, classifier(batch.image))


def test_of_a_linear_network_the_parts_are_exact(batch) -> None:
    linear = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.Conv2d(3, 2, 3, bias=False)).double()
    picture, part = batch.image[:, 0], batch.region[:, 0]
    own, rest = through(linear, (picture * part, picture * (1 - part)))
    torch.testing.assert_close(own, linear(picture * part))
    torch.testing.assert_close(rest, linear(picture * (1 - part)))


def test_biases_and_activations_by_hand() -> None:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(4.0)
    own, rest = through(nn.Sequential(layer, nn.ReLU()), (torch.tensor([[1.0]]), torch.tensor([[-3.0]])))
    # Contributions 2 and -6 share the bias as 1 and 3: 3 and -3, whose sum the activation leaves at 0.
    assert (float(own.detach()), float(rest.detach())) == (3.0, -3.0)


def test_layers_without_a_rule_are_named(small) -> None:
    with pytest.raises(ConfigError, match="no rule for Tanh"):
        through(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), (torch.zeros(1, 2), torch.zeros(1, 2)))
    with pytest.raises(ConfigError, match="diffcf_cnn7"):
        Decomposition().terms(small())
    with pytest.raises(ConfigError, match="share above 0"):
        Decomposition(decomposition_share=0.0)


def test_the_penalty_is_what_comes_from_outside(batch) -> None:
    classifier = build_classifier(CARD).double()
    loss = TrainingLoss(classifier, Decomposition(3.0, 0.5).terms(classifier))
    found = loss(batch.image, batch.label, batch.region, 0.0)
    plain = nn.functional.cross_entropy(classifier(batch.image), batch.label)
    outside, _ = decomposed(classifier, batch.image[:3], 1 - batch.region[:3])
    torch.testing.assert_close(found - plain, 3 * outside.abs().mean())
    found.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in classifier.parameters())


def test_templates_by_hand() -> None:
    found = templates(4)
    assert found.shape == (16, 4, 4)
    assert torch.equal(found[5, 1], torch.tensor([0.0, 1.0, 0.0, -1.0]))  # μ = (1, 1): 1 - 4 |.|_1 / 4
    assert float(found[0, 3, 3]) == -1


def test_template_loss_is_minus_the_mutual_information() -> None:
    torch.manual_seed(0)
    maps = torch.rand(5, 3, 4, 4, dtype=torch.float64) * 40
    asked = [0.5 / 16 * one for one in templates(4).double()] + [torch.full((4, 4), -0.5 / 16, dtype=torch.float64)]
    total = 0.0
    for f in range(3):
        given = torch.stack([torch.exp((maps[:, f] * one).sum((1, 2))) for one in asked])
        given = given / given.sum(1, keepdim=True)
        mixed = given.mean(0)
        total -= float((given / 17 * (given / mixed).log()).sum())
    assert float(template_loss(maps)) == pytest.approx(total / 3)


def test_maps_with_one_peak_are_better_than_spread_ones() -> None:
    # Both lots tell images apart by place; the first by one peak, the second by half of the map.
    peaks, halves = torch.zeros(8, 1, 4, 4), torch.zeros(8, 1, 4, 4)
    for i in range(8):
        peaks[i, 0, i // 4 * 3, i % 4] = 16.0
        halves[i, 0] = templates(4)[[0, 3, 12, 15]][i % 4] * 0 + (1.0 if i < 4 else 2.0)
    assert float(template_loss(peaks)) < float(template_loss(halves)) < 0


def test_interpretable_maps_keep_their_peak(batch) -> None:
    card = dataclasses.replace(CARD, architecture="diffcf_icnn", architecture_args={"width": 4})
    classifier = build_classifier(card).double()
    net = classifier.network.net
    assert isinstance(net, ICNN)
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 1, 1], maps[0, 0, 1, 2], maps[0, 0, 3, 3] = 5.0, 3.0, 4.0
    kept = net.masked(maps)
    assert float(kept[0, 0, 1, 1]) == 5
    assert float(kept.sum()) == 5
    loss = TrainingLoss(classifier, TemplateLoss(2.0).terms(classifier))
    found = loss(batch.image, batch.label, batch.region, 0.0)
    plain = nn.functional.cross_entropy(classifier(batch.image), batch.label)
    picture = (batch.image[:, 0] - 0.1) / 0.5
    torch.testing.assert_close(found - plain, 2 * template_loss(net.raw(picture)))
    found.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in classifier.parameters())
    with pytest.raises(ConfigError, match="diffcf_icnn"):
        TemplateLoss().terms(build_classifier(CARD))
