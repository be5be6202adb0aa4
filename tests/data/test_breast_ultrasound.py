"""BUSI in its own layout, written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcf.cards import Preparation, Window
from diffcf.data import breast_ultrasound as busi
from diffcf.data import hash_split
from diffcf.data.dataset import ScanDataset
from diffcf.errors import ConfigError, ScanError

ROWS, COLUMNS = 20, 30


def levels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (ROWS, COLUMNS), dtype=np.uint8)


def block(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    region = np.zeros((ROWS, COLUMNS), dtype=bool)
    region[top:bottom, left:right] = True
    return region


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Grey RGB pictures and masks of one bit, as published; one mask of 8 bits, one picture with three masks."""
    folder = tmp_path / "Dataset_BUSI_with_GT"
    seed = 0
    for kind, count in (("benign", 3), ("malignant", 2), ("normal", 1)):
        for number in range(1, count + 1):
            seed += 1
            save(folder / kind / f"{kind} ({number}).png", np.stack([levels(seed)] * 3, axis=-1))
            region = block(0, 0, 0, 0) if kind == "normal" else block(number, 2, number + 4, 9)
            save(folder / kind / f"{kind} ({number})_mask.png", region)
    save(folder / "benign" / "benign (2)_mask.png", block(2, 2, 6, 9).astype(np.uint8))  # 0 and 1
    save(folder / "malignant" / "malignant (2)_mask_1.png", block(15, 20, 18, 29))
    save(folder / "malignant" / "malignant (2)_mask_2.png", block(0, 25, 3, 29))
    return folder


def rows_of(out: Path) -> dict[str, busi.ManifestRow]:
    manifest = busi.Manifest.read(out / "manifest.csv")
    return {row.path.stem: row for split in ("train", "val", "test") for row in manifest.split(split)}


def test_pictures_joined_masks_and_labels(source: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert busi.main(["--source", str(source), "--out", str(out), "--seed", "4"]) == 0
    assert f"wrote {out / 'manifest.csv'}" in capsys.readouterr().out
    rows = rows_of(out)
    assert {name: row.label for name, row in rows.items()} == {
        "benign-0001": 0, "benign-0002": 0, "benign-0003": 0, "malignant-0001": 1, "malignant-0002": 1,
    }  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(rows["malignant-0001"].path)), levels(4))
    expected = block(2, 2, 6, 9) | block(15, 20, 18, 29) | block(0, 25, 3, 29)
    assert np.array_equal(np.asarray(Image.open(rows["malignant-0002"].mask)), expected * 255)
    assert np.array_equal(np.asarray(Image.open(rows["benign-0002"].mask)), block(2, 2, 6, 9) * 255)
    assert rows["malignant-0002"].notes == {"file": "malignant (2).png", "masks": "3"}
    for name, row in rows.items():
        assert row.patient == name
        assert row.split == hash_split(name, 4)
    assert not (out / "skipped.txt").exists()


def test_the_mask_lies_on_the_picture_as_a_model_sees_it(source: Path, tmp_path: Path) -> None:
    # Where the mask is the picture is white, so that the two coincide after the same cut or not at all.
    region = block(12, 3, 19, 11)
    save(source / "benign" / "benign (1).png", np.where(region, 255, 0).astype(np.uint8))
    save(source / "benign" / "benign (1)_mask.png", region)
    busi.write_busi(source, tmp_path / "out")
    row = rows_of(tmp_path / "out")["benign-0001"]
    preparation = Preparation(
        window=Window(127.5, 255), size=30, slices=1, field="resize", spacing=None, modality="other"
    )
    made = ScanDataset([row], preparation, mask=True, cache=False)
    assert made.masks is not None
    assert made.masks[0, 0, 0].bool().equal(made.images[0, 0, 0] > 0)
    assert int(made.masks.sum()) == region.sum()


@pytest.mark.parametrize(("normal", "label"), [("class", 2), ("unlabelled", None)])
def test_normal_pictures_on_demand(source: Path, tmp_path: Path, normal, label) -> None:
    assert busi.main(["--source", str(source), "--out", str(tmp_path / "out"), "--normal", normal]) == 0
    row = rows_of(tmp_path / "out")["normal-0001"]
    assert row.label == label
    assert row.mask is None


def test_the_same_picture_twice_is_one_patient(source: Path, tmp_path: Path) -> None:
    # Under other seeds the two names fall into two splits.
    names = ("benign-0001", "malignant-0002")
    seed = next(seed for seed in range(100) if len({hash_split(name, seed) for name in names}) == 2)
    save(source / "malignant" / "malignant (2).png", levels(1))  # grey, not RGB: the same levels
    busi.write_busi(source, tmp_path / "out", seed=seed)
    one, other = (rows_of(tmp_path / "out")[name] for name in names)
    assert one.patient == other.patient == "benign-0001"
    assert one.split == other.split


