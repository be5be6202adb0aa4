"""Names, hashes and reading without unpickling."""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from diffcf import weights
from diffcf.errors import CheckpointError, ConfigError
from diffcf.weights import bundled, content_hash, read_tensors, resolve, write_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(1, dtype=torch.float16)}


class Bomb:
    def __reduce__(self):
        return (print, ("the file ran code",))


def test_names_are_paths_or_bundled_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ASSETS", tmp_path / "assets")
    assert bundled() == []
    (tmp_path / "assets" / "lidc" / "agent").mkdir(parents=True)
    assert bundled() == ["lidc"]
    assert resolve("lidc/agent") == tmp_path / "assets" / "lidc" / "agent"
    assert resolve(tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match=r"liver is neither .* \(bundled: lidc\)"):
        resolve("liver")
    (tmp_path / "secret").mkdir()
    with pytest.raises(CheckpointError):
        resolve("../secret")


def test_hashes_follow_content_not_place(tmp_path):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "x.bin").write_bytes(b"1")
    (tmp_path / "a" / "sub" / "y.bin").write_bytes(b"2")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("words")
    (tmp_path / "b" / ".hidden").write_text("words")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    (tmp_path / "b" / "trust.safetensors").write_bytes(b"3")
    (tmp_path / "a" / "card.yaml").write_text("classes: [x, y]\nsize: 3\nabout: {figure: 1}\n")
    (tmp_path / "b" / "card.yaml").write_text("size: 3\nclasses: [x, y]\ntrust: null\n")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    (tmp_path / "b" / "card.yaml").write_text("size: 4\nclasses: [x, y]\n")
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "b")
    shutil.copy(tmp_path / "a" / "card.yaml", tmp_path / "b" / "card.yaml")
    (tmp_path / "b" / "sub" / "y.bin").rename(tmp_path / "b" / "sub" / "z.bin")
    assert content_hash(tmp_path / "a") != content_hash(tmp_path / "b")
    assert len(content_hash(tmp_path / "a" / "x.bin")) == 64


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_state_dicts_are_read(tmp_path, wrapper):
    torch.save(TENSORS if wrapper is None else {wrapper: TENSORS, "epoch": 3}, tmp_path / "m.pt")
    found = read_tensors(tmp_path / "m.pt")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in found)


def test_safetensors_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "m.safetensors")
    assert torch.equal(read_tensors(tmp_path / "m.safetensors")["a"], TENSORS["a"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.pt", pickle.dumps(Bomb()), "can run any code"),
        ("m.pth", b"", "plain tensors"),
        ("m.safetensors", b"12345678", "safetensors"),
    ],
)
def test_nothing_is_unpickled(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path / name)
    assert "ran code" not in capsys.readouterr().out


def test_whole_models_and_other_things_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="save its state dict"):
        read_tensors(tmp_path / "whole.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no state dict"):
        read_tensors(tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no weights at"):
        read_tensors(tmp_path / "missing.pt")


def test_notes_are_no_part_of_a_model_and_a_bare_file_with_its_card_is_the_folder(tmp_path):
    (tmp_path / "set" / "classifier").mkdir(parents=True)
    folder = tmp_path / "set" / "classifier"
    (folder / "card.yaml").write_text("classes: [x, y]")
    (folder / "model.pth").write_bytes(b"1")
    whole = content_hash(folder)
    (folder / "notes.txt").write_text("words")
    assert content_hash(folder) == whole
    assert content_hash(tmp_path / "set", "classifier") == whole
    assert content_hash(folder / "model.pth") == whole  # its card lies beside it
    shutil.copy(folder / "model.pth", tmp_path / "model.pth")
    assert content_hash(tmp_path / "model.pth") != whole
    assert content_hash(tmp_path / "model.pth", "classifier", card=folder / "card.yaml") == whole


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(ConfigError, match="b holds what half precision cannot hold"):
        write_tensors({"a": torch.ones(2), "b": torch.tensor([1.1e5])}, tmp_path / "m.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []
