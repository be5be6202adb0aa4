"""CBIS-DDSM in the layout of the download of TCIA, written with pydicom and csv."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from diffcf.cards import Preparation, Window
from diffcf.data import cbis_ddsm, hash_split
from diffcf.data.cbis_dicom import Square, square_around
from diffcf.data.dataset import ScanDataset
from diffcf.errors import ConfigError, ScanError

SHAPE = (60, 40)
PLACE = ["left or right breast", "image view", "abnormality id", "abnormality type"]
FOUND = ["assessment", "pathology", "subtlety", "image file path", "cropped image file path", "ROI mask file path"]
MASS = ["patient_id", "breast_density", *PLACE, "mass shape", "mass margins", *FOUND]
CALC = ["patient_id", "breast density", *PLACE, "calc type", "calc distribution", *FOUND]


def uid(*parts: object) -> str:
    return generate_uid(prefix="1.3.6.1.4.1.9590.100.1.2.", entropy_srcs=["/".join(map(str, parts))])


def mammogram(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, SHAPE, dtype=np.uint16)


def block(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    region = np.zeros(shape, np.uint8)
    region[top:bottom, left:right] = 255
    return region


def save(path: Path, levels: np.ndarray, series: str, **tags: object) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality = series, "MG"
    dataset.Rows, dataset.Columns = levels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * levels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = levels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


class Made:
    """A download as it grows. Paths of the CSV files are stale, as published; the tree names its files 1-1, 1-2."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.lines: dict[str, list[dict[str, str]]] = {
            f"{kind}_case_description_{part}_set.csv": [] for kind in ("mass", "calc") for part in ("train", "test")
        }

    def add(
        self,
        patient: str,
        levels: np.ndarray,
        mask: np.ndarray,
        *,
        part: str = "train",
        kind: str = "mass",
        view: str = "CC",
        number: int = 1,
        swapped: bool = False,
        two_series: bool = False,
        uids: bool = False,
        **cells: str,
    ) -> Path:
        """One abnormality; returns the folder of its mask and crop."""
        named = {"train": "Training", "test": "Test"}[part]
        full = f"{kind.capitalize()}-{named}_{patient}_LEFT_{view}"
        case = f"{full}_{number}"
        series = {"full": uid(full), "crop": uid(case, "crop")}
        series["mask"] = uid(case, "mask") if two_series else series["crop"]
        tree = self.source / "manifest-ZkhPvrLo5216730872708713142" / "CBIS-DDSM"

        def folder(name: str, what: str) -> Path:
            if uids:
                return tree / name / uid(name) / series[what]
            described = {"full": "full mammogram images", "crop": "cropped images", "mask": "ROI mask images"}[what]
            described = described if two_series or what == "full" else "ROI mask images"
            return tree / name / "07-20-2016-DDSM-30678" / f"1.000000-{described}-{series[what][-5:]}"

        save(folder(full, "full") / "1-1.dcm", levels, series["full"])
        crop = levels[::2, ::3]  # of no other use than to be another picture of 16 bits
        first, second = ("mask", "crop") if swapped else ("crop", "mask")
        pictures = {"crop": crop, "mask": mask}
        save(folder(case, first) / "1-1.dcm", pictures[first], series[first])
        save(folder(case, second) / ("1-1.dcm" if two_series else "1-2.dcm"), pictures[second], series[second])

        paths = [f"{case}/{uid(case)}/{series[what]}/00000{k}.dcm\n" for k, what in enumerate((first, second))]
        row = {
            "patient_id": patient,
            "breast_density": "3",
            "breast density": "3",
            "left or right breast": "LEFT",
            "image view": view,
            "abnormality id": str(number),
            "abnormality type": "mass" if kind == "mass" else "calcification",
            "mass shape": "OVAL",
            "mass margins": "CIRCUMSCRIBED",
            "calc type": "PLEOMORPHIC",
            "calc distribution": "CLUSTERED",
            "assessment": "4",
            "pathology": "MALIGNANT",
            "subtlety": "4",
            "image file path": f"{full}/{uid(full)}/{series['full']}/000000.dcm",
            "cropped image file path": paths[0],
            "ROI mask file path": paths[1],
        }
        self.lines[f"{kind}_case_description_{part}_set.csv"].append(row | cells)
        return folder(case, "mask")

    def write(self) -> Path:
        self.source.mkdir(exist_ok=True)
        for name, lines in self.lines.items():
            with (self.source / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, MASS if name.startswith("mass") else CALC, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(lines)
        return self.source


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "source")


