"""Coded brain CT: DICOM series that were written, and tables that say what was seen on them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from diffcf.cards import Preparation, Window
from diffcf.data import Manifest, ManifestRow, hash_split, stroke
from diffcf.data.dataset import ScanDataset
from diffcf.errors import ConfigError, ScanError
from diffcf.scans.write_dicom import write_dicom_series
from diffcf.types import Provenance, Scan

HEADER = "scan,patient,side,grade,territory,reader\n"
TABLE = HEADER + (
    "s1,P1,none,0,,A\n"
    "s2,P1,Left,2,left MCA,B\n"  # a later scan of the same patient
    "s3,P2,right,4,PCA right,A\n"
    "s4,P3,both,,,A\n"
    "s5,P4,none,,,B\n"
)
DEPTH = 6


def head(seed: int, depth: int = DEPTH) -> Scan:
    random = np.random.default_rng(seed)
    volume = random.integers(0, 80, (depth, 12, 10)).astype(np.float32)
    volume[:, 0] = -1000  # air
    affine = np.diag([-0.5, -0.5, 5.0, 1.0])
    return Scan(volume, (5.0, 0.5, 0.5), affine, Provenance("memory", "array", "CT"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("stroke") / "scans"
    for number in range(1, 6):
        write_dicom_series(head(number), source / f"s{number}", seed=number)
    (source / "s9").mkdir()  # a scan that nobody coded
    return source


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "scans"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "labels.csv").write_text(TABLE)
    return tmp_path / "labels.csv"


def rows_of(manifest: Manifest) -> dict[str, ManifestRow]:
    return {row.path.name: row for split in ("train", "val", "test") for row in manifest.split(split)}


def test_sides_are_the_classes(whole: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["--source", str(whole), "--table", str(table), "--out", str(out), "--slices", "3", "--seed", "4"]
    assert stroke.main(command) == 0
    assert f"wrote {out / 'manifest.csv'}" in capsys.readouterr().out
    rows = rows_of(Manifest.read(out / "manifest.csv"))
    assert {name: (row.patient, row.label) for name, row in rows.items()} == {
        "s1": ("P1", 0), "s2": ("P1", 1), "s3": ("P2", 2), "s4": ("P3", 3), "s5": ("P4", 0),
    }  # fmt: skip
    assert {name: (row.attributes["grade"], row.attributes["territory"]) for name, row in rows.items()} == {
        "s1": (0, -1), "s2": (2, 1), "s3": (4, 5), "s4": (None, None), "s5": (0, -1),
    }  # fmt: skip
    assert all(row.split == hash_split(row.patient, 4) for row in rows.values())
    assert all((row.slices, row.path) == ("1,3,5", whole / name) for name, row in rows.items())


def test_lesion_or_none(whole: Path, table: Path, tmp_path: Path) -> None:
    rows = rows_of(stroke.write_stroke(whole, table, tmp_path / "out", label="lesion", slices=6))
    assert {name: row.label for name, row in rows.items()} == {"s1": 0, "s2": 1, "s3": 1, "s4": 1, "s5": 0}
    assert rows["s1"].slices == "0,1,2,3,4,5"


def test_a_model_gets_the_slices(whole: Path, table: Path, tmp_path: Path) -> None:
    rows = rows_of(stroke.write_stroke(whole, table, tmp_path / "out", slices=3))
    preparation = Preparation(Window(40, 80), size=12, slices=3, field="resize", spacing=None)
    scans = ScanDataset([rows["s3"]], preparation, cache=False)
    expected = np.clip((head(3).volume[[1, 3, 5]] - 40) / 40, -1, 1)
    np.testing.assert_allclose(scans.images[0, :, 0, :, 1:11], expected, atol=1e-6)  # padded to a square


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("s5,P4,none,3,,", "line 6: side none, but grade 3 and territory blank"),
        ("s5,P4,none,,left MCA,", "line 6: side none, but grade blank and territory left MCA"),
        ("s5,P4,left,0,,", "line 6: side left, but grade 0, no lesion"),
        ("s5,P4,left,2,MCA right,", "line 6: side left, but territory right MCA"),
        ("s5,P4,middle,,,", "line 6: side 'middle'; expected none, left, right, both"),
        ("s5,P4,,,,", "line 6: side ''; expected"),
        ("s5,P4,left,5,,", "line 6: grade '5'; expected 0 to 4, or blank"),
        ("s5,P4,left,1.5,,", "line 6: grade '1.5'"),
        ("s5,P4,left,1,basilar,", "line 6: territory 'basilar'; expected left ACA, left MCA"),
        ("s5,P4,left,1,MCA,", "line 6: territory 'MCA'; expected"),
        ("s1,P1,none,,,", "line 6: scan 's1' is in the table twice"),
        (",P4,none,,,", "line 6: scan '' of patient 'P4': neither may be blank"),
        ("s5,,none,,,", "line 6: scan 's5' of patient '': neither may be blank"),
        ("s5", "line 6: scan 's5' of patient ''"),
        ("../s5,P4,none,,,", "line 6: scan '../s5' is not the name of a folder right below the source"),
        ("..,P4,none,,,", "line 6: scan '..' is not the name of a folder"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    whole: Path, table: Path, tmp_path: Path, line: str, says: str
) -> None:
    table.write_text(TABLE.replace("s5,P4,none,,,B", line))
    with pytest.raises(ConfigError) as error:
        stroke.write_stroke(whole, table, tmp_path / "out", slices=3, skip=True)
    assert f"{table}: 1 row(s) cannot be used; correct them." in str(error.value)
    assert says in str(error.value)
    assert not (tmp_path / "out").exists()


def test_all_wrong_rows_are_listed(whole: Path, table: Path, tmp_path: Path) -> None:
    table.write_text(TABLE.replace("none", "no"))
    with pytest.raises(ConfigError, match=r"2 row\(s\) cannot be used; correct them\.\n  line 2: .*\n  line 6: "):
        stroke.write_stroke(whole, table, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (TABLE.replace("side", "hemisphere"), r"5 row\(s\) and the column\(s\) scan, patient, hemisphere"),
        (TABLE.replace(",", ";"), "expected at least one row and scan, patient, side, separated by commas"),
        (HEADER, r"has 0 row\(s\)"),
        ("", r"has 0 row\(s\) and the column\(s\) none"),
    ],
)
def test_a_file_that_is_no_such_table(whole: Path, table: Path, tmp_path: Path, content: str, says: str) -> None:
    table.write_text(content)
    with pytest.raises(ConfigError, match=says):
        stroke.write_stroke(whole, table, tmp_path / "out")


def spoil(source: Path, kind: str) -> None:
    series = source / "s2"
    shutil.rmtree(series)
    if kind == "empty":
        series.mkdir()
    elif kind == "other files":
        series.mkdir()
        (series / "report.txt").write_text("no scan")
    elif kind == "thin":
        write_dicom_series(head(2, 2), series)
    elif kind == "gap":
        write_dicom_series(head(2), series)
        (series / "0003.dcm").unlink()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "s2: there is no such folder, and the table names it"),
        ("empty", "s2: no DICOM file in it"),
        ("other files", r"s2: no DICOM file in it \(there is report\.txt\)"),
        ("thin", r"s2: 2 slice\(s\), fewer than the 3 that are asked for; lower --slices"),
        ("gap", r"s2/0004\.dcm: 1 slice\(s\) missing"),
    ],
)
def test_a_scan_that_cannot_be_used_is_refused_or_left_out(
    source: Path, table: Path, tmp_path: Path, kind: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(source, kind)
    out = tmp_path / "out"
    with pytest.raises(ScanError, match=f"1 of 5 cases cannot be used; --skip(.|\n)*{says}"):
        stroke.write_stroke(source, table, out, slices=3)
    assert not out.exists()
    command = ["--source", str(source), "--table", str(table), "--out", str(out), "--slices", "3", "--skip"]
    assert stroke.main(command) == 0
    assert "left out 1 case(s)" in capsys.readouterr().out
    assert sorted(rows_of(Manifest.read(out / "manifest.csv"))) == ["s1", "s3", "s4", "s5"]


def test_settings_that_cannot_be_meant(whole: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="label 'grade', 11 slices: expected side or lesion, and 1 or more"):
        stroke.write_stroke(whole, table, out, label="grade")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 slices"):
        stroke.write_stroke(whole, table, out, slices=0)
    with pytest.raises(ConfigError, match="is not a folder; give the one of the DICOM series"):
        stroke.write_stroke(whole / "none", table, out)
    with pytest.raises(ConfigError, match="there is no table at"):
        stroke.write_stroke(whole, tmp_path / "none.csv", out)
    table.write_bytes(TABLE.replace("P4", "Müller").encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        stroke.write_stroke(whole, table, out)


def test_tilted_scans_are_taken_where_that_is_said(source: Path, table: Path, tmp_path: Path, capsys) -> None:
    for path in sorted((source / "s1").iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.GantryDetectorTilt = 15
        dataset.save_as(path)
    given = ["--source", str(source), "--table", str(table), "--slices", "3", "--out"]
    assert stroke.main([*given, str(tmp_path / "a")]) == 3
    assert "a manifest's column" in " ".join(capsys.readouterr().err.split())
    assert stroke.main([*given, str(tmp_path / "b"), "--allow-tilt"]) == 0
    rows = list(rows_of(Manifest.read(tmp_path / "b" / "manifest.csv")).values())
    assert all(row.allow_tilt for row in rows)
    brain = Preparation(Window(40, 80), size=8, slices=3, field="resize", spacing=None)
    assert ScanDataset(rows, brain).images.shape == (5, 3, 1, 8, 8)
    with pytest.raises(ScanError, match="gantry tilt"):
        ScanDataset([dataclasses.replace(row, allow_tilt=False) for row in rows], brain)
