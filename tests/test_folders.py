"""A results folder appears whole or not at all."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from safetensors import safe_open

from diffcf.errors import ConfigError
from diffcf.folders import whole_folder, write_array
from diffcf.weights import write_tensors

MARKER = "explanation.json"
OURS = (MARKER, "*.png")


def fill(folder, text="{}"):
    (folder / MARKER).write_text(text)


def test_appears_at_the_end(tmp_path):
    out = tmp_path / "deep" / "out"
    with whole_folder(out, OURS) as folder:
        fill(folder)
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == [MARKER]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_a_link_leads_to_is_filled(tmp_path):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.mkdir(parents=True)
    link.symlink_to(real)
    for overwrite in (False, True):
        with whole_folder(link, OURS, overwrite=overwrite) as folder:
            fill(folder)
        assert link.is_symlink()
        assert [path.name for path in real.iterdir()] == [MARKER]
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "link"}


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "deep" / "er" / "out", OURS) as folder:
        fill(folder / "missing")
    assert not list(tmp_path.iterdir())


def test_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with whole_folder(out, OURS) as folder:
        fill(folder)
    with pytest.raises(ConfigError, match="not empty"), whole_folder(out, OURS):
        pytest.fail("the block ran")


def test_overwrite_replaces_results_only(tmp_path):
    out = tmp_path / "out"
    with whole_folder(out, OURS) as folder:
        fill(folder, "old")
    with pytest.raises(KeyError), whole_folder(out, OURS, overwrite=True):
        raise KeyError
    assert (out / MARKER).read_text() == "old"
    with whole_folder(out, OURS, overwrite=True) as folder:
        fill(folder, "new")
    assert (out / MARKER).read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1
    (out / MARKER).rename(out / "thesis.docx")
    with pytest.raises(ConfigError, match="no earlier result"), whole_folder(out, OURS, overwrite=True):
        pytest.fail("the block ran")


def test_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file"), whole_folder(tmp_path / "out", OURS):
        pytest.fail("the block ran")


def test_overwrite_keeps_what_is_not_ours(tmp_path):
    out = tmp_path / "out"
    with whole_folder(out, OURS) as folder:
        fill(folder)
        (folder / "panel.png").touch()
    (out / "notes.txt").write_text("mine")
    with (
        pytest.raises(ConfigError, match=r"more than an earlier result \(notes.txt\)"),
        whole_folder(out, OURS, overwrite=True),
    ):
        pytest.fail("the block ran")
    (out / "notes.txt").unlink()
    (out / "more").mkdir()
    with pytest.raises(ConfigError, match="more than"), whole_folder(out, OURS, overwrite=True):
        pytest.fail("the block ran")
    (out / "more").rmdir()
    with whole_folder(out, OURS, overwrite=True) as folder:
        fill(folder)
    assert [path.name for path in out.iterdir()] == [MARKER]


def test_a_place_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"), whole_folder(tmp_path / "file" / "out", OURS):
        pytest.fail("the block ran")


def test_a_mount_point_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: str(path).endswith("out"))
    with pytest.raises(ConfigError, match=r"a mount point.*out/result"), whole_folder(tmp_path / "out", OURS):
        pytest.fail("the work was done")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path):
    (tmp_path / f".out.{os.getpid()}.tmp").mkdir()
    with whole_folder(tmp_path / "out", OURS) as folder:
        (folder / "a.json").write_text("{}")
    assert (tmp_path / "out" / "a.json").is_file()


def test_what_is_never_replaced_says_so(tmp_path):
    out = tmp_path / "set"
    with whole_folder(out, ()) as folder:
        fill(folder)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not an empty folder"), whole_folder(out, (), overwrite=overwrite):
            pytest.fail("the block ran")
    with pytest.raises(ConfigError, match="not an empty folder"), whole_folder(out / MARKER, ()):
        pytest.fail("the block ran")


def test_files_may_be_read_by_those_who_may_read_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        write_array(tmp_path / "kept.npy", np.zeros(3))
        write_tensors({"a": torch.zeros(3)}, tmp_path / "model.safetensors", about={"of": "zeros"})
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        "kept.npy": "0o640",
        "model.safetensors": "0o640",
    }
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "of": "zeros"}