@pytest.fixture
def two(made: Made) -> Made:
    """One mass of a training patient and one of a test patient."""
    made.add("P_00001", mammogram(1), block(20, 10, 28, 16))
    made.add("P_00016", mammogram(2), block(30, 20, 34, 30), part="test", pathology="BENIGN")
    return made


def rows_of(out: Path) -> dict[str, cbis_ddsm.ManifestRow]:
    manifest = cbis_ddsm.Manifest.read(out / "manifest.csv")
    return {row.path.stem: row for split in ("train", "val", "test") for row in manifest.split(split)}


def quietly(made: Made, out: Path, **options) -> dict[str, cbis_ddsm.ManifestRow]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cbis_ddsm.write_cbis_ddsm(made.write(), out, **options)
    return rows_of(out)


def stored(path: Path | None) -> np.ndarray:
    return np.asarray(Image.open(path))  # type: ignore[arg-type]


@pytest.mark.parametrize("swapped", [False, True], ids=["as named", "columns swapped"])
@pytest.mark.parametrize("two_series", [False, True], ids=["one series", "a series each"])
@pytest.mark.parametrize("uids", [False, True], ids=["described folders", "folders of UIDs"])
def test_the_mask_is_found_wherever_it_is(made: Made, tmp_path: Path, swapped, two_series, uids) -> None:
    levels = mammogram(1)
    layout = {"swapped": swapped, "two_series": two_series, "uids": uids}
    made.add("P_00001", levels, block(20, 10, 28, 16), **layout)
    made.add("P_00001", levels, block(50, 2, 52, 4), number=2, **layout)
    made.add("P_00016", mammogram(2), block(30, 20, 34, 30), part="test", **layout)
    rows = quietly(made, tmp_path / "out")
    row = rows["mass_P_00001_LEFT_CC_1"]
    # 8 x 6 pixels: a side of 12, with 2 above and below and 3 on the left and right.
    assert row.notes["box"] == "18 7 30 19"
    picture, mask = stored(row.path), stored(row.mask)
    assert picture.dtype == np.uint16
    assert np.array_equal(picture, levels[18:30, 7:19])
    assert np.array_equal(mask, block(20, 10, 28, 16)[18:30, 7:19])
    second = rows["mass_P_00001_LEFT_CC_2"]
    assert np.array_equal(stored(second.path), levels[49:52, 1:4])
    assert stored(second.mask).sum() == 4 * 255


def test_the_mask_lies_on_the_picture_as_a_model_sees_it(made: Made, tmp_path: Path) -> None:
    mask = block(20, 10, 29, 14)
    mask[20, 10] = 0  # no symmetry
    made.add("P_00001", np.where(mask > 0, 65535, 300).astype(np.uint16), mask)
    made.add("P_00016", mammogram(2), mask, part="test")
    row = quietly(made, tmp_path / "out")["mass_P_00001_LEFT_CC_1"]
    window = Window(32767.5, 65535)
    preparation = Preparation(window=window, size=14, slices=1, field="resize", spacing=None, modality="other")
    data = ScanDataset([row], preparation, mask=True, cache=False)
    assert data.masks is not None
    assert data.masks[0, 0, 0].bool().equal(data.images[0, 0, 0] > 0)
    assert int(data.masks.sum()) == 35
    assert float(data.images.max()) == 1.0


