"""Nodules against background: what is written of the crops, and which arrays are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from diffcf.cards import Preparation, Window
from diffcf.data import Manifest, ManifestRow, hash_split, lidc
from diffcf.data.dataset import ScanDataset
from diffcf.data.lidc_background import ARRAYS, BackgroundArrays, grade_of, write_background
from diffcf.errors import ConfigError

COUNT, SIDE = 6, 32
PIXELS = (13, 0, 45, 0, 81, 149)  # of the region, a disc; none in a background


def arrays_of() -> dict[str, np.ndarray]:
    """Crops of four patients, HU of which no two pixels of a crop are the same."""
    y, x = np.indices((SIDE, SIDE))
    away = (y - 15) ** 2 + (x - 16) ** 2
    mask = np.stack([away <= sorted(away.ravel())[pixels - 1] if pixels else away < 0 for pixels in PIXELS])
    return {
        "hu": np.stack([np.arange(SIDE * SIDE).reshape(SIDE, SIDE) - 1024 + 7 * k for k in range(COUNT)]).astype(
            np.int16
        ),
        "mask": mask.astype(np.uint8),
        "label": np.array([pixels > 0 for pixels in PIXELS], np.uint8),
        "nodule_index": np.array([3, 3, 4, 7, 7, 9], np.int32),
        "y0x0": np.arange(2 * COUNT, dtype=np.int16).reshape(COUNT, 2),
        "patient": np.array(["A", "A", "A", "B", "C", "D"]),
        "manufacturer": np.array(["GE MEDICAL SYSTEMS"] * COUNT),
        "spacing": np.full(COUNT, 0.75, np.float32),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.savez_compressed(folder / ARRAYS, **arrays_of())
    return folder


def rows_of(manifest: Manifest) -> list[ManifestRow]:
    rows = [row for split in ("train", "val", "test") for row in manifest.split(split)]
    return sorted(rows, key=lambda row: row.index)


PREPARATION = Preparation(Window(-600, 1600), size=SIDE, slices=1, field="crop", spacing=None)


def test_crops_become_a_manifest(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert lidc.main(["--background", str(source), "--out", str(out), "--seed", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out / 'manifest.csv'}\ntrain: ")
    rows, made = rows_of(Manifest.read(out / "manifest.csv")), arrays_of()
    assert [row.label for row in rows] == made["label"].tolist()
    assert [row.patient for row in rows] == made["patient"].tolist()
    assert [row.split for row in rows] == [hash_split(row.patient, 1) for row in rows]
    assert [row.mask is not None for row in rows] == [pixels > 0 for pixels in PIXELS]
    # 2 sqrt(13 / pi) * 0.75 mm = 3.05 mm; 45: 5.68; 81: 7.62; 149: 10.33
    assert [row.attributes["diameter_mm"] for row in rows] == pytest.approx(
        [3.051, 0, 5.677, 0, 7.617, 10.33], abs=1e-3
    )
    assert [row.attributes["grade"] for row in rows] == [1, 0, 2, 0, 3, 4]
    assert dict(rows[2].notes) == {
        "class": "nodule", "nodule": "4", "corner": "4 5", "manufacturer": "GE MEDICAL SYSTEMS",
    }  # fmt: skip
    image = nibabel.load(rows[2].path)
    assert (image.shape, image.get_data_dtype()) == ((SIDE, SIDE, 1), np.int16)
    assert image.header.get_zooms() == pytest.approx((0.75, 0.75, 1))
    assert image.affine @ [16, 16, 0, 1] == pytest.approx([0, 0, 0, 1])  # the middle pixel
    np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 0].T, made["hu"][2])


def test_a_model_gets_the_same_pixels(source: Path, tmp_path: Path) -> None:
    rows, made = rows_of(write_background(source, tmp_path / "out")), arrays_of()
    scans = ScanDataset(rows, PREPARATION, mask=True, cache=False)
    assert scans.masks is not None
    assert np.array_equal(scans.masks[:, 0, 0].numpy(), made["mask"])
    np.testing.assert_allclose(scans.images[:, 0, 0], np.clip((made["hu"] + 600) / 800, -1, 1), atol=1e-6)


def test_grades_by_their_limits() -> None:
    assert [grade_of(mm) for mm in (0, 0.1, 4.99, 5, 5.99, 6, 7.99, 8, 30)] == [0, 1, 1, 2, 2, 3, 3, 4, 4]


def change(**arrays: object) -> Callable[[Path], None]:
    """Arrays replaced; None leaves one out."""

    def spoil(path: Path) -> None:
        made = {name: array for name, array in (arrays_of() | arrays).items() if array is not None}
        np.savez(path, **made)  # type: ignore[arg-type]

    return spoil


def swap(name: str, index: int, value: object) -> Callable[[Path], None]:
    array = arrays_of()[name]
    array[index] = value
    return change(**{name: array})


class Planted:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("planted"),)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), f"holds no {ARRAYS}"),
        (lambda path: path.write_bytes(path.read_bytes()[:700]), "not an .npz of plain numbers"),
        (lambda path: path.write_bytes(b""), "not an .npz of plain numbers"),
        (change(patient=np.array([Planted()] * COUNT)), "Pickled objects are never read"),
        (change(mask=None, spacing=None), "lacks the array(s) mask, spacing"),
        (change(hu=np.zeros((COUNT, 4), np.int16)), "hu int16 (6, 4)"),
        (change(mask=np.zeros((COUNT, 4, 4), np.uint8)), "mask uint8 (6, 4, 4): not the arrays of the same crops"),
        (change(label=np.zeros(COUNT - 1, np.uint8)), "label uint8 (5,)"),
        (change(hu=arrays_of()["hu"].astype(float)), "hu float64 (6, 32, 32)"),
        (change(patient=np.arange(COUNT)), "patient int64 (6,)"),
        (swap("label", 4, 2), "crop 4 has a label that is neither 0 nor 1"),
        (swap("patient", 3, ""), "crop 3 has no patient"),
        (swap("spacing", 2, 0), "crop 2 has a spacing that is no positive number"),
        (swap("spacing", 1, np.nan), "crop 1 has a spacing that is no positive number"),
        (swap("label", 5, 0), "crop 5 has a mask that contradicts its label"),
        (swap("mask", 0, 0), "crop 0 has a mask that contradicts its label"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    BackgroundArrays.read(source)  # whole, before
    spoil(source / ARRAYS)
    with pytest.raises(ConfigError) as error:
        write_background(source, tmp_path / "out")
    assert says in str(error.value)
    assert str(source) in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays"]


def test_a_folder_that_holds_something_is_not_written_to(source: Path) -> None:
    with pytest.raises(ConfigError, match="is not an empty folder"):
        write_background(source, source)


@pytest.mark.data
def test_real_crops_are_parts_of_the_nodules_squares(data_root: Path) -> None:
    """Every crop is cut from the square of its nodule, whose row names the patient; and 50 of them are written."""
    folder = data_root / "lidc_nodules"
    crops, nodules = BackgroundArrays.read(folder), lidc.NoduleArrays.read(folder)
    assert (len(crops), int(crops.label.sum()), len(set(crops.patient))) == (3922, 1501, 550)
    for k, (index, (y, x)) in enumerate(zip(crops.nodule_index, crops.y0x0, strict=True)):
        assert np.array_equal(nodules.hu[index, y : y + SIDE, x : x + SIDE], crops.hu[k])
        assert np.array_equal(nodules.mask[index, y : y + SIDE, x : x + SIDE], crops.mask[k])
        assert nodules.table[index]["patient"] == crops.patient[k]
        assert float(nodules.table[index]["pixel_spacing_mm"]) == pytest.approx(crops.spacing[k])


@pytest.mark.data
def test_real_crops_reach_a_model_as_they_are(data_root: Path, tmp_path: Path) -> None:
    crops = BackgroundArrays.read(data_root / "lidc_nodules")
    kept = {name: getattr(crops, name)[::80] for name in arrays_of()}
    np.savez(tmp_path / ARRAYS, **kept)
    rows = rows_of(write_background(tmp_path, tmp_path / "out"))
    scans = ScanDataset(rows, PREPARATION, mask=True, cache=False)
    assert scans.masks is not None
    assert np.array_equal(scans.masks[:, 0, 0].numpy(), kept["mask"])
    np.testing.assert_allclose(scans.images[:, 0, 0], np.clip((kept["hu"] + 600.0) / 800, -1, 1), atol=1e-6)
    assert {row.attributes["grade"] for row in rows} == {0, 1, 2, 3, 4}
