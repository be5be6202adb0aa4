"""Exports against the networks they came from, and archives that were tampered with."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from diffcf.cards import ClassifierCard, Preparation, write_card
from diffcf.classifiers.blackbox import inspect_blackbox, load_blackbox, save_blackbox
from diffcf.classifiers.exported import load_exported
from diffcf.errors import CheckpointError, ConfigError

SIZE = 16
PROGRAM = "models/model.json"


class Small(nn.Module):
    """Convolution, batch statistics, dropout and a linear head (or none)."""

    def __init__(self, channels: int = 2, head: bool = True) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(channels, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5)
        self.fc = nn.Linear(5, 3)
        self.head = head
        nn.init.uniform_(self.bn.running_mean, -1, 1)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)
        self.register_buffer("scale", torch.tensor(2.0))

    def features(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc(self.features(x))
        return logits if self.head else logits * self.scale


def export(
    net: nn.Module, path: Path, channels: int = 2, batch: int = 1, dynamic: bool = False, plain: bool = True, size=SIZE
):
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(net, (torch.zeros(batch, channels, size, size),), dynamic_shapes=shapes)
    torch.export.save(program if plain else program.run_decompositions(), path)
    return path


def folder_of(folder: Path, slices: int = 2, **changes: Any) -> Path:
    card = ClassifierCard(
        Preparation(size=SIZE, slices=slices), ["a", "b", "c"], "export", weights="model.pt2", **changes
    )
    write_card(card, folder)
    return folder


def picture(batch: int = 5, channels: int = 2) -> Tensor:
    return torch.rand(batch, channels, SIZE, SIZE) * 2 - 1


@pytest.mark.parametrize(("dynamic", "plain", "head"), [(True, True, True), (False, False, True), (False, True, False)])
@torch.no_grad()
def test_any_batch_gives_what_the_network_gives(tmp_path: Path, dynamic: bool, plain: bool, head: bool) -> None:
    net = Small(head=head).eval()
    found = load_exported(export(net, tmp_path / "model.pt2", batch=2, dynamic=dynamic, plain=plain))
    x = picture(5)  # two whole batches of two, and one to be filled
    torch.testing.assert_close(found(x), net(x))
    assert found.batch == (None if dynamic else 2)
    assert found.shape == (2, SIZE, SIZE)
    if head:
        assert found.head is not None
        torch.testing.assert_close(found.features(x), net.features(x))
        assert torch.equal(found.head.weight, net.fc.weight)
        assert sum(weight.numel() for weight in found.parameters()) == sum(w.numel() for w in net.parameters())
    else:
        assert found.head is None


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("densenet121", {"growth_rate": 4, "block_config": [1, 1, 1, 1]}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "embed_dim": 24}),
    ],
)
@torch.no_grad()
def test_timm_networks_come_back_through_an_export(tmp_path: Path, architecture: str, arguments: dict) -> None:
    net = timm.create_model(architecture, num_classes=3, in_chans=1, **arguments).eval()
    found = load_exported(export(net, tmp_path / "model.pt2", channels=1, size=32))
    x = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(found(x), net(x))
    assert found.head is not None
    torch.testing.assert_close(found.features(x), net.forward_head(net.forward_features(x), pre_logits=True))


def test_a_black_box_of_an_export(tmp_path: Path) -> None:
    net = Small().eval()
    export(net, tmp_path / "model.pt2")
    blackbox = load_blackbox(folder_of(tmp_path, mean=0.1, std=0.5))
    x = picture()
    expected = net((x - 0.1) / 0.5).detach()
    torch.testing.assert_close(blackbox(x[:, :, None]), expected)
    torch.testing.assert_close(blackbox.head(blackbox.features(x[:, :, None])), expected)
    assert blackbox.train() is blackbox
    torch.testing.assert_close(blackbox(x[:, :, None]), expected)
    assert not any(weight.requires_grad for weight in blackbox.parameters())
    said = dict(inspect_blackbox(tmp_path))
    assert said["format"] == "export"
    assert said["features"] == "yes, 5"
    assert said["input gradients"] == "yes"
    with pytest.raises(ConfigError, match=r"copy its \.pt2"):
        save_blackbox(blackbox, blackbox.card, tmp_path / "copy")


def test_the_input_gradient_is_the_network_s(tmp_path: Path) -> None:
    net = Small().eval()
    found = load_exported(export(net, tmp_path / "model.pt2"))
    x = picture(3).requires_grad_()
    (expected,) = torch.autograd.grad(net(x)[:, 1].sum(), x)
    (gradient,) = torch.autograd.grad(found(x)[:, 1].sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_without_a_linear_layer_at_the_end_there_are_logits_only(tmp_path: Path) -> None:
    export(Small(channels=1, head=False).eval(), tmp_path / "model.pt2", channels=1)
    said = dict(inspect_blackbox(folder_of(tmp_path, slices=1)))
    assert said["logits"] == "yes"
    assert said["features"].startswith("no")
    with pytest.raises(CheckpointError, match="slice_mode 'average'"):
        load_blackbox(folder_of(tmp_path, slice_mode="average"))


@torch.no_grad()
def test_slices_can_be_averaged(tmp_path: Path) -> None:
    net = Small(channels=1).eval()
    export(net, tmp_path / "model.pt2", channels=1)
    blackbox = load_blackbox(folder_of(tmp_path, slice_mode="average"))
    x = picture()
    torch.testing.assert_close(blackbox(x[:, :, None]), (net(x[:, :1]) + net(x[:, 1:])) / 2)  # the head is affine
    with pytest.raises(CheckpointError, match="too narrow"):
        load_blackbox(folder_of(tmp_path, slice_mode="concatenate"))


class Dictionary(Small):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": super().forward(x)}


class Pair(Small):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class NoGrad(Small):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Small().train(), "model.eval"),
        (Dictionary().eval(), "logits alone"),
        (Pair().eval(), "2 output"),
        (NoGrad().eval(), "no_grad"),
        (Small(channels=3).eval(), "3 x 16 x 16, but its card says 2 x 16 x 16"),
    ],
)
def test_what_is_no_classifier_of_the_card_is_refused(tmp_path: Path, net: nn.Module, message: str) -> None:
    export(net, tmp_path / "model.pt2", channels=net.conv.in_channels)
    with pytest.raises(CheckpointError, match=message):
        load_blackbox(folder_of(tmp_path))


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    net = Small()
    net.fc = nn.Linear(5, 4)
    export(net.eval(), tmp_path / "model.pt2")
    with pytest.raises(CheckpointError, match=r"shape \(2, 4\).*\(2, 3\)"):
        load_blackbox(folder_of(tmp_path))


def test_half_precision_inputs_are_refused(tmp_path: Path) -> None:
    program = torch.export.export(Small().eval().double(), (picture().double(),))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(CheckpointError, match="float32"):
        load_exported(tmp_path / "model.pt2")


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_files_that_are_no_export_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.pt2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt2"):
        load_exported(path)
    torch.save(Small().state_dict(), path)
    with pytest.raises(CheckpointError, match="no archive"):
        load_exported(path)


# Archives that were tampered with. `mark` is a file that each would make if it got its way.


def tampered(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Export a network, hand its files (without the root folder) to `change`, and write them back."""
    plain = export(Small().eval(), path.with_name("plain.pt2"))
    with zipfile.ZipFile(plain) as archive:
        root = archive.namelist()[0].split("/")[0]
        files = {name.removeprefix(f"{root}/"): archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in files.items():
            archive.writestr(f"{root}/{name}", value)
    return path


def edit_json(files: dict[str, bytes], name: str, edit: Callable[[Any], None]) -> None:
    value = json.loads(files[name])
    edit(value)
    files[name] = json.dumps(value).encode()


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def first(program: dict, kind: str) -> dict:
    return next(node for node in program["graph_module"]["graph"]["nodes"] if kind in node["target"])


def rename(program: Any, old: str, new: str) -> Any:
    return json.loads(json.dumps(program).replace(json.dumps(old), json.dumps(new)))


def pickled_weight(files: dict[str, bytes], mark: Path) -> None:
    config = "data/weights/model_weights_config.json"
    edit_json(files, config, lambda c: c["config"]["fc.bias"].update(use_pickle=True))
    entry = json.loads(files[config])["config"]["fc.bias"]["path_name"]
    files[f"data/weights/{entry}"] = pickled(Bomb(mark))


def custom_object(files: dict[str, bytes], mark: Path) -> None:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    edit_json(files, "data/constants/model_constants_config.json", lambda c: c["config"].update(evil=entry))
    files["data/constants/opaque_obj_0"] = pickled(Bomb(mark))


def foreign_operator(files: dict[str, bytes], mark: Path) -> None:
    def edit(program: dict) -> None:
        node = first(program, "relu")
        node["target"] = "torch.os.system"
        node["inputs"] = [{"name": "command", "arg": {"as_string": f"touch {mark}"}, "kind": 1}]

    edit_json(files, PROGRAM, edit)


def file_operator(files: dict[str, bytes], mark: Path) -> None:
    edit_json(files, PROGRAM, lambda p: first(p, "relu").update(target="torch.ops.aten.from_file.default"))


def name_of_code(files: dict[str, bytes], mark: Path) -> None:
    files[PROGRAM] = json.dumps(
        rename(json.loads(files[PROGRAM]), "relu", f"relu = 0\n    open({str(mark)!r}, 'w')\n    relu")
    ).encode()


def shape_of_code(files: dict[str, bytes], mark: Path) -> None:
    def edit(program: dict) -> None:
        value = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        value[0] = {"as_expr": {"expr_str": f"__import__('pathlib').Path({str(mark)!r}).touch()", "hint": None}}

    edit_json(files, PROGRAM, edit)


def structure_of_others(files: dict[str, bytes], mark: Path) -> None:
    def edit(program: dict) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        signature["out_spec"] = signature["out_spec"].replace("null", '"torch.Size"')

    edit_json(files, PROGRAM, edit)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (pickled_weight, "pickled object"),
        (custom_object, "pickled object"),
        (foreign_operator, "operator"),
        (file_operator, "operator"),
        (name_of_code, "name"),
        (shape_of_code, "shape"),
        (structure_of_others, "structure"),
        (lambda files, mark: files.pop("data/weights/weight_0"), "damaged"),
        (lambda files, mark: files.pop(PROGRAM), "lacks"),
        (lambda files, mark: files.update({PROGRAM: b"{}"}), "no readable export"),
    ],
)
def test_tampered_archives_are_refused(tmp_path: Path, tamper: Callable, message: str) -> None:
    mark = tmp_path / "ran"
    with pytest.raises(CheckpointError, match=message):
        load_exported(tampered(tmp_path / "model.pt2", lambda files: tamper(files, mark)))
    assert not mark.exists()


def evil_samples(files: dict[str, bytes], mark: Path) -> None:
    files["data/sample_inputs/model.pt"] = pickled(Bomb(mark))


def evil_guard(files: dict[str, bytes], mark: Path) -> None:
    edit_json(files, PROGRAM, lambda p: p.update(guards_code=[f"open({str(mark)!r}, 'w')"]))


def evil_legacy_weights(files: dict[str, bytes], mark: Path) -> None:
    files["data/weights/model.pt"] = pickled(Bomb(mark))


def evil_library(files: dict[str, bytes], mark: Path) -> None:
    files["data/aotinductor/model/model.so"] = b"\x7fELF"


@pytest.mark.parametrize("tamper", [evil_samples, evil_guard, evil_legacy_weights, evil_library])
@torch.no_grad()
def test_what_a_classifier_does_not_need_is_left_behind(tmp_path: Path, tamper: Callable) -> None:
    mark = tmp_path / "ran"
    found = load_exported(tampered(tmp_path / "model.pt2", lambda files: tamper(files, mark)))
    assert found(picture()).shape == (5, 3)
    assert not mark.exists()


def test_the_bombs_would_go_off(tmp_path: Path) -> None:
    """Without the rewriting: so the tests above test something."""
    mark = tmp_path / "ran"
    path = tampered(tmp_path / "model.pt2", lambda files: evil_samples(files, mark))
    with contextlib.suppress(Exception):  # the damage is done by then
        torch.export.load(path)
    assert mark.exists()


