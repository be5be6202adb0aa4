"""The command line that writes a set: it loads, keeps patients together, and leaves nothing where it fails."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from diffcf.cards import Preparation, Window
from diffcf.data import Manifest
from diffcf.data.dataset import ScanDataset
from diffcf.data.phantom import fibrosis_scene
from diffcf.data.phantom.__main__ import main
from diffcf.scans import read_scan


def run(out: Path, *more: str) -> int:
    return main(["--out", str(out), "--size", "24", *more])


def test_the_command_writes_a_set_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    assert run(out, "--kind", "fibrosis", "--count", "24", "--slices", "2", "--seed", "3") == 0
    printed = capsys.readouterr().out
    assert "train: 0: " in printed
    manifest = Manifest.read(out / "manifest.csv")
    assert len(manifest) == 24
    assert {"extent", "probability"} <= set(manifest.attribute_names)
    data = ScanDataset(
        manifest.split("train"), Preparation(Window(-600, 1600), size=24, slices=2, field="resize"), mask=True
    )
    assert data.images.shape[1:] == (2, 1, 24, 24)
    assert data.masks is not None
    assert data.masks.sum() > 0
    assert set(data.labels.tolist()) == {0, 1}
    row = manifest.split("train")[0]
    scan = read_scan(row.path)
    scene = fibrosis_scene(4_000_000 + row.index, 24, 2)
    np.testing.assert_array_equal(scan.volume, scene.scan.volume)
    np.testing.assert_allclose(scan.affine, scene.scan.affine, atol=1e-4)  # NIfTI keeps float32
    np.testing.assert_array_equal(read_scan(row.mask, modality="other").volume, scene.cause)  # type: ignore[arg-type]
    assert row.attributes["extent"] == scene.attributes["extent"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # nothing temporary is left
    assert run(out, "--kind", "nodule", "--count", "2") == 2  # never into a folder with files
    assert "not an empty folder" in capsys.readouterr().err


def test_a_shortcut_that_turns_in_the_test_split(tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert run(out, "--kind", "nodule", "--count", "60", "--shortcut", "symbol", "--test-correlation", "-1") == 0
    with (out / "manifest.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    for row in rows:
        assert (float(row["attr_shortcut"]) == float(row["label"])) == (row["split"] != "test")
        assert (out / "shortcuts" / Path(row["path"]).name).is_file()


def test_scenes_of_a_patient_stay_together(tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert run(out, "--kind", "territory", "--count", "12", "--scans-per-patient", "3") == 0
    manifest = Manifest.read(out / "manifest.csv")
    patients = [row.patient for split in ("train", "val", "test") for row in manifest.split(split)]
    assert len(set(patients)) == 4
    regions = read_scan(out / "regions" / "000000.nii.gz", modality="other").volume
    assert set(np.unique(regions)) == set(range(7))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "set", "--kind", "nodule", "--count", "2", "--imbalance", "2") == 2
    assert run(tmp_path / "set", "--kind", "nodule", "--count", "2", "--test-correlation", "0") == 2
    assert run(tmp_path / "set", "--kind", "nodule", "--count", "0") == 2
    assert list(tmp_path.iterdir()) == []