def test_labels_attributes_and_notes(made: Made, tmp_path: Path, capsys) -> None:
    given = [
        # patient, cells, label, (subtlety, shape, circumscription, obscuration, ill-definiteness, spiculation)
        ("P_00001", ("MALIGNANT", "5", "IRREGULAR", "SPICULATED"), 1, (5, 4, 0, 0, 0, 1)),
        ("P_00002", ("BENIGN", "1", "ROUND-OVAL", "CIRCUMSCRIBED-OBSCURED"), 0, (1, 2, 1, 1, 0, 0)),
        (
            "P_00003",
            ("BENIGN_WITHOUT_CALLBACK", "3", "LOBULATED-ARCHITECTURAL_DISTORTION", "MICROLOBULATED-ILL_DEFINED"),
            0,
            (3, 3, 0, 0, 1, 0),
        ),
        ("P_00004", ("MALIGNANT", "0", "ARCHITECTURAL_DISTORTION", "MICROLOBULATED"), 1, (None, None, 0, 0, 0, 0)),
        ("P_00005", ("BENIGN", "2", "", "N/A"), 0, (2, None, None, None, None, None)),
    ]
    for seed, (patient, cells, _, _) in enumerate(given):
        named = dict(zip(("pathology", "subtlety", "mass shape", "mass margins"), cells, strict=True))
        part = "test" if seed == 4 else "train"
        made.add(patient, mammogram(seed), block(20, 10, 28, 16), part=part, view="MLO", **named)
    out = tmp_path / "out"
    assert cbis_ddsm.main(["--source", str(made.write()), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {out / 'manifest.csv'}" in said
    assert " test: 0: 1\n" in said
    rows = {row.patient: row for row in rows_of(out).values()}
    for patient, cells, label, values in given:
        assert rows[patient].label == label
        assert rows[patient].attributes == dict(
            zip(
                ("subtlety", "shape", "circumscription", "obscuration", "ill_definiteness", "spiculation"),
                values,
                strict=True,
            )
        )
        assert rows[patient].notes["shape"] == cells[2]
    notes = rows["P_00003"].notes
    assert notes["margins"] == "MICROLOBULATED-ILL_DEFINED"
    assert (notes["kind"], notes["view"], notes["breast"], notes["density"]) == ("mass", "MLO", "LEFT", "3")
    assert (notes["pathology"], notes["assessment"], notes["abnormality"]) == ("BENIGN_WITHOUT_CALLBACK", "4", "1")


def test_the_split_is_the_published_one_with_val_by_patient(made: Made, tmp_path: Path) -> None:
    patients = [f"P_{number:05d}" for number in range(12)]
    for number, patient in enumerate(patients):
        for view in ("CC", "MLO"):
            made.add(patient, mammogram(number), block(20, 10, 28, 16), view=view)
    made.add("P_00100", mammogram(0), block(20, 10, 28, 16), part="test")
    seed = next(k for k in range(99) if sum(hash_split(p, k, val=0.15, test=0) == "val" for p in patients) == 2)
    rows = quietly(made, tmp_path / "out", seed=seed)
    assert len(rows) == 25
    splits = {patient: {row.split for row in rows.values() if row.patient == patient} for patient in patients}
    assert sorted(split for found in splits.values() for split in found) == ["train"] * 10 + ["val"] * 2
    assert {row.patient for row in rows.values() if row.split == "test"} == {"P_00100"}


def test_a_patient_of_both_files_is_one_of_test(two: Made, tmp_path: Path) -> None:
    two.add("P_00016", mammogram(3), block(20, 10, 28, 16), view="MLO")
    with pytest.warns(UserWarning, match=r"1 patient\(s\) of both training and test files are in test"):
        cbis_ddsm.write_cbis_ddsm(two.write(), tmp_path / "out")
    assert {row.split for row in rows_of(tmp_path / "out").values() if row.patient == "P_00016"} == {"test"}


def test_calcifications_on_demand(two: Made, tmp_path: Path) -> None:
    for part, patient in (("train", "P_00005"), ("test", "P_00038")):
        two.add(patient, mammogram(4), block(20, 10, 28, 16), part=part, kind="calc", pathology="BENIGN")
    assert len(quietly(two, tmp_path / "masses")) == 2
    rows = quietly(two, tmp_path / "out", calc=True)
    row = rows["calc_P_00038_LEFT_CC_1"]
    assert (row.label, row.split, len(rows)) == (0, "test", 4)
    assert row.attributes["subtlety"] == 4
    assert {value for name, value in row.attributes.items() if name != "subtlety"} == {None}
    assert (row.notes["type"], row.notes["distribution"], row.notes["density"]) == ("PLEOMORPHIC", "CLUSTERED", "3")


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((20, 10, 28, 16), 0.0, Square(20, 9, 8)),
        ((20, 10, 28, 16), 0.25, Square(18, 7, 12)),
        ((20, 10, 25, 15), 0.25, Square(18, 8, 8)),  # 7.5 pixels become 8
        ((0, 36, 4, 40), 0.5, Square(0, 32, 8)),  # moved inwards at both edges
        ((5, 0, 45, 40), 0.0, Square(5, 0, 40)),
        ((5, 0, 45, 40), 0.1, Square(1, -4, 48)),  # wider than the mammogram, which is 40
        ((0, 0, 60, 40), 0.25, Square(-15, -25, 90)),
    ],
)
def test_the_square_around_a_region(box, margin, expected) -> None:
    assert square_around(block(*box) > 0, margin) == expected


