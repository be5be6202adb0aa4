"""LIDC nodules from ready-made arrays: what is written of them, and which folders are refused."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from diffcf.data import Manifest, ManifestRow, hash_split
from diffcf.data.lidc_arrays import NoduleArrays, write_arrays, write_nodule
from diffcf.errors import ConfigError
from diffcf.scans import read_scan

RATED = ("subtlety", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture")
SIZE = (11, 9)
TABLE: list[dict[str, str]] = [
    {"nodule_id": "31", "patient": "A", "malignancy_mean": "4.25", "n_raters": "4", "mask_ok": "1", "texture": "2"},
    {"nodule_id": "32", "patient": "A", "malignancy_mean": "3.0", "n_raters": "2", "mask_ok": "0"},
    {"nodule_id": "47", "patient": "B", "malignancy_mean": "2.5", "n_raters": "3", "mask_ok": "1", "z_mm": "12"},
    {"nodule_id": "50", "patient": "C", "malignancy_mean": "3", "n_raters": "1", "mask_ok": "1", "margin": ""},
]  # fmt: skip
SERIES, PIXEL, Z = "1.2.3", "0.703125", "-117.5"


def rows_of(table: list[dict[str, str]]) -> list[dict[str, str]]:
    usual = dict.fromkeys(RATED, "4") | {"series_uid": SERIES, "z_mm": Z, "pixel_spacing_mm": PIXEL}
    return [{"index": str(index)} | usual | row for index, row in enumerate(table)]


def write_table(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "nodules.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def arrays_of(count: int) -> dict[str, np.ndarray]:
    """HU of which every pixel is different, and a disc of 13 pixels in the middle of all but the third nodule."""
    y, x = np.indices(SIZE)
    disc = (y - 5) ** 2 + (x - 4) ** 2 <= 4
    assert int(disc.sum()) == 13
    mask = np.repeat(disc[None].astype(np.uint8), count, axis=0)
    mask[2:3] = 0
    hu = (np.arange(count * SIZE[0] * SIZE[1]).reshape(count, *SIZE) - 1000).astype(np.int16)
    return {"hu": hu, "mask": mask}


def write_folder(folder: Path, table: list[dict[str, str]] = TABLE) -> Path:
    folder.mkdir()
    write_table(folder, rows_of(table))
    identity = np.array([int(row["nodule_id"]) for row in table])
    np.savez_compressed(folder / "lidc_nodules.npz", **arrays_of(len(table)), nodule_id=identity)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "arrays")


def written(source: Path, out: Path, **options) -> list[ManifestRow]:
    """The rows of the manifest that was written, read back from its file."""
    made = write_arrays(source, out, **options)
    assert made.source == str(out / "manifest.csv")
    manifest = Manifest.read(out / "manifest.csv")
    assert len(manifest) == len(made)
    rows = [row for split in ("train", "val", "test") for row in manifest.split(split)]
    return sorted(rows, key=lambda row: row.index)


def test_a_nodule_comes_back_as_it_was(source: Path, tmp_path: Path) -> None:
    hu = arrays_of(4)["hu"]
    for index, z in [(0, -117.5), (2, 12.0)]:
        path = write_nodule(source, index, tmp_path / "x" / "nodule.nii.gz")
        assert path == tmp_path / "x" / "nodule.nii.gz"
        image = nibabel.load(path)
        assert image.get_data_dtype() == np.int16
        assert image.header.get_xyzt_units()[0] == "mm"
        assert int(image.header["sform_code"]) == 1
        np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 0].T, hu[index])
        # Columns run to the patient's left (-x in RAS), rows to the back (-y); the middle pixel is x = y = 0.
        np.testing.assert_allclose(image.affine[:3, :3], np.diag([-0.703125, -0.703125, 1]))
        np.testing.assert_allclose(image.affine @ [4, 5, 0, 1], [0, 0, z, 1], atol=1e-6)
        scan = read_scan(path)
        np.testing.assert_array_equal(scan.volume, hu[index : index + 1])
        assert scan.spacing == pytest.approx((1, 0.703125, 0.703125))
        assert scan.affine[2, 3] == z


def test_arrays_that_were_read_once_serve_for_many(source: Path, tmp_path: Path) -> None:
    nodules = NoduleArrays.read(source)
    assert len(nodules) == 4
    paths = [write_nodule(given, 1, tmp_path / f"{n}.nii.gz") for n, given in enumerate((source, str(source), nodules))]
    assert len({path.read_bytes() for path in paths}) == 1


def test_everything_that_the_manifest_says(source: Path, tmp_path: Path) -> None:
    rows = written(source, tmp_path / "out", seed=5)
    arrays = arrays_of(4)
    assert [row.patient for row in rows] == ["A", "A", "B", "C"]
    assert [row.label for row in rows] == [1, 0, 0, 0]
    assert [row.split for row in rows] == [hash_split(patient, 5) for patient in "AABC"]
    assert [row.notes["nodule"] for row in rows] == ["31", "32", "47", "50"]
    assert {row.notes["series"] for row in rows} == {SERIES}
    for index, row in enumerate(rows):
        np.testing.assert_array_equal(read_scan(row.path).volume[0], arrays["hu"][index])
        assert row.path.parent == tmp_path / "out" / "scans"
    # The second outline is called approximate, the third is empty.
    assert [row.mask is None for row in rows] == [False, True, True, False]
    for row in (rows[0], rows[3]):
        assert row.mask is not None
        image = nibabel.load(row.mask)
        np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 0].T, arrays["mask"][0])
        np.testing.assert_array_equal(image.affine, nibabel.load(row.path).affine)
    diameter = 2 * np.sqrt(13 / np.pi) * 0.703125
    assert [row.attributes["diameter_mm"] for row in rows] == [
        pytest.approx(diameter, abs=6e-4), None, None, pytest.approx(diameter, abs=6e-4),
    ]  # fmt: skip
    assert [row.attributes["malignancy"] for row in rows] == [4.25, 3, 2.5, 3]
    assert [row.attributes["raters"] for row in rows] == [4, 2, 3, 1]
    assert [row.attributes["texture"] for row in rows] == [2, 4, 4, 4]
    assert [row.attributes["margin"] for row in rows] == [4, 4, 4, None]
    assert set(rows[0].attributes) == {*RATED, "malignancy", "raters", "diameter_mm"}


def test_a_score_of_three_is_labelled_as_asked(source: Path, tmp_path: Path) -> None:
    assert [row.label for row in written(source, tmp_path / "benign", score_3="benign")] == [1, 0, 0, 0]
    assert [row.label for row in written(source, tmp_path / "malignant", score_3="malignant")] == [1, 1, 0, 1]
    assert [row.label for row in written(source, tmp_path / "blank", score_3="blank")] == [1, None, 0, None]


def test_a_score_of_three_changes_labels_alone(source: Path, tmp_path: Path) -> None:
    """Patients, splits, masks and attributes stay, so that classifiers of both kinds are judged on the same scans."""
    benign, blank = (written(source, tmp_path / name, score_3=name, seed=1) for name in ("benign", "blank"))
    for one, other in zip(benign, blank, strict=True):
        assert (one.patient, one.split, one.path.name) == (other.patient, other.split, other.path.name)
        assert (one.mask is None) == (other.mask is None)
        assert one.attributes == other.attributes


def test_the_table_s_test_patients_are_the_test_set(tmp_path: Path) -> None:
    patients = [f"P{n}" for n in range(12)]
    table = [
        TABLE[0] | {"nodule_id": str(n), "patient": patient, "split": "test" if patient in ("P3", "P8") else "dev"}
        for n, patient in enumerate([*patients, *patients])
    ]
    rows = written(write_folder(tmp_path / "arrays", table), tmp_path / "out", seed=1)
    assert {row.patient for row in rows if row.split == "test"} == {"P3", "P8"}
    for row in rows:
        assert row.split in ("test", hash_split(row.patient, 1, test=0.0))
    assert {row.split for row in rows} == {"train", "val", "test"}


def test_a_patient_who_is_in_test_and_not_is_refused(tmp_path: Path) -> None:
    table = [row | {"split": split} for row, split in zip(TABLE, ("test", "dev", "dev", "dev"), strict=True)]
    with pytest.raises(ConfigError, match="patient 'A' is in 2 splits"):
        write_arrays(write_folder(tmp_path / "arrays", table), tmp_path / "out")


def test_writing_twice_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in "ab":
        write_arrays(source, tmp_path / name)
    files = [{path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
             for name in "ab"]  # fmt: skip
    assert files[0] == files[1]
    assert len(files[0]) == 4 + 2 + 1


def test_any_value_but_0_is_the_region(source: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(source / "lidc_nodules.npz"))
    np.savez(source / "lidc_nodules.npz", **arrays | {"mask": arrays["mask"] * 255})
    row = written(source, tmp_path / "out")[0]
    assert row.attributes["diameter_mm"] == pytest.approx(2 * np.sqrt(13 / np.pi) * 0.703125, abs=6e-4)


def test_a_patient_s_name_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    table = [TABLE[0] | {"patient": "../../../up"}, TABLE[2] | {"patient": "/tmp/up"}]
    source = write_folder(tmp_path / "arrays", table)
    rows = written(source, tmp_path / "a" / "b" / "out")
    assert [row.patient for row in rows] == ["../../../up", "/tmp/up"]
    assert {row.path.parent for row in rows} == {tmp_path / "a" / "b" / "out" / "scans"}
    assert not list(tmp_path.glob("*up*"))


@pytest.mark.parametrize("index", [-1, 4, 1000])
def test_a_nodule_that_does_not_exist(source: Path, tmp_path: Path, index: int) -> None:
    with pytest.raises(ConfigError, match=f"there is no nodule {index}; the table has 0 to 3"):
        write_nodule(source, index, tmp_path / "nodule.nii.gz")
    assert not (tmp_path / "nodule.nii.gz").exists()


def change_table(change: Callable[[list[dict[str, str]]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        rows = rows_of(TABLE)
        change(rows)
        write_table(folder, rows)

    return spoil


def set_cell(column: str, value: str) -> Callable[[Path], None]:
    return change_table(lambda rows: rows[2].update({column: value}))


def drop_column(column: str) -> Callable[[Path], None]:
    return change_table(lambda rows: [row.pop(column) for row in rows])


def change_arrays(**changes: np.ndarray | None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        arrays = dict(np.load(folder / "lidc_nodules.npz")) | changes
        stored = {name: array for name, array in arrays.items() if array is not None}
        np.savez(folder / "lidc_nodules.npz", **stored)  # type: ignore[arg-type]

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


class Planted:
    """Pickled, it would write a file when it is loaded."""

    def __reduce__(self) -> tuple:
        return (open, ("planted", "w"))


def plant(folder: Path) -> None:
    change_arrays(hu=np.array([Planted()] * 4, dtype=object))(folder)


def plant_alone(folder: Path) -> None:
    np.array([Planted()] * 4, dtype=object).dump(folder / "lidc_nodules.npz")


def one_array(folder: Path) -> None:
    with (folder / "lidc_nodules.npz").open("wb") as file:
        np.save(file, arrays_of(4)["hu"])


def cut_arrays(folder: Path) -> None:
    content = (folder / "lidc_nodules.npz").read_bytes()
    (folder / "lidc_nodules.npz").write_bytes(content[: len(content) // 2])


def damage_arrays(folder: Path) -> None:
    """Bytes of the compressed voxels are overwritten."""
    path = folder / "lidc_nodules.npz"
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("hu.npy")
    content = bytearray(path.read_bytes())
    start = entry.header_offset + 120
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)


def short_row(folder: Path) -> None:
    lines = (folder / "nodules.csv").read_text().splitlines()
    (folder / "nodules.csv").write_text("\n".join([*lines[:-1], "3,4"]) + "\n")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (remove("lidc_nodules.npz"), "holds no lidc_nodules.npz"),
        (remove("nodules.csv"), "holds no nodules.csv"),
        (change_arrays(mask=None), "lacks the array(s) mask"),
        (change_arrays(hu=None, nodule_id=None), "lacks the array(s) hu, nodule_id"),
        (change_arrays(mask=np.zeros((4, 11, 8))), "do not describe the same nodules"),
        (change_arrays(hu=arrays_of(3)["hu"], mask=arrays_of(3)["mask"]), "do not describe the same nodules"),
        (change_arrays(hu=np.zeros((4, 11)), mask=np.zeros((4, 11))), "do not describe the same nodules"),
        (change_arrays(nodule_id=np.array([31, 47, 32, 50])), "do not describe the same nodules"),
        (change_arrays(nodule_id=np.array([31, 32, 47])), "do not describe the same nodules"),
        (change_arrays(nodule_id=np.array(31)), "do not describe the same nodules"),
        (change_table(lambda rows: rows.reverse()), "do not describe the same nodules in the same order"),
        (change_table(lambda rows: rows.pop()), "3 rows of nodules.csv do not describe"),
        (change_table(lambda rows: rows.append(rows[0])), "5 rows of nodules.csv do not describe"),
        (set_cell("nodule_id", "x"), "do not describe the same nodules"),
        (drop_column("patient"), "column(s) patient"),
        (drop_column("margin"), "column(s) margin"),
        (drop_column("mask_ok"), "column(s) mask_ok"),
        (lambda folder: (folder / "nodules.csv").write_text("index,nodule_id\n"), "lacks rows or the column(s)"),
        (lambda folder: (folder / "nodules.csv").write_text(""), "lacks rows or the column(s)"),
        (short_row, "nodule 3 has no patient"),
        (set_cell("patient", ""), "nodule 2 has no patient"),
        (set_cell("malignancy_mean", ""), "malignancy_mean of nodule 2 is ''; expected a number"),
        (set_cell("z_mm", "high"), "z_mm of nodule 2 is 'high'"),
        (set_cell("z_mm", "nan"), "z_mm of nodule 2 is 'nan'"),
        (set_cell("pixel_spacing_mm", "0"), "pixel_spacing_mm of nodule 2 is '0'"),
        (set_cell("n_raters", "many"), "n_raters of nodule 2 is 'many'"),
        (set_cell("texture", "solid"), "texture of nodule 2 is 'solid'"),
        (plant, "Pickled objects are never read"),
        (plant_alone, "Pickled objects are never read"),
        (one_array, "not an .npz of plain numbers"),
        (cut_arrays, "not an .npz of plain numbers"),
        (damage_arrays, "not an .npz of plain numbers"),
        (lambda folder: (folder / "lidc_nodules.npz").write_bytes(b""), "not an .npz of plain numbers"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    NoduleArrays.read(source)  # whole, before
    spoil(source)
    with pytest.raises(ConfigError) as error:
        write_arrays(source, tmp_path / "out")
    assert says in str(error.value)
    assert str(source) in str(error.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "planted").exists()


@pytest.fixture(scope="module")
def real(data_root: Path) -> NoduleArrays:
    return NoduleArrays.read(data_root / "lidc_nodules")


@pytest.mark.data
def test_real_nodules_are_what_is_said_of_them(real: NoduleArrays) -> None:
    assert (len(real), len({row["patient"] for row in real.table})) == (2014, 646)
    assert (real.hu.shape, real.hu.dtype) == ((2014, 71, 71), np.int16)
    for row in real.table:  # the mean is that of the ratings, which nothing here reads
        ratings = [int(rating) for rating in row["malignancy_ratings"].split("/")]
        assert float(row["malignancy_mean"]) == pytest.approx(np.mean(ratings), abs=6e-4)
        assert int(row["n_raters"]) == len(ratings)
    assert real.hu.min() >= -1024
    centre = np.median(real.hu[:, 33:38, 33:38], axis=(1, 2))
    assert np.mean(centre > -900) > 0.99  # no air
    assert np.mean(centre < 500) > 0.95  # tissue or ground glass; the others are calcified
    assert -300 < np.median(centre) < 100


@pytest.mark.data
def test_real_nodules_are_written_as_they_are(real: NoduleArrays, data_root: Path, tmp_path: Path) -> None:
    """Every 40th nodule: values, spacing, labels and regions against the source's own columns."""
    kept = list(range(0, 2014, 40))
    source = tmp_path / "arrays"
    source.mkdir()
    write_table(source, [real.table[index] for index in kept])
    with np.load(data_root / "lidc_nodules" / "lidc_nodules.npz") as arrays:
        identity = arrays["nodule_id"][kept]
    np.savez(source / "lidc_nodules.npz", hu=real.hu[kept], mask=real.mask[kept], nodule_id=identity)
    rows = written(source, tmp_path / "out", score_3="blank")
    assert {row.label for row in rows} == {0, 1, None}
    splits: dict[str, set[str]] = {}
    agree = []
    for row, index in zip(rows, kept, strict=True):
        said = real.table[index]
        splits.setdefault(row.patient, set()).add(row.split)
        image = nibabel.load(row.path)
        np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 0].T, real.hu[index])
        pixel = float(said["pixel_spacing_mm"])
        assert image.header.get_zooms() == pytest.approx((pixel, pixel, 1))
        assert image.affine[2, 3] == pytest.approx(float(said["z_mm"]))
        assert ("" if row.label is None else str(row.label)) == said["label_malignant"]
        assert (row.mask is not None) == (said["mask_ok"] == "1")
        if row.mask is None:
            assert row.attributes["diameter_mm"] is None
        else:
            assert int(np.asarray(nibabel.load(row.mask).dataobj).sum()) == int(said["mask_px"])
            agree.append(row.attributes["diameter_mm"] == pytest.approx(float(said["equiv_diam_px"]) * pixel, abs=6e-4))
    assert np.mean(agree) > 0.9  # the source measured before it cut: a few outlines were larger
    assert all(len(names) == 1 for names in splits.values())