def test_a_coloured_picture_becomes_its_luminance(source: Path, tmp_path: Path) -> None:
    colour = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    colour[..., 0], colour[..., 1], colour[..., 2] = 200, 30, 90
    save(source / "benign" / "benign (3).png", colour)
    busi.write_busi(source, tmp_path / "out")
    stored = np.asarray(Image.open(rows_of(tmp_path / "out")["benign-0003"].path))
    assert np.abs(stored - (0.299 * 200 + 0.587 * 30 + 0.114 * 90)).max() <= 1  # ITU-R BT.601


def spoil(source: Path, kind: str) -> None:
    mask = source / "benign" / "benign (2)_mask.png"
    if kind == "missing mask":
        mask.unlink()
    elif kind == "mask of another size":
        save(mask, block(1, 1, 5, 5).T)
    elif kind == "empty mask":
        save(mask, block(0, 0, 0, 0))
    elif kind == "damaged picture":
        picture = source / "benign" / "benign (2).png"
        picture.write_bytes(picture.read_bytes()[:200])
    elif kind == "16 bits":
        save(source / "benign" / "benign (2).png", levels(1).astype(np.uint16))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing mask", r"benign \(2\)\.png: there is no 'benign \(2\)_mask\.png' beside it"),
        ("mask of another size", r"benign \(2\)_mask\.png: 30 x 20 pixels .* its picture has 20 x 30"),
        ("empty mask", r"benign \(2\)_mask\.png: an empty mask, of a benign picture"),
        ("damaged picture", r"benign \(2\)\.png: a damaged picture"),
        ("16 bits", r"benign \(2\)\.png: a picture of mode I;16; BUSI has 8 bits"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused_or_left_out(source: Path, tmp_path: Path, kind, says, capsys) -> None:
    spoil(source, kind)
    out = tmp_path / "out"
    with pytest.raises(ScanError, match=f"1 of 5 cases cannot be used; --skip(.|\n)*{says}"):
        busi.write_busi(source, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Dataset_BUSI_with_GT"]
    assert busi.main(["--source", str(source), "--out", str(out), "--skip"]) == 0
    assert "left out 1 case(s)" in capsys.readouterr().out
    assert sorted(rows_of(out)) == ["benign-0001", "benign-0003", "malignant-0001", "malignant-0002"]
    assert len(list((out / "images").iterdir())) == len(list((out / "masks").iterdir())) == 4
    assert "benign (2)" in (out / "skipped.txt").read_text()


def test_a_normal_picture_with_a_lesion_is_refused(source: Path, tmp_path: Path) -> None:
    save(source / "normal" / "normal (1)_mask.png", block(1, 1, 5, 5))
    with pytest.raises(ScanError, match="a normal picture whose mask shows a lesion"):
        busi.write_busi(source, tmp_path / "out", normal="class")


def test_what_is_not_busi_is_refused(source: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert busi.main(["--source", str(source.parent), "--out", str(out)]) == 2
    assert "has no folder benign/" in capsys.readouterr().err
    assert busi.main(["--source", str(source / "none"), "--out", str(out)]) == 2
    assert "is not a folder" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="normal 'keep': expected leave, class, unlabelled"):
        busi.write_busi(source, out, normal="keep")  # type: ignore[arg-type]
    (source / "malignant" / "._malignant (1).png").write_bytes(b"of a file manager")
    save(source / "malignant" / "malignant (9)_mask.png", block(1, 1, 5, 5))
    with pytest.raises(ConfigError, match=r"there is no picture 'malignant \(9\)\.png' to this mask"):
        busi.write_busi(source, out)
    save(source / "malignant" / "benign (9).png", levels(0))
    with pytest.raises(ConfigError, match=r"benign \(9\)\.png: expected 'malignant \(1\)\.png'"):
        busi.write_busi(source, out)
    for path in (source / "benign").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"holds no picture 'benign \(1\)\.png'"):
        busi.write_busi(source, out)
    assert not out.exists()


def test_nothing_left_is_an_error(source: Path, tmp_path: Path) -> None:
    for path in source.glob("*/*_mask*.png"):
        path.unlink()
    with pytest.raises(ScanError, match="5 of 5 cases cannot be used, so nothing is left"):
        busi.write_busi(source, tmp_path / "out", skip=True)
    assert not (tmp_path / "out").exists()
