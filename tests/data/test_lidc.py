"""The command line that makes a manifest of LIDC nodules: what it writes, prints and returns."""

from __future__ import annotations

import csv
from pathlib import Path

import lidc_download as made
import nibabel
import numpy as np
import pytest

from diffcf.data import Manifest, lidc

COLUMNS = ("subtlety", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture")


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Nodules of a mean rating of 5, 3, 3 and 1, of four patients."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    usual = dict.fromkeys(COLUMNS, 2) | {"series_uid": "1.2", "z_mm": 7, "pixel_spacing_mm": 0.5, "n_raters": 1}
    rows = [
        usual | {"nodule_id": k, "patient": f"P{k}", "malignancy_mean": mean, "mask_ok": 1}
        for k, mean in enumerate((5, 3, 3, 1))
    ]
    with (folder / "nodules.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    hu = np.arange(4 * 25, dtype=np.int16).reshape(4, 5, 5) - 900
    np.savez(folder / "lidc_nodules.npz", hu=hu, mask=np.ones_like(hu), nodule_id=np.arange(4))
    return folder


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """One series with one nodule of a mean rating of 3."""
    series = made.write_series(tmp_path / "LIDC-IDRI" / "s", "LIDC-IDRI-0001")
    rois = [series.roi(z, made.box(10, 12, 16, 22)) for z in (2, 3, 4)]
    text = made.message(series.uid, *([made.nodule("N", *rois, malignancy=given)] for given in (1, 5)))
    (series.folder / "1.xml").write_text(text)
    return tmp_path / "LIDC-IDRI"


def counts(manifest: Path) -> dict[int | None, int]:
    found: dict[int | None, int] = {}
    for split in ("train", "val", "test"):
        for label, count in Manifest.read(manifest).class_counts(split).items():
            found[label] = found.get(label, 0) + count
    return found


def test_arrays_become_a_manifest(arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert lidc.main(["--source", str(arrays), "--out", str(out)]) == 0
    assert counts(out / "manifest.csv") == {0: 3, 1: 1}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"wrote {out / 'manifest.csv'}"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["train", "val", "test"]
    assert lidc.main(["--source", str(arrays), "--out", str(out), "--score-3", "malignant"]) == 0
    assert counts(out / "manifest.csv") == {0: 1, 1: 3}
    capsys.readouterr()
    assert lidc.main(["--source", str(arrays), "--out", str(out), "--score-3", "blank"]) == 0
    assert counts(out / "manifest.csv") == {0: 1, 1: 1, None: 2}
    assert "unlabelled: " in capsys.readouterr().out


def test_the_seed_draws_the_split(arrays: Path, tmp_path: Path) -> None:
    for seed in ("0", "3"):
        assert lidc.main(["--source", str(arrays), "--out", str(tmp_path / seed), "--seed", seed]) == 0
        manifest = Manifest.read(tmp_path / seed / "manifest.csv")
        text = (tmp_path / seed / "manifest.csv").read_text().replace(",split", ",note_split")
        (tmp_path / seed / "unsplit.csv").write_text(text)
        drawn = Manifest.read(tmp_path / seed / "unsplit.csv", seed=int(seed))
        for split in ("train", "val", "test"):
            assert [row.patient for row in manifest.split(split)] == [row.patient for row in drawn.split(split)]


def test_one_nodule_is_written_by_its_row(arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nodule.nii.gz"
    assert lidc.main(["--source", str(arrays), "--index", "2", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(path).dataobj)[:, :, 0].T, np.arange(50, 75).reshape(5, 5) - 900
    )


def test_a_download_becomes_a_manifest(download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--size", "9", "--slices", "3", "--score-3", "blank", "--seed", "2"]
    assert lidc.main(["--tcia", str(download), "--out", str(out), *options]) == 0
    assert counts(out / "manifest.csv") == {None: 1}
    (path,) = (out / "scans").iterdir()
    assert nibabel.load(path).shape == (9, 9, 3)
    assert "unlabelled: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--source", "none", "--out", "out"], 2, "none holds no lidc_nodules.npz"),
        (["--source", "arrays", "--index", "4", "--out", "n.nii.gz"], 2, "there is no nodule 4"),
        (["--source", "arrays", "--index", "0", "--out", "n.dcm"], 2, "n.dcm: a NIfTI file ends in .nii"),
        (["--tcia", "none", "--out", "out"], 2, "none is not a folder"),
        (["--tcia", "arrays", "--out", "out"], 2, "arrays: no CT series below it"),
        pytest.param(
            ["--tcia", "LIDC-IDRI", "--out", "out", "--slices", "9"], 3, "none of 1 series gave a rated nodule",
            marks=pytest.mark.filterwarnings("ignore:1 series"),
        ),
    ],
)  # fmt: skip
def test_what_is_refused_is_said_and_ends_with_its_code(
    arrays: Path, download: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(arrays.parent)
    assert lidc.main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err
    assert says in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--out", "out"],
        ["--source", "arrays"],
        ["--source", "arrays", "--tcia", "LIDC-IDRI", "--out", "out"],
        ["--tcia", "LIDC-IDRI", "--index", "0", "--out", "out"],
        ["--source", "arrays", "--score-3", "undecided", "--out", "out"],
        ["--source", "arrays", "--index", "first", "--out", "out"],
    ],
)
def test_arguments_that_cannot_be_meant(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        lidc.main(arguments)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
