"""Black boxes against timm's own networks, composed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffcf.cards import ClassifierCard, Preparation, Window, read_card, write_card
from diffcf.classifiers.blackbox import BlackBox, inspect_blackbox, load_blackbox, save_blackbox
from diffcf.classifiers.network import build_classifier
from diffcf.errors import CheckpointError, ConfigError

SIZE = 32
NARROW = {"channels": [8, 8, 16, 16]}
ARCHITECTURES = {
    "resnet18": NARROW,
    "densenet121": {"growth_rate": 4, "block_config": [2, 2, 2, 2], "drop_rate": 0.5},
    "mobilenetv3_small_050": {},
    "vit_tiny_patch16_224": {"img_size": SIZE, "depth": 1, "embed_dim": 24},
}


def card_of(architecture: str = "resnet18", slices: int = 1, **changes) -> ClassifierCard:
    arguments = ARCHITECTURES.get(architecture, {})
    return ClassifierCard(
        Preparation(size=SIZE, slices=slices), ["no", "yes", "maybe"], "timm", architecture, arguments, **changes
    )


def timm_net(card: ClassifierCard, channels: int) -> nn.Module:
    net = timm.create_model(card.architecture, num_classes=3, in_chans=channels, **card.architecture_args)
    for module in net.modules():  # statistics that matter
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


def images(slices: int = 1, batch: int = 2) -> Tensor:
    return torch.rand(batch, slices, 1, SIZE, SIZE) * 2 - 1


def saved(folder: Path, card: ClassifierCard, channels: int = 1, **options) -> nn.Module:
    net = timm_net(card, channels)
    save_blackbox(net.state_dict(), card, folder, **options)
    return net


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_logits_are_timm_s_and_the_head_reads_the_features(tmp_path: Path, architecture: str) -> None:
    net = saved(tmp_path / "box", card_of(architecture, slices=3), channels=3)
    blackbox = load_blackbox(tmp_path / "box")
    x = images(3)
    seen = []
    net.get_classifier().register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    torch.testing.assert_close(blackbox(x), net(rearrange(x, "b s 1 h w -> b s h w")))
    torch.testing.assert_close(blackbox.features(x), seen[0])
    assert torch.equal(blackbox.head(blackbox.features(x)), blackbox(x))
    assert torch.equal(blackbox.head.weight, net.get_classifier().weight)
    assert blackbox.capabilities.features
    assert blackbox.capabilities.input_gradients


@torch.no_grad()
def test_average_is_the_head_of_the_mean_features(tmp_path: Path) -> None:
    net = saved(tmp_path / "box", card_of(slices=3, slice_mode="average"))
    blackbox = load_blackbox(tmp_path / "box")
    x = images(3)
    each = [net.forward_head(net.forward_features(x[:, s]), pre_logits=True) for s in range(3)]
    expected = sum(each) / 3
    torch.testing.assert_close(blackbox.features(x), expected)
    torch.testing.assert_close(blackbox(x), net.get_classifier()(expected))
    torch.testing.assert_close(blackbox(x), blackbox(x.flip(1)))


@torch.no_grad()
def test_concatenate_has_a_head_over_all_slices(tmp_path: Path) -> None:
    card = card_of(slices=3, slice_mode="concatenate")
    net = timm_net(card, 1)
    net.fc = nn.Linear(3 * 16, 3)
    save_blackbox(net.state_dict(), card, tmp_path / "box")
    blackbox = load_blackbox(tmp_path / "box")
    x = images(3)
    expected = torch.cat([net.forward_head(net.forward_features(x[:, s]), pre_logits=True) for s in range(3)], 1)
    torch.testing.assert_close(blackbox.features(x), expected)
    torch.testing.assert_close(blackbox(x), expected @ net.fc.weight.T + net.fc.bias)


@torch.no_grad()
def test_values_are_normalised_as_the_card_says(tmp_path: Path) -> None:
    net = saved(tmp_path / "box", card_of(mean=0.3, std=0.5))
    x = images()
    torch.testing.assert_close(load_blackbox(tmp_path / "box")(x), net((x[:, 0] - 0.3) / 0.5))


def test_every_timm_route_to_features_is_tried_not_believed(tmp_path: Path) -> None:
    card = card_of("vit_tiny_patch16_224")
    distilled = replace(card, architecture="deit_tiny_distilled_patch16_224")
    assert build_classifier(distilled).head is None  # two classification layers, averaged
    with pytest.raises(ConfigError, match="no features"):
        build_classifier(distilled).features(images())
    with pytest.raises(CheckpointError, match="slice_mode 'average'"):
        build_classifier(replace(distilled, slice_mode="average"))
    assert build_classifier(distilled)(images()).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_computed_in_single(tmp_path: Path, dtype: torch.dtype) -> None:
    card = card_of()
    net = timm_net(card, 1)
    low = {name: value.to(dtype) if value.is_floating_point() else value for name, value in net.state_dict().items()}
    save_blackbox(low, card, tmp_path / "box")
    blackbox = load_blackbox(tmp_path / "box")
    net.load_state_dict({name: value.float() for name, value in low.items()})
    assert {value.dtype for value in blackbox.parameters()} == {torch.float32}
    x = images()
    torch.testing.assert_close(blackbox(x), net(x[:, 0]))


def test_half_halves_the_file(tmp_path: Path) -> None:
    saved(tmp_path / "full", card_of())
    saved(tmp_path / "half", card_of(), half=True)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.65 * full  # names are not halved
    assert load_file(tmp_path / "half" / "model.safetensors")["conv1.weight"].dtype == torch.float16


def test_it_is_frozen_whatever_is_asked(tmp_path: Path) -> None:
    saved(tmp_path / "box", card_of("densenet121"))
    blackbox = load_blackbox(tmp_path / "box")
    x = images()
    before, state = blackbox(x), {name: value.clone() for name, value in blackbox.state_dict().items()}
    assert blackbox.train() is blackbox
    nn.Sequential(blackbox).train()  # as a part of something that is trained
    assert torch.equal(blackbox(x), before)
    assert all(torch.equal(value, state[name]) for name, value in blackbox.state_dict().items())
    assert not any(module.training for module in blackbox.modules())
    assert not before.requires_grad
    assert not any(weight.requires_grad for weight in blackbox.parameters())
    gradient = torch.autograd.grad(blackbox(x.requires_grad_())[:, 0].sum(), x)[0]
    assert gradient.abs().sum() > 0


class Stubborn(nn.Module):
    """A network without a linear head or a gradient."""

    head = None

    def forward(self, picture: Tensor) -> Tensor:
        return torch.stack([(picture > level).float().mean((1, 2, 3)) for level in (-0.5, 0.0, 0.5)], 1)


def test_capabilities_are_found_by_trying() -> None:
    blackbox = BlackBox(Stubborn(), card_of())
    assert blackbox.capabilities.logits
    assert not blackbox.capabilities.features
    assert not blackbox.capabilities.input_gradients
    with pytest.raises(ConfigError, match="KL loss"):
        blackbox.features(images())


@pytest.mark.parametrize(
    "shape", [(2, 1, 1, SIZE, 16), (2, 2, 1, SIZE, SIZE), (2, 1, SIZE, SIZE), (2, 1, 3, SIZE, SIZE)]
)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="view_of"):
        BlackBox(Stubborn(), card_of())(torch.zeros(shape))


def test_a_bare_file_needs_a_card(tmp_path: Path) -> None:
    net = saved(tmp_path / "box", card_of())
    x = images()
    bare = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in net.state_dict().items()}}, bare)
    with pytest.raises(CheckpointError, match="--card"):
        load_blackbox(bare)
    for given in (tmp_path / "box", tmp_path / "box" / "card.yaml"):
        assert torch.equal(load_blackbox(bare, given)(x), net(x[:, 0]).detach())
    beside = tmp_path / "box" / "model.safetensors"
    assert torch.equal(load_blackbox(beside)(x), load_blackbox(tmp_path / "box")(x))
    with pytest.raises(ConfigError, match="is a folder, which agents and results know by the card"):
        load_blackbox(tmp_path / "box", tmp_path / "box" / "card.yaml")


def test_a_set_stands_for_its_classifier(tmp_path: Path) -> None:
    saved(tmp_path / "classifier", card_of())
    assert load_blackbox(tmp_path).card == read_card(ClassifierCard, tmp_path / "classifier")


class Bomb:
    """Marks the place where it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    card = replace(card_of(), weights="model.pth")
    saved(tmp_path / "box", card_of())
    (tmp_path / "box" / "card.yaml").write_text(yaml.safe_dump({**read_plain(tmp_path), "weights": card.weights}))
    for content in (timm_net(card, 1), {"state_dict": Bomb(tmp_path / "exploded")}):
        torch.save(content, tmp_path / "box" / "model.pth")
        with pytest.raises(CheckpointError, match="plain tensors"):
            load_blackbox(tmp_path / "box")
    assert not (tmp_path / "exploded").exists()


