"""BraTS in its own layout, written with nibabel."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from diffcf.cards import Preparation, Window
from diffcf.data import brats, hash_split
from diffcf.data.dataset import ScanDataset
from diffcf.errors import ConfigError, ScanError

SHAPE = (24, 20, 14)  # x, y, z: the file's own order
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])  # of every published volume
TUMOUR_X, TUMOUR_Y, TUMOUR_Z = slice(5, 9), slice(11, 16), slice(6, 10)
HEADER = "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,"


def head(seed: int) -> np.ndarray:
    """Brain on slices 1 to 12, whole on 3 to 10 and a quarter of it elsewhere; int16 "x y z" and 0 outside."""
    volume = np.zeros(SHAPE, np.int16)
    random = np.random.default_rng(seed)
    volume[2:22, 2:18, 3:11] = random.integers(100, 900, (20, 16, 8))
    for z in (1, 2, 11, 12):
        volume[2:12, 2:10, z] = random.integers(100, 900, (10, 8))
    return volume


def tissues() -> np.ndarray:
    """20 pixels of tumour on slices 6 to 9, of three tissues, and one voxel on slice 5."""
    volume = np.zeros(SHAPE, np.uint8)
    volume[TUMOUR_X, TUMOUR_Y, TUMOUR_Z] = 2
    volume[6, 12, TUMOUR_Z], volume[7, 12, TUMOUR_Z] = 1, 4
    volume[7, 12, 5] = 4
    return volume


def save(path: Path, volume: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)


def write_patient(source: Path, name: str, seed: int, ending: str = ".nii.gz") -> None:
    for offset, modality in enumerate(("flair", "t1", "t1ce", "t2")):
        save(source / name / f"{name}_{modality}{ending}", head(10 * seed + offset))
    save(source / name / f"{name}_seg{ending}", tissues())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "MICCAI_BraTS2020_TrainingData"
    write_patient(folder, "BraTS20_Training_001", 1)
    write_patient(folder, "BraTS20_Training_002", 2, ".nii")
    (folder / "name_mapping.csv").write_text(
        f"{HEADER}BraTS_2020_subject_ID\n"
        "HGG,Brats17_CBICA_AAB_1,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001\n"
        "LGG,NA,NA,TCGA-DU-5874,BraTS19_TCIA10_629_1,BraTS20_Training_002\n"
    )
    (folder / "survival_info.csv").write_text("Brats20ID,Age,Survival_days,Extent_of_Resection\n")
    return folder


def rows_of(out: Path) -> dict[str, brats.ManifestRow]:
    manifest = brats.Manifest.read(out / "manifest.csv")
    rows = [row for split in ("train", "val", "test") for row in manifest.split(split)]
    return {row.path.name.removesuffix(".nii.gz"): row for row in rows}


def test_slices_with_and_without_tumour(source: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    command = ["--source", str(source), "--out", str(out), "--count", "0", "--min-area", "20", "--seed", "3"]
    assert brats.main(command) == 0
    assert f"wrote {out / 'manifest.csv'}" in capsys.readouterr().out
    rows = {name: row for name, row in rows_of(out).items() if row.patient == "BraTS20_Training_001"}
    # 5 shows one voxel of tumour, which is neither; 1, 2, 11 and 12 show too little brain.
    assert {row.notes["slice"]: row.label for row in rows.values()} == {
        "3": 0, "4": 0, "6": 1, "7": 1, "8": 1, "9": 1, "10": 0,
    }  # fmt: skip
    assert {row.attributes["tumour_mm2"] for row in rows.values() if row.label == 1} == {20.0}
    assert all(row.attributes["tumour_mm2"] == 0 and row.mask is None for row in rows.values() if row.label == 0)
    assert {row.split for row in rows.values()} == {hash_split("BraTS20_Training_001", 3)}


def test_values_place_and_orientation_are_those_of_the_volume(source: Path, tmp_path: Path) -> None:
    brats.write_brats(source, tmp_path / "out", modality="t1ce", count=1, min_area=20)
    row = rows_of(tmp_path / "out")["BraTS20_Training_001_t1ce_z008"]  # the second half's first of 6, 7, 8, 9
    volume = head(12).astype(float)
    low, high = np.percentile(volume[volume != 0], [1, 99])
    stored = nibabel.load(row.path)
    mask = nibabel.load(row.mask)  # type: ignore[arg-type]
    # nibabel's own nearest voxel of the source, by position in the world
    index = np.stack(np.meshgrid(*map(np.arange, stored.shape), indexing="ij"), axis=-1)
    at = nibabel.affines.apply_affine(np.linalg.inv(AFFINE) @ stored.affine, index).round().astype(int)
    x, y, z = np.moveaxis(at, -1, 0)
    assert set(z.flat) == {8}
    np.testing.assert_allclose(stored.get_fdata(), ((volume - low) / (high - low))[x, y, z], atol=1e-6)
    assert np.array_equal(np.asarray(mask.dataobj), (tissues() != 0)[x, y, z])
    assert np.allclose(mask.affine, stored.affine)
    np.testing.assert_allclose([float(part) for part in row.notes["percentiles"].split()], [low, high], rtol=1e-5)


def test_the_mask_lies_on_the_slice_as_a_model_sees_it(source: Path, tmp_path: Path) -> None:
    bright = head(1)
    bright[bright != 0] = 300
    bright[0:2, 0, 0] = 200, 400  # contrast, and percentiles that do not depend on the tumour
    volume = np.where(tissues() != 0, 900, bright).astype(np.int16)
    save(source / "BraTS20_Training_001" / "BraTS20_Training_001_flair.nii.gz", volume)
    brats.write_brats(source, tmp_path / "out", count=1, min_area=20)
    row = rows_of(tmp_path / "out")["BraTS20_Training_001_flair_z008"]
    preparation = Preparation(
        window=Window(0.5, 1.0), size=24, slices=1, field="resize", spacing=None, modality="other"
    )
    made = ScanDataset([row], preparation, mask=True, cache=False)
    assert made.masks is not None
    assert made.masks[0, 0, 0].bool().equal(made.images[0, 0, 0] > 0.99)
    assert int(made.masks.sum()) == 20
    # As displayed: the file's x runs to the patient's left and y to posterior, and so do columns and rows.
    shown = made.masks[0, 0, 0].numpy().astype(bool)
    assert np.array_equal(shown[2:22], (tissues()[..., 8] != 0).T)


def test_a_volume_in_another_orientation_gives_the_same(source: Path, tmp_path: Path) -> None:
    brats.write_brats(source, tmp_path / "one", min_area=20)
    for path in source.glob("*/*.nii*"):
        image = nibabel.load(path)
        turned, affine = np.asarray(image.dataobj)[::-1, ::-1].copy(), AFFINE * [-1, -1, 1, 1]  # RAS
        affine[:2, 3] = [1 - SHAPE[0], 239 - (SHAPE[1] - 1)]
        path.unlink()  # nibabel maps the file
        save(path, turned, affine)
    brats.write_brats(source, tmp_path / "other", min_area=20)
    one, other = rows_of(tmp_path / "one"), rows_of(tmp_path / "other")
    assert one.keys() == other.keys()
    for name, row in one.items():
        for path, again in ((row.path, other[name].path), (row.mask, other[name].mask)):
            if path is not None:
                assert path.read_bytes() == again.read_bytes()  # type: ignore[union-attr]


def test_the_grade_as_label(source: Path, tmp_path: Path) -> None:
    brats.write_brats(source, tmp_path / "out", label="grade", count=2, min_area=20)
    rows = rows_of(tmp_path / "out")
    assert {name: row.label for name, row in rows.items()} == {
        "BraTS20_Training_001_flair_z007": 1, "BraTS20_Training_001_flair_z009": 1,
        "BraTS20_Training_002_flair_z007": 0, "BraTS20_Training_002_flair_z009": 0,
    }  # fmt: skip
    assert all(row.mask is not None for row in rows.values())


def test_the_grade_needs_its_file(source: Path, tmp_path: Path) -> None:
    mapping = source / "name_mapping.csv"
    mapping.write_text(mapping.read_text().replace("LGG", "low"))
    with pytest.raises(ScanError, match=r"Training_002: name_mapping\.csv says 'low' of the patient; expected LGG or"):
        brats.write_brats(source, tmp_path / "out", label="grade", min_area=20)
    mapping.write_text(mapping.read_text().replace("Training_002", "Training_003"))
    with pytest.raises(ScanError, match=r"Training_002: name_mapping\.csv does not name the patient"):
        brats.write_brats(source, tmp_path / "out", label="grade", min_area=20)
    mapping.write_text("Grade,Name\nHGG,BraTS20_Training_001\n")
    with pytest.raises(ConfigError, match=r"has the column\(s\) Grade, Name; expected Grade and BraTS_2020_subject_ID"):
        brats.write_brats(source, tmp_path / "out", label="grade", min_area=20)
    mapping.unlink()
    with pytest.raises(ConfigError, match=r"name_mapping\.csv does not exist; .* use --label tumour"):
        brats.write_brats(source, tmp_path / "out", label="grade", min_area=20)
    assert not (tmp_path / "out").exists()
    brats.write_brats(source, tmp_path / "out", min_area=20)  # BraTS 2021 has none


def spoil(folder: Path, kind: str) -> None:
    flair, seg = (folder / f"{folder.name}_{what}.nii.gz" for what in ("flair", "seg"))
    if kind == "missing":  # as a copy of BraTS 2020 that goes round names one
        seg.rename(folder / "W39_1998.09.19_Segm.nii.gz")
    elif kind == "twice":
        save(folder / f"{folder.name}_seg.nii", tissues())
    elif kind == "size":
        save(seg, tissues()[:-1])
    elif kind == "place":
        save(seg, tissues(), np.diag([-1.0, -1, 1, 1]))
    elif kind == "values":
        save(seg, tissues() * np.uint8(10))
    elif kind == "empty":
        save(seg, np.zeros(SHAPE, np.uint8))
    elif kind == "no brain":
        save(flair, np.zeros(SHAPE, np.int16))
    elif kind == "flat":
        save(flair, np.full(SHAPE, 7, np.int16))
    elif kind == "small":
        save(seg, np.where(np.arange(SHAPE[2]) == 5, tissues(), 0).astype(np.uint8))
    elif kind == "damaged":
        flair.write_bytes(flair.read_bytes()[:500])


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", r"there is no BraTS20_Training_001_seg\.nii\.gz .*, only .*W39_1998\.09\.19_Segm\.nii\.gz; rename"),
        ("twice", r"both BraTS20_Training_001_seg\.nii\.gz and BraTS20_Training_001_seg\.nii are there"),
        ("size", r"_seg\.nii\.gz: a segmentation of 14 x 20 x 23 voxels .* has 14 x 20 x 24 voxels"),
        ("place", r"_seg\.nii\.gz: a segmentation of .* from \[0\.0, 0\.0, 0\.0\], .* from \[0\.0, 239\.0, 0\.0\]"),
        ("values", r"values 0, 10, 20, 40; a segmentation of BraTS has 0, 1, 2, 3, 4"),
        ("empty", r"_seg\.nii\.gz: an empty segmentation"),
        ("no brain", r"_flair\.nii\.gz: no brain in it"),
        ("flat", r"percentiles 1 and 99 of the brain are both 7"),
        ("small", r"the tumour covers 1 mm2 at most, and 20 are expected .*; lower --min-area"),
        ("damaged", r"_flair\.nii\.gz: truncated or damaged gzip"),
    ],
)
def test_a_patient_who_cannot_be_used_is_refused_or_left_out(source: Path, tmp_path: Path, kind, says, capsys) -> None:
    spoil(source / "BraTS20_Training_001", kind)
    out = tmp_path / "out"
    with pytest.raises(ScanError, match=f"1 of 2 cases cannot be used; --skip(.|\n)*{says}"):
        brats.write_brats(source, out, min_area=20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MICCAI_BraTS2020_TrainingData"]
    assert brats.main(["--source", str(source), "--out", str(out), "--min-area", "20", "--skip"]) == 0
    assert "left out 1 case(s)" in capsys.readouterr().out
    assert {row.patient for row in rows_of(out).values()} == {"BraTS20_Training_002"}
    assert "BraTS20_Training_001" in (out / "skipped.txt").read_text()


def test_what_is_not_brats_and_settings_that_cannot_be_meant(source: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert brats.main(["--source", str(source.parent), "--out", str(out)]) == 2
    assert "no folder right below it holds NIfTI files" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is not a folder"):
        brats.write_brats(source / "none", out)
    with pytest.raises(ConfigError, match="modality 'ct', label 'tumour': expected flair, t1, t1ce, t2"):
        brats.write_brats(source, out, modality="ct")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="count -1"):
        brats.write_brats(source, out, count=-1)
    with pytest.raises(ConfigError, match="min_area nan"):
        brats.write_brats(source, out, min_area=float("nan"))
    assert not out.exists()
