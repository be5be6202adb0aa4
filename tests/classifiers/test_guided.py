"""Guided classifiers as a whole: baselines, gradients, files, threads, and what is refused."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffcf.cards import ClassifierCard, Preparation
from diffcf.classifiers.blackbox import BlackBox
from diffcf.classifiers.guided import (
    HSM,
    KINDS,
    SMIC,
    Attention,
    Dropout,
    Guidance,
    GuidedClassifier,
    SalClassNet,
    SelfAttention,
    SpatialAttention,
    Unguided,
    WithMap,
    load_guided,
    save_guided,
)
from diffcf.classifiers.network import build_classifier
from diffcf.errors import CheckpointError, ConfigError

SIZE, SLICES = 32, 3
SEVEN = ClassifierCard(
    Preparation(size=SIZE, slices=SLICES), ["a", "b"], "timm", "diffcf_cnn7", {"width": 4}, "average", 0.1, 0.5
)
HALVES = replace(SEVEN, architecture="diffcf_mtl7", classes=["no", "left", "right", "both"])
RESNET = replace(SEVEN, architecture="resnet18", architecture_args={"channels": [8, 8, 16, 16]})
VIT = replace(
    SEVEN, architecture="vit_tiny_patch16_224", architecture_args={"img_size": SIZE, "depth": 1, "embed_dim": 24}
)
BLOCKS = ("layer1", "layer2", "layer3")
OF_SEVEN: list[Guidance] = [kind() for kind in KINDS]
OF_BLOCKS: list[Guidance] = [  # with batch statistics
    Attention(BLOCKS, "layer4", slice_hidden=5),
    Attention(BLOCKS[:1], None, slice_attention=False),
    SelfAttention(("layer3", "layer4")),
    SMIC("layer2"),
    SalClassNet(),
]
CASES = [
    *((SEVEN, guidance) for guidance in OF_SEVEN),
    *((HALVES, guidance) for guidance in OF_SEVEN if not isinstance(guidance, Dropout | SpatialAttention)),
    *((RESNET, guidance) for guidance in OF_BLOCKS),
    (VIT, Unguided()),
]
NAMES = [f"{card.architecture}-{index}-{type(guidance).__name__}" for index, (card, guidance) in enumerate(CASES)]


def batch(count: int = 2) -> tuple[Tensor, Tensor]:
    return torch.rand(count, SLICES, 1, SIZE, SIZE) * 2 - 1, torch.rand(count, SLICES, 1, SIZE, SIZE)


@pytest.mark.parametrize(("card", "guidance"), CASES, ids=NAMES)
def test_every_guide_trains_and_is_read_again(card: ClassifierCard, guidance: Guidance, tmp_path: Path) -> None:
    model = GuidedClassifier(card, guidance)
    image, saliency = batch()
    logits = model(image, saliency)
    assert logits.shape == (2, len(card.classes))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    save_guided(model, {"data": "made up"}, tmp_path / "guided")
    assert sorted(path.name for path in (tmp_path / "guided").iterdir()) == ["card.yaml", "model.safetensors"]
    read = load_guided(tmp_path / "guided")
    assert (read.card, read.guidance) == (card, guidance)
    assert not read.training
    assert not any(weight.requires_grad for weight in read.parameters())
    with torch.no_grad():
        assert torch.equal(read(image, saliency), model.eval()(image, saliency))


@torch.no_grad()
@pytest.mark.parametrize("card", [SEVEN, HALVES, RESNET, VIT], ids=lambda card: card.architecture)
def test_a_guide_that_does_nothing_gives_the_baseline(card: ClassifierCard) -> None:
    baseline = build_classifier(card).eval()
    image, saliency = batch()
    named = BLOCKS[1:] if card is RESNET else ("layers.2", "layers.4")
    quiet: list[Guidance] = [Unguided(), SalClassNet()]
    quiet += [] if card is VIT else [SelfAttention(named), Dropout(named)]
    for guidance in quiet:
        model = GuidedClassifier(card, guidance).eval()
        assert not torch.allclose(model(image, saliency), baseline(image))
        model.start_from(baseline)
        if isinstance(guidance, SalClassNet):  # another order of sums
            torch.testing.assert_close(model(image, saliency), baseline(image))
        else:
            assert torch.equal(model(image, saliency), baseline(image))


@torch.no_grad()
def test_a_state_dict_and_a_black_box_start_it_too() -> None:
    baseline = build_classifier(RESNET).eval()
    image, saliency = batch()
    wrapped = {f"module.{name}": value for name, value in baseline.network.net.state_dict().items()}
    for given in (BlackBox(baseline.network, RESNET), wrapped):
        for guidance in (Unguided(), SalClassNet()):
            model = GuidedClassifier(RESNET, guidance).eval()
            model.start_from(given)
            torch.testing.assert_close(model(image, saliency), baseline(image))
    single = replace(SEVEN, preparation=Preparation(size=SIZE), slice_mode="channels")
    model = GuidedClassifier(replace(single, slice_mode="average"), Unguided()).eval()
    model.start_from(build_classifier(single))


@pytest.mark.parametrize("card", [SEVEN, HALVES, RESNET], ids=lambda card: card.architecture)
def test_the_branch_starts_where_its_settings_say(card: ClassifierCard) -> None:
    places = {"stages": BLOCKS, "fused": "layer4"} if card is RESNET else {}
    baseline = build_classifier(card)
    for branch in ("fresh", "baseline"):
        model = GuidedClassifier(card, Attention(**places, branch=branch))
        model.start_from(baseline)
        first = next(model.guide.branch.net.parameters())
        assert torch.equal(first, next(baseline.network.net.parameters())) == (branch == "baseline")
        assert first is not next(model.network.net.parameters())


@torch.no_grad()
def test_slices_are_weighed_in_a_scan() -> None:
    model = GuidedClassifier(SEVEN, Attention()).eval()
    image, saliency = batch()
    nn.init.normal_(model.guide.slices.perceptron[-1].weight, std=5)
    single = replace(SEVEN, preparation=Preparation(size=SIZE))
    alone = GuidedClassifier(single, Attention()).eval()
    alone.load_state_dict(model.state_dict())
    each = torch.stack([alone.features(image[:, s : s + 1], saliency[:, s : s + 1]) for s in range(SLICES)], 1)
    weights = model.guide.slices.perceptron(each).sigmoid()
    assert weights.std() > 0.01
    features = (weights * each).sum(1) / weights.sum(1)
    torch.testing.assert_close(model.features(image, saliency), features)
    torch.testing.assert_close(model(image, saliency), model.network.net.head(features))


def test_scans_of_a_batch_do_not_see_each_other() -> None:
    model = GuidedClassifier(HALVES, Attention()).eval()
    image, saliency = batch(3)
    whole = model(image, saliency)
    for index in range(3):
        torch.testing.assert_close(
            model(image[index : index + 1], saliency[index : index + 1]), whole[index : index + 1]
        )


def test_a_copy_takes_averaged_weights_and_is_on_its_own() -> None:
    model = GuidedClassifier(SEVEN, Attention()).eval()
    image, saliency = batch()
    before = model(image, saliency)
    averaged = copy.deepcopy(model)
    assert torch.equal(averaged(image, saliency), before)
    with torch.no_grad():
        for weight in averaged.parameters():
            weight.mul_(0.5)
    assert torch.equal(model(image, saliency), before)
    changed = averaged(image, saliency)
    assert not torch.allclose(changed, before)
    for weight, other in zip(model.parameters(), averaged.parameters(), strict=True):
        weight.data.copy_(other.data)
    assert torch.equal(model(image, saliency), changed)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_nothing_stays_behind_even_after_an_error(monkeypatch) -> None:
    model = GuidedClassifier(SEVEN, Attention()).eval()
    image, saliency = batch()
    before, plain = model(image, saliency), model.network(image[:, 0])

    def broken(stage: str, features: Tensor, masks: dict[str, Tensor]) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.guide, "modulate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(image, saliency)
    monkeypatch.undo()
    assert hooks(model) == 0
    assert torch.equal(model.network(image[:, 0]), plain)
    assert torch.equal(model(image, saliency), before)


def test_threads_do_not_disturb_each_other() -> None:
    model = GuidedClassifier(SEVEN, Attention()).eval()
    given = [batch() for _ in range(8)]
    with torch.no_grad():
        alone = [model(*pair) for pair in given]

        def run(pair: tuple[Tensor, Tensor]) -> Tensor:
            with torch.no_grad():
                return model(*pair)

        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(run, given))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other)
    assert hooks(model) == 0


def test_with_a_fixed_map_it_is_a_classifier_of_edits() -> None:
    model = GuidedClassifier(SEVEN, Attention()).eval()
    image, saliency = batch(1)
    fixed = WithMap(model, saliency)
    edits = (image + 0.1 * torch.randn(4, SLICES, 1, SIZE, SIZE)).requires_grad_()
    torch.testing.assert_close(fixed(edits), model(edits, saliency.repeat(4, 1, 1, 1, 1)))
    (slope,) = torch.autograd.grad(fixed(edits)[:, 1].sum(), edits)
    assert all(one.any() for one in slope)
    assert fixed.card == model.card
    with pytest.raises(ConfigError, match="one scan's map"):
        WithMap(model, batch(2)[1])


def test_a_config_names_the_guidance() -> None:
    @dataclass
    class Config:
        guidance: Guidance

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Config, "config")
    for guidance in [*OF_SEVEN, *OF_BLOCKS]:
        said = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(guidance).items()}
        given = {"config": {"guidance": {"class_path": type(guidance).__name__, "init_args": said}}}
        assert parser.instantiate(parser.parse_object(given))["config"].guidance == guidance


@pytest.mark.parametrize(
    ("guidance", "card", "message"),
    [
        (Attention(), RESNET, r"no stage 'layers.0' .* Did you mean layer.* Stages that do: .*layer1, layer2"),
        (SMIC("layer5"), RESNET, "no stage 'layer5' that gives maps. Did you mean layer"),
        (SpatialAttention(("layer1", "fc")), RESNET, "resnet18 has 'fc', but it gives nothing on the way"),
        (SpatialAttention(("global_pool",)), RESNET, r"gives a tensor of shape \(2, 16\) at its stage 'global_pool'"),
        (SpatialAttention(("blocks.0",)), VIT, r"shape \(2, 5, 24\) at its stage 'blocks.0', not maps"),
        (SpatialAttention(("layers.0",)), replace(SEVEN, slice_mode="channels"), "use slice_mode 'average'"),
        (Unguided(), replace(SEVEN, format="export"), "only loaded"),
    ],
)
def test_stages_and_cards_that_do_not_fit(guidance: Guidance, card: ClassifierCard, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GuidedClassifier(card, guidance)


def test_networks_that_cannot_be_guided() -> None:
    one = Preparation(size=SIZE)
    distilled = replace(VIT, preparation=one, architecture="deit_tiny_distilled_patch16_224")
    with pytest.raises(ConfigError, match="no features"):
        GuidedClassifier(distilled, Unguided())
    swin = {"img_size": SIZE, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": [1], "num_heads": [1]}
    last = replace(VIT, preparation=one, architecture="swin_tiny_patch4_window7_224", architecture_args=swin)
    with pytest.raises(ConfigError, match="channels last"):
        GuidedClassifier(last, SpatialAttention(("layers.0",)))


def test_maps_that_do_not_fit() -> None:
    model = GuidedClassifier(SEVEN, Attention())
    image, saliency = batch()
    for bad in (saliency[:1], saliency[:, :2], saliency[..., :16], saliency[:, :, 0], None):
        with pytest.raises(ConfigError, match="one map a slice"):
            model(image, bad)
    for value in (float("nan"), float("inf"), -0.1, 1.1):
        bad = saliency.clone()
        bad[1, 2, 0, 3, 4] = value
        with pytest.raises(ConfigError, match=r"outside \[0, 1\]"):
            model(image, bad)
    with pytest.raises(ConfigError, match="this classifier reads"):
        model(image[:, :2], saliency[:, :2])
    constant = model(image, torch.zeros_like(saliency))
    assert constant.isfinite().all()
    assert GuidedClassifier(SEVEN, HSM())(image).isfinite().all()


def test_baselines_that_do_not_fit() -> None:
    model = GuidedClassifier(SEVEN, Unguided())
    for change in ({"classes": ["b", "a"]}, {"mean": 0.0}, {"architecture_args": {"width": 8}}):
        with pytest.raises(ConfigError, match=f"differs in {next(iter(change))}"):
            model.start_from(build_classifier(replace(SEVEN, **change)))
    state = build_classifier(SEVEN).network.net.state_dict()
    with pytest.raises(CheckpointError, match=r"1 missing: head\.bias"):
        model.start_from({name: value for name, value in state.items() if name != "head.bias"})
    with pytest.raises(CheckpointError, match="of another shape"):
        model.start_from(build_classifier(replace(SEVEN, architecture_args={"width": 8})).network.net.state_dict())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_guided(GuidedClassifier(SEVEN, Attention()), {}, tmp_path / "guided")
    return tmp_path / "guided"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": "Magic"}, "no guidance 'Magic'; expected one of Attention"),
        ({"settings": {"stages": ["layers.0"], "glow": 1}}, "not a valid Attention"),
        ({"settings": {"stages": ["layers.0"]}}, "unexpected"),
        ({"guidance": "SelfAttention", "settings": {}}, "missing"),
    ],
)
def test_damaged_cards_are_named(saved: Path, change: dict, message: str) -> None:
    card = yaml.safe_load((saved / "card.yaml").read_text())
    (saved / "card.yaml").write_text(yaml.safe_dump({**card, **change}))
    with pytest.raises(CheckpointError, match=message):
        load_guided(saved)


def test_damaged_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    tensors = {name: value.clone() for name, value in load_file(weights).items()}  # not of the file that is changed
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="no readable safetensors"):
        load_guided(saved)
    spoiled = {**tensors, "guide.fusion.bias": torch.tensor([float("nan")])}
    save_file(spoiled, weights)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in guide\.fusion\.bias"):
        load_guided(saved)
    save_file({name: value for name, value in tensors.items() if name != "guide.fusion.bias"}, weights)
    with pytest.raises(CheckpointError, match=r"1 missing: guide\.fusion\.bias"):
        load_guided(saved)
    weights.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_guided(saved)


def test_only_what_can_be_read_again_is_written(tmp_path: Path) -> None:
    model = GuidedClassifier(SEVEN, Attention())
    model.guide.fusion.weight.data[0] = float("nan")
    with pytest.raises(ConfigError, match=r"guide\.fusion\.weight holds NaN"):
        save_guided(model, {}, tmp_path / "guided")
    assert not list(tmp_path.iterdir())

    class Own(Unguided):
        pass

    with pytest.raises(ConfigError, match="add it to KINDS"):
        save_guided(GuidedClassifier(SEVEN, Own()), {}, tmp_path / "guided")