def read_plain(folder: Path) -> dict:
    return yaml.safe_load((folder / "box" / "card.yaml").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["a", "b"]}, r"of another shape: fc.weight \(3, 16\) instead of \(2, 16\)"),
        ({"architecture": "resnet34"}, r"missing: layer1\.2"),
        ({"architecture": "resnet10t", "architecture_args": {}}, "unexpected: conv1.weight"),
        ({"architecture": "resnet19"}, "Did you mean resnet18"),
        ({"architecture": "hf-hub:someone/model"}, "timm has no architecture"),
        ({"architecture_args": {"wings": 2}}, "wings"),
        ({"architecture_args": {"pretrained": True}}, "leave them out"),
        ({"architecture_args": {"checkpoint_path": "x.pth"}}, "leave them out"),
        ({"architecture": "vit_tiny_patch16_224", "architecture_args": {}}, "img_size"),
        ({"weights": "other.safetensors"}, "other.safetensors"),
        ({"format": "onnx"}, "not a valid ClassifierCard"),
        ({"surprise": 1}, "not a valid ClassifierCard"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict, message: str) -> None:
    saved(tmp_path / "box", card_of())
    (tmp_path / "box" / "card.yaml").write_text(yaml.safe_dump({**read_plain(tmp_path), **change}))
    with pytest.raises(CheckpointError, match=message):
        load_blackbox(tmp_path / "box")


