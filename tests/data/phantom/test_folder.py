"""Sets on disk: labels by the mark, causes of both classes, and the territory that has the lesion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from diffcf.cards import Preparation, Window
from diffcf.data.dataset import ScanDataset
from diffcf.data.phantom import Shortcut
from diffcf.data.phantom.folder import PhantomSet, territory_masks, write_scenes
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"shortcut": Shortcut()},
        {"shortcut": Shortcut(correlation=0), "test_correlation": 0.5},
        {"imbalance": 0.1},
        {"cause": "classes"},
    ],
)
def test_what_follows_the_disease_goes_with_no_other_label(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError, match="follow the disease, and the label is 'texture'"):
        write_scenes(PhantomSet("nodule", 2, size=32, label="texture", **wrong), tmp_path / "set")
    made = write_scenes(PhantomSet("nodule", 8, size=32, label="texture", shortcut=Shortcut(correlation=0)), tmp_path)
    assert {row.label for split in ("train", "val", "test") for row in made.split(split)} == {0, 1}


def test_the_territory_of_the_lesion_on_a_models_grid(tmp_path: Path) -> None:
    made = write_scenes(PhantomSet("territory", 12, size=64), tmp_path / "set")
    rows = [row for split in ("train", "val", "test") for row in made.split(split)]
    whole = Preparation(Window(40, 80), size=64, slices=1, field="resize", spacing=None)
    masks = territory_masks(rows, whole)
    assert (masks.shape, masks.dtype) == ((12, 1, 1, 64, 64), torch.float32)
    lesions = ScanDataset(rows, whole, mask=True, cache=False).masks
    assert lesions is not None
    for row, mask, lesion in zip(rows, masks, lesions, strict=True):
        assert {"grade", "territory", "contrast"} <= set(row.attributes)
        stored = np.asarray(nibabel.load(tmp_path / "set" / "regions" / row.path.name).dataobj)[:, :, 0].T
        assert set(np.unique(stored)) == set(range(7))
        number = row.attributes["territory"] + 1  # 0 stands for no lesion
        assert number == 0 or np.array_equal(mask[0, 0].numpy(), stored == number)
        assert bool(mask.any()) == (row.label == 1)
        assert bool((mask >= lesion).all())  # the territory bounds the lesion
    half = territory_masks(rows, replace(whole, size=32))
    assert torch.allclose(half.mean((1, 2, 3, 4)), masks.mean((1, 2, 3, 4)), atol=0.02)
    crop = territory_masks(rows, replace(whole, size=32, field="crop"))
    assert torch.equal(crop, masks[..., 16:48, 16:48])


def test_brains_by_side(tmp_path: Path) -> None:
    made = write_scenes(PhantomSet("territory", 24, size=32, label="side"), tmp_path / "set")
    rows = [row for split in ("train", "val", "test") for row in made.split(split)]
    assert {(row.label, row.notes["class"]) for row in rows} == {
        (0, "no lesion"),
        (1, "left"),
        (2, "right"),
        (3, "both"),
    }
    whole = Preparation(Window(40, 80), size=32, slices=1, field="resize", spacing=None)
    masks, lesions = territory_masks(rows, whole), ScanDataset(rows, whole, mask=True, cache=False).masks
    assert lesions is not None
    for row, mask, lesion in zip(rows, masks, lesions, strict=True):
        stored = np.asarray(nibabel.load(tmp_path / "set" / "regions" / row.path.name).dataobj)[:, :, 0].T
        numbers = [row.attributes[name] + 1 for name in ("territory", "second") if row.attributes[name] >= 0]
        assert len(numbers) == (0, 1, 1, 2)[row.label]
        assert np.array_equal(mask[0, 0].numpy(), np.isin(stored, numbers))
        assert bool((mask >= lesion).all())
    with pytest.raises(ConfigError, match="label 'side': of the kind nodule expected one of disease, mark, "):
        write_scenes(PhantomSet("nodule", 1, label="side"), tmp_path / "other")


def test_territories_of_other_data_are_refused(tmp_path: Path) -> None:
    made = write_scenes(PhantomSet("territory", 1, size=32), tmp_path / "set")
    (row,) = (row for split in ("train", "val", "test") for row in made.split(split))
    preparation = Preparation(Window(40, 80), size=32, slices=1, field="resize", spacing=None)
    with pytest.raises(ConfigError, match=r"territory None, .*expected -1 to 5 and a file"):
        territory_masks([replace(row, attributes={})], preparation)
    (tmp_path / "set" / "regions" / row.path.name).unlink()
    with pytest.raises(ConfigError, match=r"regions at .*000000\.nii\.gz; expected"):
        territory_masks([row], preparation)