def test_beyond_the_mammogram_is_its_lowest_level_and_no_region(made: Made, tmp_path: Path) -> None:
    levels = mammogram(1) // 2 + 1000
    made.add("P_00001", levels, block(5, 0, 45, 40))
    made.add("P_00016", levels, block(5, 0, 45, 40), part="test")
    row = quietly(made, tmp_path / "out", margin=0.1)["mass_P_00001_LEFT_CC_1"]
    picture, mask = stored(row.path), stored(row.mask)
    assert np.array_equal(picture[:, 4:44], levels[1:49])
    assert np.array_equal(mask[:, 4:44], block(5, 0, 45, 40)[1:49])
    for beyond in (slice(0, 4), slice(44, 48)):
        assert set(picture[:, beyond].flat) == {levels.min()}
        assert not mask[:, beyond].any()


def spoil(made: Made, kind: str) -> None:
    """Make the mass of P_00002 unusable."""
    mask, cells = block(20, 10, 28, 16), {}
    if kind == "size":
        mask = block(20, 10, 28, 16, (59, 40))
    elif kind == "empty":
        mask = block(0, 0, 0, 0)
    elif kind == "no mask":
        mask = mammogram(9)
    elif kind in ("margin", "shape", "pathology", "subtlety"):
        column = {"margin": "mass margins", "shape": "mass shape"}.get(kind, kind)
        word = {"margin": "CIRCUMSCRIBED-FUZZY", "shape": "SQUARE", "pathology": "UNPROVEN", "subtlety": "6"}[kind]
        cells = {column: word}
    elif kind == "path":
        cells = {"image file path": "P_00002.dcm"}
    folder = made.add("P_00002", mammogram(7), mask, **cells)
    full = next(folder.parents[2].glob("Mass-Training_P_00002_LEFT_CC/*/*/1-1.dcm"))
    series = str(pydicom.dcmread(full).SeriesInstanceUID)
    if kind == "twice":
        made.lines["mass_case_description_train_set.csv"].append(made.lines["mass_case_description_train_set.csv"][-1])
    elif kind == "no folder":
        folder.parents[1].rename(folder.parents[1].with_name("elsewhere"))
    elif kind == "no file":
        for path in folder.iterdir():
            path.unlink()
    elif kind == "damaged":
        full.write_bytes(full.read_bytes()[:1500])
    elif kind == "not DICOM":
        full.write_bytes(b"<html>")
    elif kind == "two full":
        save(full.with_name("1-2.dcm"), mammogram(8), series)
    elif kind == "8 bits":
        save(full, block(0, 0, 9, 9), series)
    elif kind == "inverse":
        save(full, mammogram(7), series, PhotometricInterpretation="MONOCHROME1")
    elif kind == "two masks":
        roi = str(pydicom.dcmread(folder / "1-2.dcm").SeriesInstanceUID)
        save(folder / "1-3.dcm", block(1, 1, 5, 5), roi)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("size", r"line \d+: .*a mask of another size than its mammogram: 1-2\.dcm of 59 x 40; .*60 x 40"),
        ("empty", r"1-2\.dcm: an empty mask, every pixel is 0"),
        ("no mask", r"no mask of two values: 1-1\.dcm of 30 x 14, 1-2\.dcm of 60 x 40"),
        ("margin", r"line \d+: mass margins 'CIRCUMSCRIBED-FUZZY' has the unknown word 'FUZZY'; expected CIRC"),
        ("shape", r"line \d+: mass shape 'SQUARE' has the unknown word 'SQUARE'; expected ROUND"),
        ("pathology", r"line \d+: pathology 'UNPROVEN'; expected BENIGN, BENIGN_WITHOUT_CALLBACK, MALIGNANT"),
        ("subtlety", r"line \d+: subtlety '6'; expected a rating from 1 to 5"),
        ("path", r"line \d+: path 'P_00002\.dcm': expected Mass-Training_P_00001_LEFT_CC/STUDY"),
        ("twice", r"line \d+: mass_P_00002_LEFT_CC_1 is mass_case_description_train_set\.csv, line \d+ already"),
        ("no folder", r"there is no folder Mass-Training_P_00002_LEFT_CC_1 below it\. Fetch that case"),
        ("no file", r"the folder Mass-Training_P_00002_LEFT_CC_1 holds no DICOM file"),
        ("damaged", r"P_00002_LEFT_CC/.*1-1\.dcm: a damaged DICOM file, or none"),
        ("not DICOM", r"P_00002_LEFT_CC/.*1-1\.dcm: a damaged DICOM file, or none"),
        ("two full", r"Mass-Training_P_00002_LEFT_CC: 2 files, 1-1\.dcm, 1-2\.dcm; expected one full mammogram"),
        ("8 bits", r"a picture of uint8; expected a mammogram of 16 bits"),
        ("inverse", r"PhotometricInterpretation MONOCHROME1; expected one grey picture .* MONOCHROME2"),
        ("two masks", r"2 masks that differ, 1-2\.dcm, 1-3\.dcm"),
    ],
)
def test_a_mass_that_cannot_be_used_is_refused_or_left_out(two: Made, tmp_path: Path, kind, says, capsys) -> None:
    spoil(two, kind)
    out, count = tmp_path / "out", 4 if kind == "twice" else 3
    with pytest.raises(ScanError, match=rf"1 of {count} cases cannot be used; --skip(.|\n)*{says}"):
        cbis_ddsm.write_cbis_ddsm(two.write(), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    assert cbis_ddsm.main(["--source", str(two.source), "--out", str(out), "--skip"]) == 0
    assert "left out 1 case(s)" in capsys.readouterr().out
    left = {"P_00001", "P_00016", *(["P_00002"] if kind == "twice" else [])}
    assert {row.patient for row in rows_of(out).values()} == left
    assert len(list((out / "images").iterdir())) == len(list((out / "masks").iterdir())) == len(left)


def test_the_same_mask_twice_is_one(two: Made, tmp_path: Path) -> None:
    folder = two.add("P_00002", mammogram(7), block(20, 10, 28, 16))
    (folder / "1-3.dcm").write_bytes((folder / "1-2.dcm").read_bytes())
    assert len(quietly(two, tmp_path / "out")) == 3


def test_tables_that_are_not_those_of_cbis_ddsm(two: Made, tmp_path: Path, capsys) -> None:
    out, table = tmp_path / "out", two.write() / "mass_case_description_train_set.csv"
    whole = table.read_text()

    def refused(says: str) -> None:
        assert cbis_ddsm.main(["--source", str(two.source), "--out", str(out)]) == 2
        assert says in capsys.readouterr().err
        assert not out.exists()

    table.write_text(whole.replace("mass margins", "margins").replace("pathology", "result"))
    refused("lacks the column(s) pathology, mass margins; it has the columns patient id, breast density,")
    table.write_text(whole.splitlines()[0] + "\n")
    refused("train_set.csv lacks lines")
    table.write_text(whole + "P_00009,3,LEFT\n")
    refused("line 5: not as many values as columns")
    table.write_text(whole.replace("P_00001,", ",", 1))
    refused("line 4: no patient, so the split cannot be by patient")
    table.write_bytes(whole.encode("utf-16"))
    refused("train_set.csv is not UTF-8 text")
    table.unlink()
    refused("no mass_case_description_train_set.csv below it; expected the one that TCIA gives")
    for folder in ("one", "other"):
        (two.source / folder).mkdir()
        (two.source / folder / table.name).write_text(whole)
    refused("2 files mass_case_description_train_set.csv, ")
    with pytest.raises(ConfigError, match="none is not a folder"):
        cbis_ddsm.write_cbis_ddsm(tmp_path / "none", out)
    with pytest.raises(ConfigError, match=r"margin -0\.1: expected 0 or more"):
        cbis_ddsm.write_cbis_ddsm(two.source, out, margin=-0.1)
    assert not out.exists()
