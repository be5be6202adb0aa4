"""Every guide against its equations, written out again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.cards import ClassifierCard, Preparation
from diffcf.classifiers.attention import Attention, SaliencyBranch, SliceAttention
from diffcf.classifiers.competitors import HSM, SMIC, MaskBranch, SalClassNet
from diffcf.classifiers.guided import GuidedClassifier
from diffcf.classifiers.guides import Dropout, SelfAttention, SelfAttentionLayer, SpatialAttention, modulated
from diffcf.classifiers.network import build_network
from diffcf.errors import ConfigError

SIZE = 16
CARD = ClassifierCard(Preparation(size=SIZE), ["a", "b"], "timm", "diffcf_cnn7", {"width": 4})
RESNET = ClassifierCard(Preparation(size=32), ["a", "b"], "timm", "resnet18", {"channels": [8, 8, 16, 16]})


def batch(slices: int = 1, size: int = SIZE) -> tuple[Tensor, Tensor]:
    return torch.rand(2, slices, 1, size, size) * 2 - 1, torch.rand(2, slices, 1, size, size)


def mask_of(features: Tensor, layer: nn.Conv2d) -> Tensor:
    """Section 3.1, with the convolution as a correlation of a padded map."""
    pooled = F.pad(features.max(1, keepdim=True).values, (1, 1, 1, 1))
    height, width = features.shape[2:]
    total = sum(
        layer.weight[0, 0, y, x] * pooled[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)
    )
    return torch.sigmoid(total + layer.bias)


def test_the_gradient_of_modulated_features_is_equation_2() -> None:
    weight, kernel = torch.randn(3, requires_grad=True), torch.randn(4, 3, 5, 5)
    mask = torch.rand(4, 1, 5, 5)

    def features(theta: Tensor) -> Tensor:
        return torch.sin(theta[:, None, None] * kernel)

    found = torch.autograd.functional.jacobian(lambda theta: modulated(features(theta), mask), weight)
    plain = torch.autograd.functional.jacobian(features, weight)
    torch.testing.assert_close(found, plain * (mask + 1)[..., None])
    torch.testing.assert_close(modulated(kernel, mask), kernel + kernel * mask)


@torch.no_grad()
def test_acat_over_seven_layers_is_its_equations() -> None:
    model = GuidedClassifier(CARD, Attention(slice_attention=False)).eval()
    guide = model.guide
    nn.init.normal_(guide.fusion.weight)
    nn.init.normal_(guide.fusion.bias)
    image, saliency = batch()
    branch, masks, attention = saliency[:, 0], {}, iter(guide.attention)
    for index in range(5):
        branch = guide.branch.net.layers[index](branch)
        if index in (0, 2, 4):
            masks[index] = mask_of(branch, next(attention).convolution)
    pooled = [mask.unflatten(3, (2, -1)).unflatten(2, (2, -1)).mean((3, 5)) for mask in masks.values()]
    weights = guide.fusion.weight[0, :, 0, 0]
    masks[6] = sum(weight * mask for weight, mask in zip(weights, pooled, strict=True)) + guide.fusion.bias
    maps = image[:, 0]
    for index in range(7):
        maps = model.network.net.layers[index](maps)
        maps = maps + maps * masks[index] if index in masks else maps
    torch.testing.assert_close(model(image, saliency), model.network.net.head(maps.mean((2, 3))))


@torch.no_grad()
def test_fusion_starts_as_the_mean_of_the_masks() -> None:
    guide = GuidedClassifier(CARD, Attention()).guide
    masks = guide.masks(torch.zeros(2, 1, SIZE, SIZE), torch.rand(2, 1, SIZE, SIZE))
    pooled = [F.adaptive_avg_pool2d(masks[name], 2) for name in ("layers.0", "layers.2", "layers.4")]
    torch.testing.assert_close(masks["layers.6"], sum(pooled) / 3)


@pytest.mark.parametrize("stages", [("layer1", "layer2", "layer3"), ("layer2",), ("layer3", "layer1")])
def test_the_branch_ends_at_its_last_stage(stages: tuple[str, ...]) -> None:
    branch = SaliencyBranch(RESNET, stages).eval()
    whole = build_network(RESNET).net.eval()
    given = branch.state_dict()
    missing, unexpected = whole.load_state_dict(
        {name.removeprefix("net."): value for name, value in given.items()}, strict=False
    )
    assert not unexpected
    last = max(stages)
    later = {f"layer{number}" for number in range(1, 5) if f"layer{number}" > last} | {"fc"}
    assert {name.split(".")[0] for name in missing} == later
    saliency = torch.rand(2, 1, 32, 32)
    seen, maps = branch(saliency), whole.maxpool(whole.act1(whole.bn1(whole.conv1(saliency))))
    for stage in ("layer1", "layer2", "layer3"):
        maps = whole.get_submodule(stage)(maps)
        if stage in stages:
            torch.testing.assert_close(seen[stage], maps)
    assert set(seen) == set(stages)
    assert not branch.net.bn1.running_mean.any()  # trying it has moved no statistics


def test_weights_that_reach_no_stage_are_frozen() -> None:
    card = ClassifierCard(Preparation(size=SIZE), ["a", "b"], "timm", "diffcf_cnn7", {"width": 4, "places": 2})
    branch = SaliencyBranch(card, ("layers.0",))
    assert {name for name, weight in branch.net.named_parameters() if not weight.requires_grad} == {"places"}


@torch.no_grad()
def test_slices_are_weighed_by_their_own_features() -> None:
    join, features = SliceAttention(6, 3).eval(), torch.randn(2, 4, 6)
    torch.testing.assert_close(join(features), features.mean(1))
    for weight in join.parameters():
        nn.init.normal_(weight)
    first, _, _, last = join.perceptron
    hidden = F.leaky_relu(features @ first.weight.T + first.bias, 0.01)
    weights = torch.sigmoid(hidden @ last.weight.T + last.bias)
    torch.testing.assert_close(join(features), (weights * features).sum(1) / weights.sum(1))
    torch.testing.assert_close(join(features.flip(1)), join(features))
    assert join.perceptron[2].p == 0.1


@torch.no_grad()
def test_spatial_attention_reads_the_image_s_own_features() -> None:
    model = GuidedClassifier(CARD, SpatialAttention(("layers.1", "layers.4"))).eval()
    image, _ = batch()
    maps, attention = image[:, 0], iter(model.guide.attention)
    for index in range(7):
        maps = model.network.net.layers[index](maps)
        if index in (1, 4):
            maps = maps + maps * mask_of(maps, next(attention).convolution)
    torch.testing.assert_close(model(image), model.network.net.head(maps.mean((2, 3))))


@torch.no_grad()
def test_self_attention_is_sagan_s() -> None:
    layer, maps = SelfAttentionLayer(16), torch.randn(2, 16, 3, 4)
    assert torch.equal(layer(maps), maps)
    layer.gamma.fill_(0.7)
    f, g, h = (part.weight[:, :, 0, 0] @ maps.flatten(2) for part in (layer.f, layer.g, layer.h))
    assert f.shape == (2, 2, 12)
    scores = torch.einsum("bci,bcj->bij", f, g)
    share = scores.exp() / scores.exp().sum(1, keepdim=True)
    gathered = torch.einsum("bij,bci->bcj", share, h)
    expected = 0.7 * (layer.v.weight[:, :, 0, 0] @ gathered).reshape(maps.shape) + maps
    torch.testing.assert_close(layer(maps), expected)


def test_dropout_drops_in_training_only() -> None:
    model = GuidedClassifier(CARD, Dropout(("layers.2",), p=0.6))
    image, _ = batch()
    seen: list[Tensor] = []
    model.network.net.layers[3].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model.network.net.layers[2].register_forward_hook(lambda module, given, output: seen.append(output))
    model(image)
    plain, dropped = seen
    kept = dropped != 0
    assert 0.3 < kept.float().mean() < 0.5
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.4)
    assert torch.equal(model.eval()(image), model(image))
    assert torch.equal(seen[2], seen[3])


@torch.no_grad()
def test_smic_reads_the_map_and_hsm_the_image() -> None:
    image, saliency = batch()
    for setting, read, depth in ((SMIC("layers.3", 4), saliency, 2), (HSM("layers.3", 4), image, 4)):
        model = GuidedClassifier(CARD, setting).eval()
        branch = model.guide.branch
        assert len(branch.convolutions) == depth
        before, after = model.network.net.layers[:4], model.network.net.layers[4:]
        maps = before(image[:, 0]) * (branch(read[:, 0]) + 1)
        torch.testing.assert_close(model(image, saliency), model.network.net.head(after(maps).mean((2, 3))))


@torch.no_grad()
def test_a_branch_pools_on_its_way_to_the_grid() -> None:
    branch, picture = MaskBranch(2, 3, (4, 4)), torch.rand(2, 1, 16, 16)
    one, two = branch.convolutions
    inside = F.max_pool2d(two(F.max_pool2d(one(picture), 2).relu()), 2)
    torch.testing.assert_close(branch(picture), inside.sigmoid())
    assert MaskBranch(2, 3, (1, 3))(picture).shape == (2, 1, 1, 3)


@torch.no_grad()
@pytest.mark.parametrize("card", [CARD, RESNET])
def test_salclassnet_widens_one_convolution(card: ClassifierCard) -> None:
    image, saliency = batch(size=card.preparation.size)
    model, first = GuidedClassifier(card, SalClassNet()).eval(), "conv1" if card is RESNET else "layers.0.0"
    layer = model.network.net.get_submodule(first)
    assert not layer.weight[:, 1].any()
    assert torch.equal(model(image, saliency), model(image, 1 - saliency))
    nn.init.normal_(layer.weight)
    assert not torch.allclose(model(image, saliency), model(image, 1 - saliency))
    pair = torch.cat([image, saliency], dim=2)[:, 0]
    torch.testing.assert_close(model(image, saliency), model.network.net(pair))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(stages=()), "one or more different"),
        (lambda: SpatialAttention(("layers.0", "layers.0")), "one or more different"),
        (lambda: SelfAttention("layers.0"), "a list"),
        (lambda: Attention(fused="layers.2"), "not one of layers.0, layers.2"),
        (lambda: Attention(slice_hidden=0), "one hidden unit"),
        (lambda: Dropout(p=1.0), "below 1"),
        (lambda: SMIC(width=0), "one channel"),
        (lambda: HSM(width=0), "one channel"),
    ],
)
def test_settings_that_cannot_be(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
