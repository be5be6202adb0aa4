"""LIDC-IDRI as TCIA gives it: from series and readings to crops, regions and a manifest; and what is left out."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import lidc_download as made
import nibabel
import numpy as np
import pydicom
import pytest

from diffcf.data import Manifest, ManifestRow, hash_split
from diffcf.data.lidc_tcia import find_series, write_tcia
from diffcf.errors import ConfigError, ScanError

AIR = -1000
NODULE = made.box(10, 12, 16, 22)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "LIDC-IDRI"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def series_folder(source: Path, patient: str) -> Path:
    folder = source / patient / "01-01-2000-NA-NA-30178" / "3000566.000000-NA-03192"
    folder.parent.mkdir(parents=True)
    return folder


def add(source: Path, patient: str, *, seed: int = 0, **ratings: int) -> made.WrittenSeries:
    """A series with one nodule on slices 2 to 5, the last ones, and the XML beside its slices."""
    series = made.write_series(series_folder(source, patient), patient, seed=seed)
    rois = [series.roi(z, NODULE) for z in (2, 3, 4, 5)]
    annotate(series, [made.nodule("N1", *rois, **ratings)])
    return series


@pytest.fixture(scope="module")
def two_series(tmp_path_factory: pytest.TempPathFactory) -> list[made.WrittenSeries]:
    """Written once, to be copied: patients LIDC-IDRI-0001 and LIDC-IDRI-0002."""
    source = tmp_path_factory.mktemp("download")
    return [add(source, "LIDC-IDRI-0001"), add(source, "LIDC-IDRI-0002", seed=1)]


def copied(series: list[made.WrittenSeries], source: Path) -> list[made.WrittenSeries]:
    folders = [source / f"series {number}" for number in range(len(series))]
    for one, folder in zip(series, folders, strict=True):
        shutil.copytree(one.folder, folder)
    return [dataclasses.replace(one, folder=folder) for one, folder in zip(series, folders, strict=True)]


def annotate(series: made.WrittenSeries, *sessions: list[str]) -> Path:
    path = series.folder / "069.xml"
    path.write_text(made.message(series.uid, *sessions))
    return path


def quietly(source: Path, out: Path, **options) -> list[ManifestRow]:
    """The rows that were written, as read back from the file; nothing may be left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        write_tcia(source, out, **options)
    assert not (out / "skipped.txt").exists()
    return all_rows(out)


def all_rows(out: Path) -> list[ManifestRow]:
    manifest = Manifest.read(out / "manifest.csv")
    rows = [row for split in ("train", "val", "test") for row in manifest.split(split)]
    return sorted(rows, key=lambda row: row.index)