@pytest.mark.parametrize("change", [{"std": 0.0}, {"classes": ["a"]}, {"classes": ["a", "a"]}])
def test_cards_that_nobody_can_have(change: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        build_classifier(replace(card_of(), **change))


def test_spoiled_weights_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "box", card_of())
    tensors = load_file(tmp_path / "box" / "model.safetensors")
    tensors["bn1.bias"][0] = float("nan")
    with pytest.raises(ConfigError, match=r"bn1\.bias"):
        save_blackbox(tensors, card_of(), tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["box"]
    save_file(tensors, tmp_path / "box" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in bn1\.bias"):
        load_blackbox(tmp_path / "box")


def test_a_folder_is_replaced_whole_and_only_where_it_held_a_black_box(tmp_path: Path) -> None:
    saved(tmp_path / "box", card_of())
    (tmp_path / "box" / "stale.pt").touch()
    built = build_classifier(card_of("densenet121"))
    save_blackbox(built, built.card, tmp_path / "box")
    assert sorted(path.name for path in (tmp_path / "box").iterdir()) == ["card.yaml", "model.safetensors"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="no earlier result"):
        save_blackbox(built, built.card, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box", "mine"]


def test_saving_overflow_in_half_precision_is_refused(tmp_path: Path) -> None:
    net = timm_net(card_of(), 1)
    net.bn1.running_var.fill_(1e6)
    with pytest.raises(ConfigError, match="half precision"):
        save_blackbox(net.state_dict(), card_of(), tmp_path / "box", half=True)


def test_inspect_says_what_it_is(tmp_path: Path) -> None:
    preparation = Preparation(Window(-600, 1600), SIZE, 2, "resize", None)
    card = replace(card_of(slice_mode="average"), preparation=preparation, about={"data": "made up"})
    net = saved(tmp_path / "box", card)
    said = dict(inspect_blackbox(tmp_path / "box"))
    assert said["format"] == "timm"
    assert said["architecture"].startswith("resnet18")
    assert said["parameters"] == f"{sum(weight.numel() for weight in net.parameters()):,}"
    assert said["classes"] == "0 = no, 1 = yes, 2 = maybe"
    assert said["input"] == f"2 slice(s) of {SIZE} x {SIZE} pixels, the whole slice, resized"
    assert said["window"] == "-1400 to 200 HU"
    assert said["features"] == "yes, 16"
    assert said["input gradients"] == "yes"
    assert said["about data"] == "made up"
    assert len(said["content hash"]) == 12


def test_trained_weights_come_back_as_they_were(tmp_path: Path) -> None:
    built = build_classifier(card_of("densenet121"))
    optimiser = torch.optim.SGD(built.parameters(), lr=0.1)
    built.train()
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(built(images(batch=4)), torch.tensor([0, 1, 2, 0])).backward()
        optimiser.step()
    save_blackbox(built, built.card, tmp_path / "box")
    x = images()
    assert torch.equal(load_blackbox(tmp_path / "box")(x), built.eval()(x).detach())


@torch.no_grad()
def test_a_timm_network_with_a_single_logit_becomes_one_of_two_classes(tmp_path: Path) -> None:
    card = replace(card_of(), classes=["no", "yes"])
    net = timm.create_model("resnet18", num_classes=1, in_chans=1, **NARROW).eval()
    (tmp_path / "box").mkdir()
    save_file(net.state_dict(), tmp_path / "box" / card.weights)
    write_card(card, tmp_path / "box")
    blackbox, x = load_blackbox(tmp_path / "box"), images()
    probability = torch.sigmoid(net(x[:, 0]))
    torch.testing.assert_close(blackbox(x).softmax(1), torch.cat([1 - probability, probability], 1))
    write_card(card_of(), tmp_path / "box")  # three classes have no sigmoid
    with pytest.raises(CheckpointError, match="of another shape"):
        load_blackbox(tmp_path / "box")


def test_a_run_folder_stands_for_its_black_box(tmp_path: Path) -> None:
    saved(tmp_path / "run" / "blackbox", card_of())
    torch.testing.assert_close(
        load_blackbox(tmp_path / "run")(images() * 0), load_blackbox(tmp_path / "run" / "blackbox")(images() * 0)
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preparation": {"slices": 0}}, "slices 0: expected 1 or more"),
        ({"preparation": {"spacing": -1.0}}, "spacing -1.0: expected mm above 0"),
        ({"preparation": {"window": {"width": 0}}}, "a window 0.0 wide"),
        ({"classes": ["a", "a"]}, "expected two or more different names"),
        ({"std": 0.0}, "std 0.0: expected a number above 0"),
        ({"mean": [0.4, 0.5, 0.6]}, "What differs between channels belongs into the network"),
    ],
)
def test_a_card_that_cannot_be_names_the_file(tmp_path: Path, changes: dict, says: str) -> None:
    said = {"preparation": {}, "classes": ["a", "b"], **changes}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(said))
    with pytest.raises(CheckpointError, match=f"(?s)card.yaml is not a valid ClassifierCard.*{says}"):
        read_card(ClassifierCard, tmp_path)
