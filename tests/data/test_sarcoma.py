"""Soft-tissue sarcomas in the layout of their files, written with nibabel: stacks, labels and regions."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from diffcf.cards import Preparation, Window
from diffcf.data import Manifest, ManifestRow, hash_split, sarcoma
from diffcf.data.dataset import ScanDataset
from diffcf.errors import ConfigError, ScanError

AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1.0, 0, 60], [0, 0, 3, -300], [0, 0, 0, 1.0]])
TUMOUR = {"STS_001": (10, 22), "STS_002": (0, 10), "STS_003": (9, 12)}  # patient -> slices that show it
DEPTH = {"STS_001": 31, "STS_002": 20, "STS_003": 24}


def save(path: Path, volume: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)


def limb(patient: str) -> np.ndarray:
    """HU of 10 a slice in air, "x y z"."""
    volume = np.tile((10 * np.arange(DEPTH[patient])).astype(np.int16), (24, 20, 1))
    volume[:2] = -1000
    return volume


def region(patient: str) -> np.ndarray:
    volume = np.zeros((24, 20, DEPTH[patient]), np.uint8)
    volume[4:16, 5:15, slice(*TUMOUR[patient])] = 1  # 120 mm2
    return volume


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("sts")
    for patient in TUMOUR:
        save(source / f"{patient}_ct.nii.gz", limb(patient))
        save(source / f"{patient}_mask.nii.gz", region(patient))
    (source / "patients.csv").write_text("patient\n")
    return source


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "sts"))


def rows_of(manifest: Manifest) -> dict[tuple[str, str], ManifestRow]:
    return {(row.patient, str(row.slices)): row for split in ("train", "val", "test") for row in manifest.split(split)}


def test_stacks_are_laid_end_to_end_and_mixed_ones_left_out(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sarcoma.main(["--source", str(whole), "--out", str(out), "--seed", "3"]) == 0
    assert f"wrote {out / 'manifest.csv'}" in capsys.readouterr().out
    rows = rows_of(Manifest.read(out / "manifest.csv"))
    # 31 slices: seven stacks from slice 1; 9 to 12 begins before the tumour and 21 to 24 ends behind it.
    assert {slices: row.label for (patient, slices), row in rows.items() if patient == "STS_001"} == {
        "1,2,3,4": 0, "5,6,7,8": 0, "13,14,15,16": 1, "17,18,19,20": 1, "25,26,27,28": 0,
    }  # fmt: skip
    assert {slices: row.label for (patient, slices), row in rows.items() if patient == "STS_002"} == {
        "0,1,2,3": 1, "4,5,6,7": 1, "12,13,14,15": 0, "16,17,18,19": 0,
    }  # fmt: skip
    assert {row.label for (patient, _), row in rows.items() if patient == "STS_003"} == {0}  # three slices of tumour
    shown, none = rows["STS_001", "13,14,15,16"], rows["STS_001", "1,2,3,4"]
    assert shown.split == none.split == hash_split("STS_001", 3)
    assert shown.path == none.path == whole / "STS_001_ct.nii.gz"
    assert (shown.mask, none.mask) == (whole / "STS_001_mask.nii.gz", None)
    assert dict(shown.attributes) == {"place": round(15 / 31, 4), "tumour_mm2": 120}
    assert dict(none.attributes) == {"place": round(3 / 31, 4), "tumour_mm2": 0}


def test_a_small_tumour_counts_as_neither(whole: Path, tmp_path: Path) -> None:
    rows = rows_of(sarcoma.write_sarcoma(whole, tmp_path / "out", min_area=121, slices=2))
    assert {row.label for row in rows.values()} == {0}
    assert ("STS_001", "11,12") not in rows
    rows = rows_of(sarcoma.write_sarcoma(whole, tmp_path / "thin", min_area=120, slices=2))
    assert rows["STS_001", "10,11"].label == 1


def test_slices_and_region_as_a_model_sees_them(whole: Path, tmp_path: Path) -> None:
    row = rows_of(sarcoma.write_sarcoma(whole, tmp_path / "out"))["STS_001", "13,14,15,16"]
    made = ScanDataset([row], Preparation(Window(100, 400), 24, 4, "resize", None), mask=True, cache=False)
    assert made.masks is not None
    assert made.images.shape == (1, 4, 1, 24, 24)
    np.testing.assert_allclose(made.images[0, :, 0, 12, 12], (np.array([130, 140, 150, 160]) - 100) / 200, atol=1e-6)
    assert made.masks.sum((2, 3, 4)).tolist() == [[120, 120, 120, 120]]


def test_what_cannot_be_used(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"0 slices, min_area 100\.0 mm2: expected 1 or more"):
        sarcoma.write_sarcoma(source, out, slices=0)
    with pytest.raises(ConfigError, match="0 mm2"):
        sarcoma.write_sarcoma(source, out, min_area=0)
    with pytest.raises(ConfigError, match="is not a folder"):
        sarcoma.write_sarcoma(source / "none", out)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"expected NAME_ct\.nii\.gz and NAME_mask\.nii\.gz .* there is no such file"):
        sarcoma.write_sarcoma(empty, out)
    save(source / "STS_002_mask.nii.gz", region("STS_001"))
    with pytest.raises(ScanError, match=r"1 of 3 cases(.|\n)*STS_002_mask\.nii\.gz: the mask is not on the grid"):
        sarcoma.write_sarcoma(source, out)
    assert not out.exists()
    assert sarcoma.main(["--source", str(source), "--out", str(out), "--skip"]) == 0
    assert "left out 1 case(s)" in capsys.readouterr().out
    with pytest.raises(ScanError, match="no 30 neighbouring slices that all show 100 mm2"):
        sarcoma.write_sarcoma(source, tmp_path / "thick", slices=30, skip=False)
    (source / "STS_003_mask.nii.gz").unlink()
    with pytest.raises(ConfigError, match="of STS_003 there is only one of both files"):
        sarcoma.write_sarcoma(source, tmp_path / "other")
    assert sarcoma.main(["--source", str(source), "--out", str(tmp_path / "other")]) == 2


@pytest.mark.data
def test_the_real_volumes(data_root: Path, tmp_path: Path) -> None:
    manifest = sarcoma.write_sarcoma(data_root / "sts_ct", tmp_path / "out", seed=6)
    counts = {split: manifest.class_counts(split) for split in ("train", "val", "test")}
    assert counts == {"train": {0: 75, 1: 107}, "val": {0: 29, 1: 44}, "test": {0: 40, 1: 73}}
