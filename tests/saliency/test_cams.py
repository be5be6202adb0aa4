"""Class activation maps of networks in which they are known in closed form."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.cards import ClassifierCard, Preparation
from diffcf.classifiers.network import build_classifier
from diffcf.errors import ConfigError
from diffcf.saliency import GradCAM, GradCAMPlusPlus, HiResCAM, InputGradient, ScoreCAM, half_resolution_layer
from diffcf.saliency.cams import outputs


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


def activations(classifier, scans: Tensor) -> Tensor:
    with torch.no_grad(), outputs(classifier, "last") as seen:
        classifier(scans)
    return seen[0][1]


def enlarged(maps: Tensor, scans: Tensor) -> Tensor:
    large = F.interpolate(maps, scans.shape[-2:], mode="bilinear", align_corners=False)
    return rearrange(large, "(b s) 1 h w -> b s 1 h w", b=len(scans))


@pytest.fixture
def pooled(convolutions, scans):
    """(classifier, its last maps "n f y x", the weights of the log-odds of class 1 over mean maps "f")."""
    convolutions.eval()
    weight = convolutions.head.weight.detach()
    return convolutions, activations(convolutions, scans), weight[1] - weight[0]


ONES = torch.ones(3, dtype=torch.long)


def test_hirescam_is_the_part_of_every_place(linear) -> None:
    classifier, image = linear
    found = HiResCAM("pooled")(classifier, image, ONES)
    part = (F.avg_pool2d(image[:, 0], 2) * 4 * F.avg_pool2d(classifier.weight, 2)).clamp(min=0)
    assert torch.allclose(found[:, 0], F.interpolate(part, (8, 8), mode="bilinear", align_corners=False))
    assert torch.equal(HiResCAM()(classifier, image, ONES), found)
    assert half_resolution_layer(classifier, image) == "pooled"


@pytest.mark.parametrize("method", [GradCAM(), HiResCAM(), GradCAM("last")])
def test_over_pooled_maps_gradcam_is_the_linear_head(method, pooled, scans) -> None:
    classifier, maps, weight = pooled
    places = maps.shape[-1] ** 2 * scans.shape[1]
    expected = (rearrange(weight, "f -> f 1 1") * maps).sum(1, keepdim=True).clamp(min=0) / places
    assert torch.allclose(method(classifier, scans, ONES), enlarged(expected, scans), atol=1e-7)
    predicted = classifier(scans).argmax(1)
    assert torch.equal(method(classifier, scans), method(classifier, scans, predicted))
    assert not torch.equal(method(classifier, scans, 1 - predicted), method(classifier, scans, predicted))


def test_gradcam_plus_plus_against_its_sums_written_out(pooled, scans) -> None:
    classifier, maps, weight = pooled
    gradient = weight / (maps.shape[-1] ** 2 * scans.shape[1])  # the same at all places
    expected = torch.zeros_like(maps[:, :1])
    for n in range(len(maps)):
        for f, g in enumerate(gradient.tolist()):
            share = g**2 / (2 * g**2 + float(maps[n, f].sum()) * g**3)
            expected[n, 0] += share * max(g, 0) * maps[n, f].numel() * maps[n, f]
    found = GradCAMPlusPlus()(classifier, scans, ONES)
    assert torch.allclose(found, enlarged(expected.clamp(min=0), scans), rtol=1e-4, atol=1e-7)


def test_scorecam_against_one_channel_after_the_other(pooled, scans) -> None:
    classifier, maps, _ = pooled
    expected = []
    for scan, own in zip(scans, rearrange(maps, "(b s) f y x -> b s f y x", b=3), strict=True):
        scores = []
        for channel in own.unbind(1):
            mask = F.interpolate(channel[:, None], scan.shape[-2:], mode="bilinear", align_corners=False)
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            logits = classifier(((scan + 1) * mask - 1)[None])[0]
            scores.append(logits[1] - logits[0])
        weight = torch.stack(scores).softmax(0)
        expected.append(reduce(own * rearrange(weight, "f -> f 1 1"), "s f y x -> s 1 y x", "sum"))
    expected = enlarged(torch.cat(expected).clamp(min=0), scans).detach()
    for batch in (1, 4, 32):
        assert torch.allclose(ScoreCAM(batch=batch)(classifier, scans, ONES), expected, atol=1e-6)


def test_scorecam_keeps_the_channel_that_shows_the_reason() -> None:
    class Halves(nn.Module):
        """Two maps: the left and the right half of the picture; only what is bright on the left counts."""

        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Identity()

        def forward(self, image: Tensor) -> Tensor:
            left = torch.zeros_like(image[:, 0])
            left[..., :4] = 1
            maps = self.maps(torch.cat([(image[:, 0] + 1) * left, (image[:, 0] + 1) * (1 - left)], 1))
            odds = 20 * maps[:, 0].mean((1, 2))
            return torch.stack([torch.zeros_like(odds), odds], 1)

    found = ScoreCAM("maps")(Halves(), torch.zeros(2, 1, 1, 8, 8))
    assert float(found[..., 1:3].min()) > 0.99
    assert float(found[..., 5:].max()) < 0.01


def test_slices_that_are_channels_share_a_map(linear) -> None:
    card = ClassifierCard(
        Preparation(size=16, slices=3), ["a", "b"], architecture="diffcf_cnn7", architecture_args={"width": 4},
        slice_mode="channels",
    )  # fmt: skip
    classifier, image = build_classifier(card).eval(), torch.rand(2, 3, 1, 16, 16)
    for method in (HiResCAM(), GradCAM(), GradCAMPlusPlus(), ScoreCAM()):
        found = method(classifier, image)
        assert found.shape == (2, 3, 1, 16, 16)
        assert torch.equal(found[:, 0], found[:, 2])


def test_slices_of_a_scan_have_a_map_each() -> None:
    card = ClassifierCard(
        Preparation(size=16, slices=3), ["a", "b"], architecture="diffcf_cnn7", architecture_args={"width": 4},
        slice_mode="average",
    )  # fmt: skip
    classifier, image = build_classifier(card).eval(), torch.rand(2, 3, 1, 16, 16)
    layer = half_resolution_layer(classifier, image)
    for method in (HiResCAM(layer), GradCAM(), ScoreCAM(layer)):
        found = method(classifier, image)
        assert found.shape == (2, 3, 1, 16, 16)
        assert not torch.equal(found[:, 0], found[:, 2])


@pytest.mark.parametrize("method", [HiResCAM, GradCAM, ScoreCAM])
def test_layers_that_cannot_be_read(method, linear) -> None:
    classifier, image = linear

    class Twice(nn.Module):
        """Looks at both halves of every picture with the same layer."""

        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            both = [self.shared(half).mean((2, 3)) for half in image[:, 0].chunk(2, -1)]
            return both[0] + both[1]

    with pytest.raises(ConfigError, match=r"no layer 'absent'; there are pooled"):
        method("absent")(classifier, image)
    with pytest.raises(ConfigError, match=r"layer 'shared' puts out .* \(it did so 2 times\)"):
        method("shared")(Twice(), image)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ConfigError, match=r"no layer puts out .* \(it did so 0 times\)"):
        method()(flat, image)
    with pytest.raises(ConfigError, match="name a layer"):
        half_resolution_layer(flat, image)


def test_a_network_of_halves_has_no_maps_of_the_image() -> None:
    card = ClassifierCard(Preparation(size=32), ["no", "left", "right", "both"], "timm", "diffcf_mtl7", {"width": 4})
    with pytest.raises(ConfigError, match="looks at parts of the image: 4 of 2 slices"):
        GradCAM()(build_classifier(card), torch.zeros(2, 1, 1, 32, 32))


def test_networks_that_keep_channels_last_are_refused() -> None:
    swin = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "patch_size": 2, "window_size": 4, "img_size": 32}
    card = ClassifierCard(
        Preparation(size=32), ["a", "b"], architecture="swin_tiny_patch4_window7_224", architecture_args=swin
    )
    classifier, scans = build_classifier(card).eval(), torch.rand(2, 1, 1, 32, 32)
    for method in (HiResCAM(), ScoreCAM()):
        with pytest.raises(ConfigError, match="keeps channels last"):
            method(classifier, scans)
    with pytest.raises(ConfigError, match="keeps channels last"):
        half_resolution_layer(classifier, scans)


def test_a_layer_that_is_changed_in_place_afterwards_is_read_as_it_was() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            maps = self.layer(image[:, 0])
            maps += 100.0
            odds = reduce(maps, "b f y x -> b", "sum")
            return torch.stack([0 * odds, odds], 1)

    classifier, scans = InPlace(), torch.rand(2, 1, 1, 8, 8)
    with torch.no_grad():
        expected = classifier.layer(scans[:, 0]).sum(1, keepdim=True).clamp(min=0)[:, None]
    assert torch.allclose(HiResCAM("layer")(classifier, scans, torch.tensor([1, 1])), expected, atol=1e-5)


def test_one_logit_has_no_odds() -> None:
    class One(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.flatten(1).sum(1, keepdim=True)

    with pytest.raises(ConfigError, match="one logit"):
        InputGradient()(One(), torch.rand(2, 1, 1, 8, 8))