def stored(path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Voxels "z y x" and affine of a NIfTI file, as nibabel reads them."""
    image = nibabel.load(path)  # type: ignore[arg-type]
    assert image.get_data_dtype() == np.int16
    assert image.header.get_xyzt_units()[0] == "mm"
    return np.asarray(image.dataobj).T, image.affine


def diameter(region: np.ndarray) -> float:
    """Of the disc as large as a region "h w" of pixels of 0.5 x 0.8 mm."""
    return 2 * np.sqrt(region.sum() * 0.5 * 0.8 / np.pi)


def solid(*slices: int, region: np.ndarray) -> np.ndarray:
    volume = np.zeros(made.SHAPE, dtype=bool)
    volume[list(slices)] = region
    return volume


def block(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    region = np.zeros(made.SHAPE[1:], dtype=bool)
    region[top : bottom + 1, left : right + 1] = True
    return region


@pytest.mark.parametrize("turn", [False, True], ids=["as it lies", "rows and columns reversed"])
def test_four_readers_and_three_nodules(source: Path, out: Path, turn: bool) -> None:
    series = made.write_series(series_folder(source, "LIDC-IDRI-0007"), "LIDC-IDRI-0007", turn=turn)
    discs = [made.disc(15, 20, 6), made.disc(16, 21, 6), made.disc(16, 23, 5)]
    around = [made.around(disc) for disc in discs]
    first = [
        made.small_nodule("0", series.slices[1], 30, 30),
        made.nodule("Nodule 001", *(series.roi(z, around[0]) for z in (2, 3)), malignancy=5, margin=4),
        made.nodule("Nodule 002", series.roi(4, made.box(28, 38, 34, 44)), malignancy=2, texture=1),
        made.non_nodule("4", series.slices[2], 20, 15),
    ]
    second = [
        made.nodule("IL1", series.roi(4, made.box(29, 38, 36, 44)), malignancy=4, texture=2),
        made.nodule("IL2", *(series.roi(z, around[1]) for z in (4, 2, 3)), malignancy=4, margin=3),
    ]
    hole = series.roi(3, made.box(16, 22, 17, 24), "FALSE")
    third = [made.nodule("7", hole, series.roi(3, around[2]), malignancy=5, margin=0)]
    fourth = [
        made.small_nodule("5", series.slices[3], 20, 15),
        made.nodule("9", *(series.roi(z, made.box(1, 1, 3, 3)) for z in (0, 1, 2)), malignancy=1),
    ]
    annotate(series, first, second, third, fourth)
    rows = quietly(source, out, size=15, slices=3, seed=3)

    # Of the first nodule's three readers, two had to agree; of the second's two, one was half.
    volumes = [
        solid(2, 3, region=discs[0]),
        solid(2, 3, 4, region=discs[1]),
        solid(3, region=discs[2] & ~block(15, 21, 18, 25)),
    ]
    regions = [
        np.sum(volumes, axis=0) >= 2,
        solid(4, region=block(28, 38, 36, 44)),
        solid(0, 1, 2, region=block(1, 1, 3, 3)),
    ]
    assert not regions[0][4].any()
    padded = np.pad(series.volume, ((0, 0), (20, 20), (20, 20)), constant_values=AIR)
    expected = [
        {"label": 1, "malignancy": 14 / 3, "margin": 3.5, "texture": 5.0, "raters": 3.0, "nodule": "Nodule 001 IL2 7"},
        {"label": 0, "malignancy": 3.0, "margin": 4.0, "texture": 1.5, "raters": 2.0, "nodule": "Nodule 002 IL1"},
        {"label": 0, "malignancy": 1.0, "margin": 4.0, "texture": 5.0, "raters": 1.0, "nodule": "9"},
    ]
    central = [3, 4, 1]  # the first one is larger on slice 3 than on slice 2
    assert len(rows) == 3
    for row, region, middle, wanted in zip(rows, regions, central, expected, strict=True):
        assert (row.patient, row.split) == ("LIDC-IDRI-0007", hash_split("LIDC-IDRI-0007", 3))
        assert row.label == wanted["label"]
        assert row.notes == {"nodule": wanted["nodule"], "series": series.uid}
        for name in ("malignancy", "margin", "texture", "raters"):
            assert row.attributes[name] == pytest.approx(wanted[name])
        assert row.attributes["diameter_mm"] == pytest.approx(diameter(region[middle]), abs=6e-4)
        assert row.attributes["sphericity"] == 3
        assert set(row.attributes) == set(made.RATINGS) - {"internalStructure"} | {"raters", "diameter_mm"}

        z, y, x = np.argwhere(region).mean(axis=0)
        assert min(np.flatnonzero(region.any(axis=(1, 2))), key=lambda at: abs(at - z)) == middle
        y, x = round(y), round(x)
        block_hu, affine = stored(row.path)
        np.testing.assert_array_equal(block_hu, padded[middle - 1 : middle + 2, y + 13 : y + 28, x + 13 : x + 28])
        inside = np.pad(region, ((0, 0), (20, 20), (20, 20)))[middle - 1 : middle + 2, y + 13 : y + 28, x + 13 : x + 28]
        mask, mask_affine = stored(row.mask)
        np.testing.assert_array_equal(mask, inside)
        np.testing.assert_allclose(affine, mask_affine)
        # The middle of the crop lies where that voxel lay in the patient.
        np.testing.assert_allclose(affine @ [7, 7, 1, 1], made.affine() @ [x, y, middle, 1], atol=1e-4)
        np.testing.assert_allclose(affine[:3, :3], made.affine()[:3, :3], atol=1e-6)
    assert (stored(rows[2].path)[0] == AIR).any()  # the last one reaches beyond the corner of the slice
    assert {path.name for path in out.iterdir()} == {"manifest.csv", "scans", "masks"}


@pytest.mark.parametrize(("score_3", "label"), [("benign", 0), ("malignant", 1), ("blank", None)])
def test_a_mean_of_three_is_labelled_as_asked(source: Path, out: Path, score_3: str, label: int | None) -> None:
    series = made.write_series(series_folder(source, "P"), "P")
    sessions = [[made.nodule("1", series.roi(2, NODULE), malignancy=given)] for given in (1, 4, 4)]
    annotate(series, *sessions)
    (row,) = quietly(source, out, score_3=score_3)
    assert (row.label, row.attributes["malignancy"]) == (label, 3)


def test_the_default_crop_is_one_slice_of_71_pixels(source: Path, out: Path) -> None:
    series = add(source, "P")
    (row,) = quietly(source, out)
    hu, affine = stored(row.path)
    assert hu.shape == (1, 71, 71)
    expected = np.full((71, 71), AIR)
    expected[35 - 13 : 35 + 27, 35 - 17 : 35 + 31] = series.volume[3]  # 13, 17: the nodule's middle pixel
    np.testing.assert_array_equal(hu[0], expected)
    np.testing.assert_allclose(affine @ [35, 35, 0, 1], made.affine() @ [17, 13, 3, 1], atol=1e-4)


@pytest.mark.parametrize(
    ("slices", "z", "first"), [(1, 5, 5), (2, 5, 4), (3, 5, 3), (3, 0, 0), (2, 2, 2), (5, 1, 0), (6, 3, 0)]
)
def test_the_diameter_is_that_of_the_central_slice(source: Path, out: Path, slices: int, z: int, first: int) -> None:
    """Also where the block of slices is shifted at an end of the scan, and where its middle is no slice."""
    series = made.write_series(series_folder(source, "P"), "P")
    annotate(series, [made.nodule("1", series.roi(z, NODULE))])
    (row,) = quietly(source, out, slices=slices, size=21)
    mask, affine = stored(row.mask)
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [z - first]
    assert affine[2, 3] == pytest.approx(-100 + 2 * first)
    assert row.attributes["diameter_mm"] == pytest.approx(diameter(block(10, 12, 16, 22)), abs=6e-4)


def test_the_diameter_is_that_of_the_whole_nodule(source: Path, out: Path) -> None:
    """Also where the crop holds less than the nodule."""
    add(source, "P")
    (row,) = quietly(source, out, size=3)
    assert (stored(row.mask)[0] == 1).all()
    assert row.attributes["diameter_mm"] == pytest.approx(diameter(block(10, 12, 16, 22)), abs=6e-4)


def test_patients_with_several_series_stay_in_one_split(source: Path, out: Path) -> None:
    volume = made.distinct((2, 12, 12))
    patients = [f"LIDC-IDRI-{n:04d}" for n in range(6)]
    for n, patient in enumerate([*patients, *patients[:3]]):
        series = made.write_series(source / f"series{n}", patient, volume=volume, seed=n)
        annotate(series, [made.nodule("1", series.roi(1, made.box(4, 4, 7, 7)))])
    for seed in (0, 1):
        rows = quietly(source, out / str(seed), seed=seed, size=5)
        assert [row.patient for row in rows] == sorted([*patients, *patients[:3]])
        assert all(row.split == hash_split(row.patient, seed) for row in rows)
        assert len({row.path for row in rows}) == 9


def test_the_xml_may_lie_in_a_folder_of_its_own_and_twice(source: Path, out: Path) -> None:
    series = add(source, "P")
    (source / "tcia-lidc-xml" / "157").mkdir(parents=True)
    shutil.copy(series.folder / "069.xml", source / "tcia-lidc-xml" / "157" / "158.xml")
    assert len(quietly(source, out / "twice")) == 1
    (series.folder / "069.xml").unlink()
    assert len(quietly(source, out / "apart")) == 1
    (found,), skipped = find_series(source)
    assert (found.uid, found.patient, found.folder, skipped) == (series.uid, "P", series.folder, [])


def test_what_is_no_ct_or_no_reading_is_passed_over(source: Path, out: Path) -> None:
    """X-rays with files of their own, segmentations, the index of a medium, and a series without nodules."""
    add(source, "P")
    xray = made.write_series(source / "P" / "xray", "P", volume=made.distinct((1, 8, 8)), seed=5)
    for path in xray.folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.Modality = "DX"
        dataset.save_as(path)
    (xray.folder / "070.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov/idri"/>')
    index = pydicom.dcmread(next(iter(xray.folder.glob("*.dcm"))))
    del index.Modality
    index.save_as(source / "DICOMDIR")
    empty = made.write_series(source / "P" / "empty", "P", seed=6)
    annotate(empty, [made.small_nodule("1", empty.slices[0], 5, 5), made.non_nodule("2", empty.slices[0], 5, 5)], [])
    (source / "LICENSE").write_text("CC BY 3.0")
    assert len(quietly(source, out)) == 1


def test_a_patient_s_name_does_not_lead_out_of_the_folder(source: Path, out: Path) -> None:
    series = made.write_series(source / "s", "../../up/and\x7faway")
    annotate(series, [made.nodule("1", series.roi(2, NODULE))])
    before = {path for path in source.parent.rglob("*") if not path.is_relative_to(out)}
    (row,) = quietly(source, out)
    assert row.patient.startswith("../../up/and")
    assert row.path.parent == out / "scans"
    assert {path for path in source.parent.rglob("*") if not path.is_relative_to(out)} == before


def drop_slice(z: int) -> Callable[[made.WrittenSeries], list[str]]:
    def spoil(series: made.WrittenSeries) -> list[str]:
        path = series.folder / f"{z + 1:04d}.dcm"
        assert pydicom.dcmread(path).SOPInstanceUID == series.slices[z]
        path.unlink()
        if z == 5:  # the scan ends one slice earlier, and nothing but the reading knows
            return [f"{series.folder}: nodule 'N1' has an outline on slice {series.slices[5]}, which the series lacks"]
        return [f"{series.folder}: ", f"{z:04d}.dcm", f"{z + 2:04d}.dcm", "missing"]

    return spoil


def cut(keep: int) -> Callable[[made.WrittenSeries], list[str]]:
    def spoil(series: made.WrittenSeries) -> list[str]:
        path = series.folder / "0001.dcm"
        path.write_bytes(path.read_bytes()[:keep])
        return [str(path)]

    return spoil


def scramble_header(series: made.WrittenSeries) -> list[str]:
    path = series.folder / "0001.dcm"
    content = path.read_bytes()
    broken = content.replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00L\x8b")  # a type that does not exist
    assert broken != content
    path.write_bytes(broken)
    return [f"{path}: the DICOM header is truncated or damaged"]


def no_xml(series: made.WrittenSeries) -> list[str]:
    (series.folder / "069.xml").unlink()
    return [f"{series.folder}: no XML file names its series {series.uid}"]


def half_xml(series: made.WrittenSeries) -> list[str]:
    path = series.folder / "069.xml"
    path.write_text(path.read_text()[:-200])
    return [f"{path}: damaged XML", f"{series.folder}: no XML file names its series {series.uid}"]


def xml_bomb(series: made.WrittenSeries) -> list[str]:
    path = series.folder / "069.xml"
    head, body = path.read_text().split("\n", 1)
    path.write_text(f'{head}\n<!DOCTYPE a [<!ENTITY b "c">]>\n{body}')
    return [f"{path}: damaged XML", f"{series.folder}: no XML file names its series {series.uid}"]


def no_patient(series: made.WrittenSeries) -> list[str]:
    for path in series.folder.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = ""
        dataset.save_as(path)
    return [f"{series.folder}: (0010,0020) PatientID is missing"]


def nothing_left(series: made.WrittenSeries) -> list[str]:
    """The first nodule is fine, and is not written either: a series is taken whole."""
    emptied = made.nodule("N2", series.roi(1, NODULE), series.roi(1, made.box(9, 11, 17, 23), "FALSE"))
    annotate(series, [made.nodule("N1", series.roi(3, NODULE)), emptied])
    return [f"{series.folder}: the outlines of nodule 'N2' enclose nothing"]


def two_patients_positions(series: made.WrittenSeries) -> list[str]:
    path = series.folder / "0002.dcm"
    dataset = pydicom.dcmread(path)
    dataset.ImagePositionPatient = [99, 99, dataset.ImagePositionPatient[2]]
    dataset.save_as(path)
    return [f"{series.folder}: {path}: ImagePositionPatient (0020,0032)"]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(drop_slice(5), id="last slice missing"),
        pytest.param(drop_slice(3), id="middle slice missing"),
        pytest.param(cut(0), id="empty slice"),
        pytest.param(cut(140), id="slice cut in its meta"),
        pytest.param(cut(200), id="slice cut before its modality"),
        pytest.param(cut(1500), id="slice cut in its pixels"),
        scramble_header,
        no_xml,
        half_xml,
        xml_bomb,
        no_patient,
        nothing_left,
        two_patients_positions,
    ],
)
def test_a_series_that_does_not_fit_is_left_out_by_name(
    source: Path, out: Path, two_series: list[made.WrittenSeries], spoil: Callable[[made.WrittenSeries], list[str]]
) -> None:
    good, bad = copied(two_series, source)
    says = spoil(bad)
    with pytest.warns(UserWarning, match=r"series or XML files were left out; .*skipped.txt says why"):
        write_tcia(source, out, size=21)
    assert [row.patient for row in all_rows(out)] == ["LIDC-IDRI-0001"]
    skipped = (out / "skipped.txt").read_text()
    for part in says:
        assert part in skipped
    assert str(good.folder) not in skipped
    assert len(list(out.rglob("*.nii.gz"))) == 2  # nothing of the other one, not even a part


def test_the_list_of_what_was_left_out_goes_with_its_reasons(
    source: Path, out: Path, two_series: list[made.WrittenSeries]
) -> None:
    _, bad = copied(two_series, source)
    no_xml(bad)
    with pytest.warns(UserWarning, match="1 series or XML files were left out"):
        write_tcia(source, out, size=21)
    annotate(bad, [made.nodule("N1", bad.roi(2, NODULE))])
    assert len(quietly(source, out, size=21)) == 2


def test_readings_that_contradict_each_other(source: Path, out: Path) -> None:
    """The second file for a series is named; the first is used."""
    series = add(source, "P", malignancy=5)
    text = (series.folder / "069.xml").read_text()
    (series.folder / "070.xml").write_text(text.replace("<malignancy>5<", "<malignancy>1<"))
    with pytest.warns(UserWarning, match="left out"):
        write_tcia(source, out)
    assert [row.label for row in all_rows(out)] == [1]
    (line,) = (out / "skipped.txt").read_text().splitlines()
    assert line == f"{series.folder / '070.xml'}: another file annotates the series {series.uid} differently."


def test_more_slices_than_the_scan_has(source: Path, out: Path) -> None:
    add(source, "P")
    with pytest.warns(match="1 series"), pytest.raises(ScanError, match=r"none of 1 series gave a rated") as error:
        write_tcia(source, out, slices=7)
    assert "6 slice(s), the model takes 7" in str(error.value)


def test_where_nothing_can_be_used_the_reasons_are_told(source: Path, out: Path) -> None:
    series = add(source, "P")
    (series.folder / "0003.dcm").unlink()
    with pytest.warns(match="1 series"), pytest.raises(ScanError, match=r"none of 1 series gave a rated") as error:
        write_tcia(source, out)
    assert str(series.folder) in str(error.value)
    assert "missing" in str(error.value)
    assert not (out / "manifest.csv").exists()


def test_a_source_that_is_no_download(source: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        write_tcia(source, out)
    source.mkdir()
    with pytest.raises(ConfigError, match="no CT series below it"):
        write_tcia(source, out)
    series = made.write_series(source / "s", "P")
    with pytest.raises(ConfigError, match="no XML of the radiologists"):
        write_tcia(source, out)
    path = annotate(series, [made.nodule("1", series.roi(2, NODULE))])
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ConfigError, match="no XML of the radiologists") as error:
        write_tcia(source, out)
    assert f"{path}: damaged XML" in str(error.value)  # the only one there is
    assert not out.exists()
