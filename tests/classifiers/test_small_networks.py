"""Our own small architectures, through timm's door."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from diffcf.cards import ClassifierCard, Preparation
from diffcf.classifiers import bagnet, cnn7
from diffcf.classifiers.blackbox import load_blackbox, save_blackbox
from diffcf.classifiers.network import build_classifier
from diffcf.errors import CheckpointError, ConfigError


@pytest.mark.parametrize("name", ["diffcf_cnn7", "diffcf_bagnet"])
def test_saved_and_read_again(name: str, tmp_path) -> None:
    preparation = Preparation(size=32, slices=2)
    card = ClassifierCard(preparation, ["a", "b", "c"], architecture=name, architecture_args={"width": 8})
    classifier = build_classifier(card).eval()
    assert classifier.head is not None
    save_blackbox(classifier, card, tmp_path / "box")
    blackbox = load_blackbox(tmp_path / "box")
    image = blackbox.example()
    assert torch.equal(blackbox(image), classifier(image))
    assert blackbox.capabilities.input_gradients
    with pytest.raises(ConfigError, match="pretrained"):
        timm.create_model(name, pretrained=True)
    with pytest.raises(CheckpointError, match="width 1"):
        build_classifier(ClassifierCard(preparation, ["a", "b"], architecture=name, architecture_args={"width": 1}))


def test_places_start_equal_and_can_learn_to_look_at_the_middle() -> None:
    torch.manual_seed(0)
    network, picture = cnn7.CNN7(width=4, places=8), torch.rand(2, 1, 64, 64)
    mean = cnn7.CNN7(width=4)
    mean.load_state_dict(network.state_dict(), strict=False)
    assert torch.allclose(network(picture), mean(picture), atol=1e-6)
    with torch.no_grad():
        network.places[3:5, 3:5] = 5.0
    maps = network.forward_features(picture)
    middle = network.head(maps[:, :, 3:5, 3:5].mean((2, 3)))
    assert torch.allclose(network(picture), middle, atol=1e-5)


def reach(network: torch.nn.Module, place: tuple[int, int], size: int = 64) -> torch.Tensor:
    """Which pixels one place of the last maps sees."""
    picture = torch.rand(1, 1, size, size, requires_grad=True)
    maps = network.forward_features(picture)
    (slope,) = torch.autograd.grad(maps[0, :, place[0], place[1]].sum(), picture)
    return slope[0, 0] != 0


def test_a_place_of_a_bagnet_sees_17_pixels() -> None:
    seen = reach(bagnet.BagNet(width=4), (8, 8))
    assert int(seen.any(0).sum()) == 17
    assert int(seen.any(1).sum()) == 17


def test_with_other_norms_it_is_what_a_plain_stack_gives() -> None:
    torch.manual_seed(0)
    picture = torch.randn(4, 1, 32, 32)
    bare = cnn7.CNN7(width=8, norm="none")
    maps = picture
    for layer in bare.layers:
        maps = torch.nn.functional.leaky_relu(layer[0](maps), 0.01)  # type: ignore[index]
    torch.testing.assert_close(bare.forward_features(picture), maps)
    assert 0.2 < float(maps.square().mean()) < 5  # the signal neither dies nor grows over seven layers
    assert not any(isinstance(module, nn.GroupNorm | nn.BatchNorm2d) for module in bare.modules())
    batch = cnn7.CNN7(width=8, norm="batch")
    assert [type(module) for module in batch.layers[0]] == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]  # type: ignore
    before = batch.layers[3][:2](batch.layers[:3](picture))  # type: ignore[index]
    assert float(before.mean().abs()) < 1e-5
    assert float(before.var((0, 2, 3), unbiased=False).mean()) == pytest.approx(1, abs=0.01)
    with pytest.raises(ConfigError, match="norm 'layer'"):
        cnn7.CNN7(norm="layer")  # type: ignore[arg-type]


def test_outside_its_box_the_oracle_sees_nothing() -> None:
    network = cnn7.CNN7(width=4, box=16)
    picture = torch.rand(1, 1, 64, 64, requires_grad=True)
    (slope,) = torch.autograd.grad(network(picture)[0, 1], picture)
    seen = slope[0, 0] != 0
    assert seen[24:40, 24:40].any()
    seen[24:40, 24:40] = False
    assert not seen.any()
    with pytest.raises(ConfigError, match="eighth"):
        cnn7.CNN7(width=4, places=4)(picture)
    with pytest.raises(ConfigError, match="box -1"):
        cnn7.CNN7(box=-1)
