"""Sets of scans: values, masks on the same field, the cache, and errors told together."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from diffcf.cards import Preparation, Window
from diffcf.data import Manifest, ManifestRow, dataset
from diffcf.data.dataset import ScanDataset, SliceDataset
from diffcf.data.masks import mask_of_patch
from diffcf.errors import ConfigError, ScanError
from diffcf.scans import prepare, read_scan

AFFINE = np.diag([-0.7, -0.7, 2.5, 1.0])
CROP = Preparation(window=Window(-600, 1600), size=8, slices=2)


def save(path: Path, volume: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """A volume "z y x" as NIfTI; with AFFINE its axes are those of a Scan."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.T), affine, dtype=volume.dtype)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


@pytest.fixture
def volume() -> np.ndarray:
    """Four slices of 12 x 10, from -1000 HU up; every voxel different."""
    return (np.arange(480).reshape(4, 12, 10) * 4 - 1000).astype(np.int16)


@pytest.fixture
def manifest(tmp_path: Path, volume: np.ndarray) -> Manifest:
    """Scans a (class 1, with a mask), b (unlabelled) and c (test)."""
    mask = np.zeros(volume.shape, np.uint8)
    mask[1:, 4:7, 3:6] = 3  # any value but 0 is the region
    rows = [
        ManifestRow(
            save(tmp_path / "a.nii.gz", volume), "A", 1, "train",
            mask=save(tmp_path / "am.nii.gz", mask), slices="1,2", attributes={"margin": 2.0, "size": None},
        ),
        ManifestRow(save(tmp_path / "c.nii.gz", volume), "C", 0, "test"),
        ManifestRow(save(tmp_path / "b.nii.gz", volume + 100), "B", None, "train"),
    ]  # fmt: skip
    Manifest(rows).write(tmp_path / "manifest.csv")
    return Manifest.read(tmp_path / "manifest.csv")


def test_images_labels_and_items(manifest: Manifest, volume: np.ndarray) -> None:
    data = ScanDataset(manifest.split("train"), CROP)
    assert data.images.shape == (2, 2, 1, 8, 8)
    assert data.images.dtype == torch.float32
    expected = np.clip((volume[1:3, 2:10, 1:9].astype(np.float32) + 600) / 800, -1, 1)
    np.testing.assert_array_equal(data.images[0, :, 0], expected)
    default = np.clip((volume[[1, 3], 2:10, 1:9].astype(np.float32) + 700) / 800, -1, 1)  # evenly spaced slices
    np.testing.assert_array_equal(data.images[1, :, 0], default)
    assert data.labels.tolist() == [1, -1]
    assert data.labels.dtype == torch.int64
    assert data.indices.tolist() == [0, 2]  # places in the manifest, not in the split
    assert data.patients == ["A", "B"]
    assert data.attribute_names == ("margin", "size")
    assert data.attributes[0, 0] == 2
    assert data.attributes.isnan().tolist() == [[False, True], [True, True]]
    item = data[1]
    assert set(item) == {"image", "label", "index"}
    assert (item["label"], item["index"]) == (-1, 2)
    assert torch.equal(item["image"], data.images[1])
    assert set(ScanDataset(manifest, CROP, label=False, split="test")[0]) == {"image", "index"}


def test_values_beyond_the_window_are_clipped(manifest: Manifest) -> None:
    images = ScanDataset(manifest, Preparation(window=Window(0, 100), size=8, slices=2), split="train").images
    assert images.min() == -1
    assert images.max() == 1


def test_masks_lie_on_the_same_field(manifest: Manifest) -> None:
    data = ScanDataset(manifest.split("train"), CROP, mask=True)
    assert data.masks is not None
    expected = np.zeros((12, 10), np.float32)
    expected[4:7, 3:6] = 1
    np.testing.assert_array_equal(data.masks[0, 0, 0], expected[2:10, 1:9])
    np.testing.assert_array_equal(data.masks[0, 1, 0], expected[2:10, 1:9])
    assert data.masks[1].sum() == 0
    assert data.has_mask.tolist() == [True, False]
    assert data[0]["mask"].shape == (2, 1, 8, 8)
    assert (data[0]["has_mask"], data[1]["has_mask"]) == (True, False)


def test_a_batch_is_collated(manifest: Manifest) -> None:
    batch = next(iter(torch.utils.data.DataLoader(ScanDataset(manifest, CROP, split="train", mask=True), batch_size=2)))
    assert batch["image"].shape == batch["mask"].shape == (2, 2, 1, 8, 8)
    assert batch["label"].tolist() == [1, -1]
    assert batch["index"].tolist() == [0, 2]


