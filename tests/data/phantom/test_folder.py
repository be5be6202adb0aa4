"""Sets on disk: labels by the mark, and causes of both classes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import pytest

from diffcf.data.phantom import Shortcut
from diffcf.data.phantom.folder import PhantomSet, write_scenes
from diffcf.errors import ConfigError
from diffcf.scans import read_scan


def test_a_set_labelled_by_its_mark(tmp_path) -> None:
    wanted = PhantomSet("nodule", 12, size=32, shortcut=Shortcut(correlation=0), label="mark")
    made = write_scenes(wanted, tmp_path / "set")
    rows = [row for split in ("train", "val", "test") for row in made.split(split)]
    assert all(row.label == row.attributes["shortcut"] for row in rows)
    assert len({row.label for row in rows}) == 2
    mask = nibabel.load(rows[0].mask).get_fdata()
    assert 0 < mask.mean() < 0.1
    assert mask[16:, 16:].sum() == 0 or mask[:16, :16].sum() == 0  # a corner, not the nodule
    with pytest.raises(ConfigError, match="labels by the mark"):
        write_scenes(PhantomSet("nodule", 2, label="mark"), tmp_path / "other")


def test_the_cause_of_both_classes(tmp_path: Path) -> None:
    for cause in ("scene", "classes"):
        write_scenes(PhantomSet("nodule", 4, size=32, cause=cause), tmp_path / cause)
    for path in (tmp_path / "scene" / "masks").iterdir():
        one = read_scan(path, modality="other").volume > 0
        both = read_scan(tmp_path / "classes" / "masks" / path.name, modality="other").volume > 0
        assert (both | ~one).all()
        assert both.any()
    with pytest.raises(ConfigError, match="known for nodules"):
        write_scenes(PhantomSet("fibrosis", 1, cause="classes"), tmp_path / "none")
