"""MosMedData in its own layout, written with nibabel."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from diffcf.cards import Preparation, Window
from diffcf.data import Manifest, ManifestRow, hash_split, mosmed
from diffcf.data.dataset import ScanDataset
from diffcf.errors import ConfigError, ScanError

SHAPE = (20, 20, 22)  # x, y, z: the file's own order
AFFINE = np.array([[-0.7, 0, 0, 90], [0, -0.7, 0, 60], [0, 0, 8, -300], [0, 0, 0, 1.0]])
SEVERITY = {1: 0, 2: 0, 255: 1, 256: 1, 939: 2, 1064: 3, 1109: 4}  # study -> CT-k


def chest(seed: int, depth: int = SHAPE[2]) -> np.ndarray:
    """Noise in HU around -800 + 10 z."""
    random = np.random.default_rng(seed)
    return (random.integers(-40, 40, (*SHAPE[:2], depth)) + 10 * np.arange(depth) - 800).astype(np.int16)


def region() -> np.ndarray:
    volume = np.zeros(SHAPE, np.uint8)
    volume[3:9, 11:15, 6:10] = 1
    return volume


def save(path: Path, volume: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)


def study_path(source: Path, number: int) -> Path:
    return source / "studies" / f"CT-{SEVERITY[number]}" / f"study_{number:04d}.nii.gz"


def mask_path(source: Path) -> Path:
    return source / "masks" / "study_0255_mask.nii.gz"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("mosmed") / "COVID19_1110"
    for number in SEVERITY:
        save(study_path(source, number), chest(number))
    save(mask_path(source), region())
    (source / "README_EN.pdf").write_bytes(b"%PDF-1.4")
    (source / "studies" / "CT-0" / ".DS_Store").write_bytes(b"\0")
    return source


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "COVID19_1110"))


def rows_of(manifest: Manifest) -> dict[str, ManifestRow]:
    return {row.patient: row for split in ("train", "val", "test") for row in manifest.split(split)}


def test_moderate_against_none(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert mosmed.main(["--source", str(whole), "--out", str(out), "--seed", "5"]) == 0
    assert f"wrote {out / 'manifest.csv'}" in capsys.readouterr().out
    rows = rows_of(Manifest.read(out / "manifest.csv"))
    assert {name: (row.label, row.attributes["severity"]) for name, row in rows.items()} == {
        "study_0001": (0, 0), "study_0002": (0, 0), "study_0939": (1, 2), "study_1064": (1, 3), "study_1109": (1, 4),
    }  # fmt: skip
    assert all(row.split == hash_split(name, 5) for name, row in rows.items())
    assert rows["study_0939"].path == study_path(whole, 939)
    assert all(row.slices == "1,3,5,7,9,11,13,15,17,19,21" for row in rows.values())  # 22 slices, every second
    assert sorted(path.name for path in out.iterdir()) == ["manifest.csv"]


def test_any_and_outlined(whole: Path, tmp_path: Path) -> None:
    rows = rows_of(mosmed.write_mosmed(whole, tmp_path / "any", label="any", slices=3))
    assert {name: row.label for name, row in rows.items()} == {
        f"study_{number:04d}": int(severity > 0) for number, severity in SEVERITY.items()
    }
    assert {name: row.mask for name, row in rows.items() if row.mask} == {"study_0255": mask_path(whole)}
    assert {row.slices for row in rows.values()} == {"3,11,18"}
    (row,) = rows_of(mosmed.write_mosmed(whole, tmp_path / "outlined", label="outlined")).values()
    assert (row.patient, row.label, row.split, row.attributes["severity"]) == ("study_0255", 1, "test", 1)
    assert row.mask == mask_path(whole)


def test_slices_and_region_as_a_model_sees_them(whole: Path, tmp_path: Path) -> None:
    rows = rows_of(mosmed.write_mosmed(whole, tmp_path / "out", label="any"))
    preparation = Preparation(Window(-600, 1600), size=20, slices=11, field="resize", spacing=None)
    made = ScanDataset([rows["study_0255"]], preparation, mask=True, cache=False)
    assert made.masks is not None
    # As displayed: the file's x runs to the patient's left and y to posterior, and so do columns and rows.
    expected = np.moveaxis(region()[:, :, 1::2], 2, 0).transpose(0, 2, 1)
    assert np.array_equal(made.masks[0, :, 0].numpy(), expected)
    hu = np.moveaxis(chest(255)[:, :, 1::2], 2, 0).transpose(0, 2, 1)
    np.testing.assert_allclose(made.images[0, :, 0], (hu + 600) / 800, atol=1e-6)
    resized = ScanDataset(
        list(rows.values()), Preparation(Window(-600, 1600), size=8, slices=11, field="resize", spacing=None)
    )
    assert resized.images.shape == (7, 11, 1, 8, 8)


def spoil(source: Path, kind: str) -> None:
    study, mask = study_path(source, 255), mask_path(source)
    if kind == "thin":
        save(study, chest(255, 10))
        mask.unlink()
    elif kind == "damaged":
        study.write_bytes(study.read_bytes()[:900])
    elif kind == "size":
        save(mask, region()[:-1])
    elif kind == "place":
        save(mask, region(), AFFINE + np.eye(4, k=3) * 5)
    elif kind == "values":
        save(mask, region() * np.uint8(3))
    elif kind == "empty":
        save(mask, region() * np.uint8(0))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("thin", r"study_0255\.nii\.gz: 10 slice\(s\), fewer than the 11 that are asked for; lower --slices"),
        ("damaged", r"study_0255\.nii\.gz: truncated or damaged gzip"),
        ("size", r"study_0255_mask\.nii\.gz: the mask is not on the grid of .*study_0255\.nii\.gz"),
        ("place", r"study_0255_mask\.nii\.gz: the mask is not on the grid"),
        ("values", r"study_0255_mask\.nii\.gz: values 0, 3; expected a mask of 0 and 1"),
        ("empty", r"study_0255_mask\.nii\.gz: values 0; expected"),
    ],
)
def test_a_study_that_cannot_be_used_is_refused_or_left_out(
    source: Path, tmp_path: Path, kind: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(source, kind)
    out = tmp_path / "out"
    with pytest.raises(ScanError, match=f"1 of 7 cases cannot be used; --skip(.|\n)*{says}"):
        mosmed.write_mosmed(source, out, label="any")
    assert not out.exists()
    assert mosmed.main(["--source", str(source), "--out", str(out), "--label", "any", "--skip"]) == 0
    assert "left out 1 case(s)" in capsys.readouterr().out
    assert len(rows_of(Manifest.read(out / "manifest.csv"))) == 6
    assert "study_0255" in (out / "skipped.txt").read_text()


def test_what_is_not_mosmed(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert mosmed.main(["--source", str(source / "studies"), "--out", str(out)]) == 2
    assert "has no folder studies/CT-0; give the folder that holds studies/" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is not a folder"):
        mosmed.write_mosmed(source / "none", out)
    twin = source / "studies" / "CT-4" / "study_0001.nii.gz"
    save(twin, chest(1))
    with pytest.raises(ConfigError, match=r"CT-4/study_0001\.nii\.gz: .*CT-0/study_0001\.nii\.gz is the same study"):
        mosmed.write_mosmed(source, out)
    twin.rename(twin.with_name("case_1.nii.gz"))
    with pytest.raises(ConfigError, match=r"case_1\.nii\.gz: expected files such as study_0001\.nii\.gz"):
        mosmed.write_mosmed(source, out)
    twin.with_name("case_1.nii.gz").unlink()
    study_path(source, 255).unlink()
    with pytest.raises(ConfigError, match=r"study_0255_mask\.nii\.gz: there is no study to this mask"):
        mosmed.write_mosmed(source, out)
    shutil.rmtree(source / "masks")
    with pytest.raises(ConfigError, match="holds no study for label 'outlined'"):
        mosmed.write_mosmed(source, out, label="outlined")
    for severity in range(5):
        for path in (source / "studies" / f"CT-{severity}").iterdir():
            path.unlink()
    with pytest.raises(ConfigError, match="holds no study, CT-0"):
        mosmed.write_mosmed(source, out)
    assert not out.exists()


def test_settings_that_cannot_be_meant(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label 'CT-3', 11 slices: expected moderate, any, outlined, and 1 or more"):
        mosmed.write_mosmed(whole, tmp_path / "out", label="CT-3")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 slices"):
        mosmed.write_mosmed(whole, tmp_path / "out", slices=0)