class Sigmoid(nn.Module):
    """One logit of two classes, with a linear head or behind another layer."""

    def __init__(self, head: bool, end: str = "") -> None:
        super().__init__()
        self.small, self.one = Small(), nn.Linear(5, 1)
        self.head, self.end = head, end

    def forward(self, x: Tensor) -> Tensor:
        logit = self.one(self.small.features(x))
        logit = logit if self.head else logit * self.small.scale
        return torch.sigmoid(logit) if self.end == "sigmoid" else logit.softmax(1) if self.end else logit


@pytest.mark.parametrize("head", [True, False])
@torch.no_grad()
def test_a_single_logit_becomes_two_with_the_sigmoid_s_probabilities(tmp_path: Path, head: bool) -> None:
    net = Sigmoid(head).eval()
    export(net, tmp_path / "model.pt2")
    write_card(ClassifierCard(Preparation(size=SIZE, slices=2), ["no", "yes"], "export", weights="model.pt2"), tmp_path)
    blackbox = load_blackbox(tmp_path)
    x = picture()
    probability = torch.sigmoid(net(x))
    torch.testing.assert_close(blackbox(x[:, :, None]).softmax(1), torch.cat([1 - probability, probability], 1))
    assert (blackbox.head is not None) == head
    if blackbox.head is not None:
        torch.testing.assert_close(blackbox.head(blackbox.features(x[:, :, None])), blackbox(x[:, :, None]))


@pytest.mark.parametrize("end", ["sigmoid", "softmax"])
def test_probabilities_are_no_logits(tmp_path: Path, end: str) -> None:
    with pytest.raises(CheckpointError, match=f"ends in {end}, so it returns probabilities"):
        load_exported(export(Sigmoid(True, end).eval(), tmp_path / "model.pt2"))