def test_slices_are_samples_with_stable_indices(manifest: Manifest) -> None:
    scans = ScanDataset(manifest.split("train"), CROP, mask=True)
    data = SliceDataset(scans)
    assert data.images.shape == (4, 1, 8, 8)
    assert data.images.data_ptr() == scans.images.data_ptr()  # a view, not a copy
    assert data.indices.tolist() == [0, 1, 4, 5]
    assert data.labels.tolist() == [1, 1, -1, -1]
    assert data.patients == ["A", "A", "B", "B"]
    assert torch.equal(data[3]["image"], scans.images[1, 1])
    assert set(data[3]) == {"image", "label", "index", "mask", "has_mask"}
    assert data[3]["index"] == 5
    assert len(data) == 4


def test_the_field_is_cut_around_the_rows_centre(tmp_path: Path, volume: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", volume)
    centre = tuple((AFFINE @ [6, 5, 2, 1])[:3])  # voxel z 2, y 5, x 6
    row = ManifestRow(path, "A", 1, "train", centre=centre)
    image = ScanDataset([row], Preparation(size=3, slices=1)).images[0, 0, 0]
    np.testing.assert_allclose(image, np.clip((volume[2, 4:7, 5:8] + 600) / 800, -1, 1), atol=1e-6)
    ScanDataset([row], Preparation(size=6, slices=1, field="resize"))  # sees the whole slice: the centre is not used


@pytest.mark.parametrize("turn", ["same", "flipped", "finer", "larger"])
def test_a_mask_on_another_grid_lands_in_the_same_place(tmp_path: Path, volume: np.ndarray, turn: str) -> None:
    """The region 4:7, 3:6 of slices 1.. stated on four grids of the same world."""
    mask = np.zeros(volume.shape, np.uint8)
    mask[1:, 4:7, 3:6] = 1
    affine = AFFINE.copy()
    if turn == "flipped":
        mask = mask[:, ::-1, ::-1]
        affine = AFFINE @ np.array([[-1, 0, 0, 9], [0, -1, 0, 11], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    elif turn == "finer":
        mask = mask.repeat(2, axis=1).repeat(2, axis=2)
        affine = AFFINE @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    elif turn == "larger":
        mask = np.pad(mask, ((1, 0), (5, 2), (3, 0)))
        affine = AFFINE @ np.array([[1, 0, 0, -3], [0, 1, 0, -5], [0, 0, 1, -1], [0, 0, 0, 1.0]])
    scan = read_scan(save(tmp_path / "a.nii", volume))
    patch = prepare(scan, CROP, slices=(0, 1))
    region = mask_of_patch(read_scan(save(tmp_path / "m.nii", mask, affine), modality="other"), scan, patch)
    expected = np.zeros((12, 10), np.uint8)
    expected[4:7, 3:6] = 1
    assert region[0].sum() == 0
    np.testing.assert_array_equal(region[1], expected[2:10, 1:9])


def test_a_resampled_mask_keeps_its_area(tmp_path: Path) -> None:
    """A disc of 30 mm, scan at 0.7 mm, field at 1.5 mm: the area agrees within a pixel's ring."""
    y, x = np.mgrid[:120, :120]
    disc = np.hypot(y - 59.5, x - 59.5) * 0.7 <= 15
    volume = np.where(disc, 0, -900).astype(np.int16)[None]
    row = ManifestRow(
        save(tmp_path / "a.nii", volume), "A", 1, "train", mask=save(tmp_path / "m.nii", disc[None].astype(np.uint8))
    )
    data = ScanDataset([row], Preparation(size=56, spacing=1.5), mask=True)
    assert data.masks is not None
    assert data.masks.sum() * 1.5**2 == pytest.approx(np.pi * 15**2, rel=0.03)
    bright = data.images[0, 0, 0] > (-450 + 600) / 800  # halfway between disc and background
    assert (bright != (data.masks[0, 0, 0] > 0)).float().mean() < 0.005


def test_nothing_is_region_beyond_the_scan(tmp_path: Path) -> None:
    volume = np.full((1, 6, 6), -500, np.int16)
    mask = np.ones((1, 20, 20), np.uint8)
    affine = AFFINE @ np.array([[1, 0, 0, -7], [0, 1, 0, -7], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    row = ManifestRow(save(tmp_path / "a.nii", volume), "A", 1, "train", mask=save(tmp_path / "m.nii", mask, affine))
    masks = ScanDataset([row], Preparation(size=10), mask=True).masks
    assert masks is not None
    expected = np.zeros((10, 10), np.float32)
    expected[2:8, 2:8] = 1
    np.testing.assert_array_equal(masks[0, 0, 0], expected)


def test_a_mask_elsewhere_is_refused(tmp_path: Path, volume: np.ndarray) -> None:
    affine = AFFINE.copy()
    affine[2, 3] = 500
    mask = save(tmp_path / "m.nii", np.ones(volume.shape, np.uint8), affine)
    row = ManifestRow(save(tmp_path / "a.nii", volume), "A", 1, "train", mask=mask)
    with pytest.raises(ScanError, match="does not reach the field"):
        ScanDataset([row], CROP, mask=True)


def test_a_picture_takes_a_mask_of_its_own_size_only(tmp_path: Path) -> None:
    volume = np.linspace(-900, 300, 64).reshape(8, 8).astype(np.float32)
    mask = np.zeros((8, 8), np.float32)
    mask[2:4, 5:7] = 1
    np.save(tmp_path / "a.npy", volume)
    np.save(tmp_path / "m.npy", mask)
    np.save(tmp_path / "small.npy", mask[:6])
    row = ManifestRow(tmp_path / "a.npy", "A", 1, "train", mask=tmp_path / "m.npy")
    masks = ScanDataset([row], Preparation(size=8), mask=True).masks
    assert masks is not None
    np.testing.assert_array_equal(masks[0, 0, 0], mask)
    row = ManifestRow(tmp_path / "a.npy", "A", 1, "train", mask=tmp_path / "small.npy")
    with pytest.raises(ScanError, match="shapes must be equal"):
        ScanDataset([row], Preparation(size=8), mask=True)


def cached(folder: Path) -> list[Path]:
    return sorted((folder / ".cache").glob("*.npy"))


def test_the_second_time_nothing_is_read(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ScanDataset(manifest.split("train"), CROP, mask=True)
    assert len(cached(tmp_path)) == 3  # two scans, one mask
    assert not list((tmp_path / ".cache").glob(".*"))
    monkeypatch.setattr(dataset, "read_scan", lambda *_, **__: pytest.fail("read again"))
    again = ScanDataset(manifest.split("train"), CROP, mask=True)
    assert torch.equal(first.images, again.images)
    assert first.masks is not None
    assert again.masks is not None
    assert torch.equal(first.masks, again.masks)
    other = Preparation(window=Window(-100, 400), size=8, slices=2)  # kept in HU: another window reads nothing either
    hu = first.images * 800 - 600
    torch.testing.assert_close(ScanDataset(manifest.split("train"), other).images, ((hu + 100) / 200).clamp(-1, 1))


def test_a_changed_scan_or_preparation_is_read_anew(manifest: Manifest, tmp_path: Path, volume: np.ndarray) -> None:
    before = ScanDataset(manifest, CROP, split="test").images
    path = save(tmp_path / "c.nii.gz", volume + 200)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    after = ScanDataset(manifest, CROP, split="test").images
    torch.testing.assert_close(after, (before + 0.25).clamp(-1, 1))
    assert ScanDataset(manifest, Preparation(size=6, slices=2), split="test").images.shape[-1] == 6


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00v\x00garbage", b"PK\x03\x04no zip"])
def test_a_damaged_cache_is_rebuilt(manifest: Manifest, tmp_path: Path, damage: bytes) -> None:
    first = ScanDataset(manifest, CROP, split="test").images
    (path,) = cached(tmp_path)
    path.write_bytes(damage)
    assert torch.equal(ScanDataset(manifest, CROP, split="test").images, first)
    assert np.load(path, allow_pickle=False).shape == (2, 8, 8)


def test_a_pickle_in_the_cache_is_not_opened(manifest: Manifest, tmp_path: Path) -> None:
    first = ScanDataset(manifest, CROP, split="test").images
    (path,) = cached(tmp_path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert torch.equal(ScanDataset(manifest, CROP, split="test").images, first)


def test_where_the_cache_lies(manifest: Manifest, tmp_path: Path) -> None:
    ScanDataset(manifest, CROP, split="test", cache=False)
    assert not (tmp_path / ".cache").exists()
    ScanDataset(manifest, CROP, split="test", cache=tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").glob("*.npy"))) == 1
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="no cache"):
        ScanDataset(manifest, CROP, split="test", cache=tmp_path / "file")


def test_bad_scans_are_reported_together(tmp_path: Path, volume: np.ndarray) -> None:
    (tmp_path / "empty.nii").touch()
    rows = [
        ManifestRow(save(tmp_path / "a.nii", volume), "A", 1, "train", index=4),
        ManifestRow(save(tmp_path / "b.nii", (volume / 1000).astype(np.float32)), "B", 1, "train", index=7),
        ManifestRow(tmp_path / "empty.nii", "C", 1, "train", index=9),
        ManifestRow(save(tmp_path / "d.nii", volume), "D", 1, "train", slices="1,99", index=11),
    ]
    with pytest.raises(ScanError, match="3 of 4 scans cannot be loaded") as error:
        ScanDataset(rows, CROP)
    for part in ("row 7 (b.nii)", "cannot be HU", "row 9 (empty.nii)", "0 bytes", "row 11 (d.nii)", "slice 99"):
        assert part in str(error.value)
    assert "row 4" not in str(error.value)


def test_a_whole_manifest_and_no_rows_are_refused(manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match="split='train'"):
        ScanDataset(manifest, CROP)
    with pytest.raises(ConfigError, match="no rows"):
        ScanDataset(manifest, CROP, split="val")
    with pytest.raises(ConfigError, match="only with a manifest"):
        ScanDataset(manifest.split("train"), CROP, split="train")
