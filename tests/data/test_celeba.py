"""CelebA in its own layout, written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcf.cards import Preparation, Window
from diffcf.data import celeba
from diffcf.data.dataset import ScanDataset
from diffcf.errors import ConfigError

NAMES = "Male Smiling Young"
VALUES = {"000001.jpg": "-1  1  1", "000002.jpg": " 1 -1  1", "000003.jpg": " 1  1 -1", "000004.jpg": "-1 -1 -1"}
PARTS = {"000001.jpg": "0", "000002.jpg": "0", "000003.jpg": "1", "000004.jpg": "2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "celeba"
    (source / "img_align_celeba").mkdir(parents=True)
    for number, name in enumerate(VALUES):
        pixels = np.zeros((218, 178, 3), np.uint8)
        pixels[20:198] = 40 * (number + 1)  # the central square
        Image.fromarray(pixels).save(source / "img_align_celeba" / name, quality=100)
    listed = [f"{name} {values}" for name, values in VALUES.items()]
    (source / "list_attr_celeba.txt").write_text("\n".join([str(len(listed)), NAMES, *listed]) + "\n")
    (source / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in PARTS.items()))
    return source


def test_the_original_layout_becomes_grey_pictures_with_attributes(folder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert celeba.main(["--source", str(folder), "--out", str(out), "--label", "Smiling", "--size", "16"]) == 0
    assert "train 2, val 1, test 1" in capsys.readouterr().out
    manifest = celeba.Manifest.read(out / "manifest.csv")
    first, second = manifest.split("train")
    assert (first.label, second.label) == (1, 0)
    assert first.attributes == {"Male": 0.0, "Smiling": 1.0, "Young": 1.0}
    assert first.patient == "000001"
    preparation = Preparation(
        window=Window(127.5, 255), size=16, slices=1, field="resize", spacing=None, modality="other"
    )
    images = ScanDataset(manifest, preparation, split="train", cache=False).images
    levels = (images + 1) * 127.5
    assert levels[0].round().unique().tolist() == [40]  # the square alone, without the black bars
    assert levels[1].round().unique().tolist() == [80]


def test_a_person_stays_in_one_split(folder, tmp_path, capsys) -> None:
    people = {"000001.jpg": "7", "000002.jpg": "7", "000003.jpg": "7", "000004.jpg": "9"}
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} {who}\n" for name, who in people.items()))
    assert celeba.main(["--source", str(folder), "--out", str(tmp_path / "out"), "--label", "Young"]) == 0
    said = capsys.readouterr().out
    assert "train 3, val 0, test 1" in said
    assert "1 people had pictures in several partitions" in said


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("list_attr_celeba.txt", None, "does not exist"),
        ("list_attr_celeba.txt", f"5\n{NAMES}\n000001.jpg 1 1 1\n", "says 5 pictures and lists 1"),
        ("list_attr_celeba.txt", f"1\n{NAMES}\n000001.jpg 1 0 1\n", "line 3: expected a picture and 3 values"),
        ("list_attr_celeba.txt", f"{NAMES}\n000001.jpg 1 1 1\n", "starts with"),
        ("list_attr_celeba.txt", f"0\n{NAMES}\n", "says 0 pictures"),
        ("list_attr_celeba.txt", "1\nMale Young Young\n000001.jpg 1 1 1\n", "there twice"),
        ("list_attr_celeba.txt", f"1\n{NAMES}\n" + 2 * "000001.jpg 1 1 1\n", "line 4: 000001.jpg is there twice"),
        ("list_attr_celeba.txt", f"1\n{NAMES}\n000001.jpg 1 1\n", "line 3: expected a picture and 3 values"),
        ("list_eval_partition.txt", None, "list_eval_partition.txt does not exist"),
        ("list_eval_partition.txt", 2 * "000001.jpg 0\n", "line 2: 000001.jpg is there twice"),
        ("list_eval_partition.txt", "000001.jpg 0\n", "3 picture"),
        ("list_eval_partition.txt", "000001.jpg 0 1\n", "line 1: expected a picture and a value"),
        ("list_eval_partition.txt", "".join(f"{name} 3\n" for name in VALUES), "partition"),
        ("img_align_celeba/000003.jpg", None, "000003.jpg does not exist"),
        ("img_align_celeba/000002.jpg", "no picture", "000002.jpg: a damaged picture, or none"),
    ],
)
def test_what_is_not_celeba_is_refused_and_nothing_is_written(folder, tmp_path, file, content, says, capsys) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    assert celeba.main(["--source", str(folder), "--out", str(tmp_path / "out"), "--label", "Young"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_identities_are_those_of_all_pictures_or_none(folder, tmp_path, capsys) -> None:
    # Were the others patients of their own, pictures of one person could lie in two splits.
    (folder / "identity_CelebA.txt").write_text("000001.jpg 7\n000002.jpg 7\n")
    assert celeba.main(["--source", str(folder), "--out", str(tmp_path / "out"), "--label", "Young"]) == 2
    assert "identity_CelebA.txt lacks 2 picture(s), 000003.jpg first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_text_that_is_not_utf8_a_cut_picture_and_numbers_out_of_range(folder, tmp_path) -> None:
    def written(**options):
        return celeba.write_celeba(folder, tmp_path / "out", label="Young", **options)

    with pytest.raises(ConfigError, match="size 0"):
        written(size=0)
    with pytest.raises(ConfigError, match="count -1"):
        written(count=-1)
    picture = folder / "img_align_celeba" / "000004.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    with pytest.raises(ConfigError, match=r"000004\.jpg: a damaged picture"):
        written()
    (folder / "list_attr_celeba.txt").write_bytes("4".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"list_attr_celeba\.txt is not UTF-8"):
        written()
    assert not (tmp_path / "out").exists()


def test_a_picture_is_its_luminance_in_the_central_square(tmp_path) -> None:
    left, right = (200, 30, 90), (10, 250, 60)
    pixels = np.full((12, 8, 3), 255, np.uint8)
    pixels[2:10, :4], pixels[2:10, 4:] = left, right
    Image.fromarray(pixels).save(tmp_path / "face.png")
    made = np.asarray(celeba.grey_square(tmp_path / "face.png", 2))
    expected = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in (left, right)]  # ITU-R BT.601
    np.testing.assert_allclose(made, [expected, expected], atol=1)


def test_count_takes_the_first_of_each_split(folder, tmp_path) -> None:
    manifest, moved = celeba.write_celeba(folder, tmp_path / "out", label="Male", size=8, count=1)
    assert {split: [row.patient for row in manifest.split(split)] for split in ("train", "val", "test")} == {
        "train": ["000001"],
        "val": ["000003"],
        "test": ["000004"],
    }
    assert moved == 0


def test_an_unknown_attribute_is_named_with_those_there_are(folder, tmp_path, capsys) -> None:
    assert celeba.main(["--source", str(folder), "--out", str(tmp_path / "out"), "--label", "Old"]) == 2
    assert "no attribute 'Old'; there are Male, Smiling, Young" in capsys.readouterr().err
