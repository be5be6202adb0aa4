"""The manifest: what it refuses, and that its splits and folds hold what they promise."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcf.data import Manifest, ManifestRow, hash_split
from diffcf.errors import ConfigError

HEADER = "path,patient,label,split\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdef":
        (tmp_path / f"{name}.nii").write_bytes(b"x")
    return tmp_path


def read(folder: Path, text: str) -> Manifest:
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    return Manifest.read(folder / "manifest.csv")


def rows_of(cases: list[tuple[str, int | None, str]]) -> list[ManifestRow]:
    """(patient, label, split) -> rows with paths of their own."""
    return [ManifestRow(Path(f"/x/{i}"), patient, label, split) for i, (patient, label, split) in enumerate(cases)]


def test_every_column_is_read(folder: Path) -> None:
    manifest = read(
        folder,
        "\ufeffpath,patient,label,mask,split,slices,centre,attr_margin,note_site\n"
        'a.nii,P1,1,b.nii,train,"1,2",1.5 -2 3e1,4.5,here\n'
        f"{folder / 'c.nii'},P2,,,val,,,,\n",
    )
    first, second = manifest.split("train")[0], manifest.split("val")[0]
    assert first == ManifestRow(
        path=folder / "a.nii",
        patient="P1",
        label=1,
        split="train",
        mask=folder / "b.nii",
        slices="1,2",
        centre=(1.5, -2.0, 30.0),
        attributes={"margin": 4.5},
        notes={"site": "here"},
        index=0,
        folder=folder,
    )
    assert (second.path, second.label, second.mask, second.attributes) == (
        folder / "c.nii",
        None,
        None,
        {"margin": None},
    )
    assert second.index == 1
    assert manifest.split("test") == []
    assert len(manifest) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path;patient;label\na.nii;P;1\n", ["missing column(s) path, patient, label", "commas"]),
        ("path,label\na.nii,1\n", ["missing column(s) patient", "found: path, label"]),
        ("path,patient,label,lable\na.nii,P,1,1\n", ["unknown column 'lable'"]),
        ("path,patient,label,label\na.nii,P,1,1\n", ["'label' appears twice"]),
        ("path,patient,label\n", ["no rows"]),
        (HEADER + "a.nii,P,1,training\n", ["line 2", "unknown split 'training'"]),
        (HEADER + "a.nii,P,1,\n", ["line 2", "unknown split ''"]),
        (HEADER + "a.nii,P,1,train\nb.nii,P,0,test\nc.nii,P,0,test\n", ["patient 'P'", "line 2", "line 3, line 4"]),
        (HEADER + "a.nii,P,1,train\n./a.nii,P,1,train\n", ["duplicate path", "line 2, line 3"]),
        (HEADER + "a.nii,P,1,train\na.nii,Q,1,train\n", ["belongs to 2 patients", "'P' (line 2)", "'Q' (line 3)"]),
        (HEADER + "a.nii,P,1.0,train\n", ["label '1.0' is not a class index"]),
        (HEADER + "a.nii,P,-1,train\n", ["label '-1'"]),
        (HEADER + "a.nii,P,yes,train\nz.nii,P,1,train\n", ["label 'yes'", "line 3", "z.nii"]),
        (HEADER + "a.nii,,1,train\n", ["patient is blank"]),
        (HEADER + ",P,1,train\n", ["path is blank"]),
        (HEADER + "a.nii,P,1\n", ["not as many values"]),
        (HEADER + "a.nii,P,1,train,more\n", ["not as many values"]),
        ("path,patient,label,mask\na.nii,P,1,no.nii\n", ["mask 'no.nii': no such file"]),
        ("path,patient,label,attr_x\na.nii,P,1,nan\n", ["attr_x 'nan' is not a finite number"]),
        ("path,patient,label,centre\na.nii,P,1,1 2\n", ["centre '1 2'"]),
    ],
)
def test_refusals_name_line_and_value(folder: Path, text: str, says: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        read(folder, text)
    assert str(folder / "manifest.csv") in str(error.value)
    for part in says:
        assert part in str(error.value)


def test_absent_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no manifest"):
        Manifest.read(tmp_path / "none.csv")
    (tmp_path / "m.csv").write_bytes("path,patient,label\nä".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        Manifest.read(tmp_path / "m.csv")


def test_every_missing_file_is_listed(folder: Path) -> None:
    text = HEADER + "".join(f"gone{i}.nii,P,1,train\n" for i in range(30))
    with pytest.raises(ConfigError, match=r"30 problem\(s\)") as error:
        read(folder, text)
    assert "gone0.nii" in str(error.value)
    assert "and 10 more" in str(error.value)


def test_one_scan_may_serve_with_several_slices(folder: Path) -> None:
    manifest = read(folder, 'path,patient,label,slices\na.nii,P,1,"1,2"\na.nii,P,0,"5,6"\n')
    assert len(manifest) == 2


def test_rows_made_by_hand_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="patient 'P' is in 2 splits: train \\(row 0\\); val \\(row 1\\)"):
        Manifest(rows_of([("P", 1, "train"), ("P", 1, "val")]))
    with pytest.raises(ConfigError, match="label -1"):
        Manifest(rows_of([("P", -1, "train")]))


def test_rows_are_handed_out_by_split_only() -> None:
    manifest = Manifest(rows_of([("P", 1, "train"), ("Q", 0, "test")]))
    with pytest.raises(ConfigError, match="no split 'all'"):
        manifest.split("all")
    assert not hasattr(manifest, "rows")
    with pytest.raises(TypeError):
        iter(manifest)  # type: ignore[call-overload]


def test_hash_split_is_what_it_says() -> None:
    draw = int(hashlib.sha256(b"3:LIDC-IDRI-0001").hexdigest()[:16], 16) / 2**64
    expected = "test" if draw < 0.15 else "val" if draw < 0.3 else "train"
    assert hash_split("LIDC-IDRI-0001", 3) == expected
    names = [hash_split(f"patient {i}", 7, val=0.2, test=0.1) for i in range(4000)]
    assert abs(names.count("val") / 4000 - 0.2) < 0.025  # four standard errors
    assert abs(names.count("test") / 4000 - 0.1) < 0.019
    assert "test" not in [hash_split(str(i), test=0.0) for i in range(500)]


def test_a_split_that_is_not_given_is_drawn_by_patient(folder: Path) -> None:
    text = "path,patient,label\n" + "".join(f"{name}.nii,P{i // 2},1\n" for i, name in enumerate("abcdef"))
    (folder / "m.csv").write_text(text)
    for seed in range(5):
        manifest = Manifest.read(folder / "m.csv", seed=seed)
        for name in ("train", "val", "test"):
            assert all(hash_split(row.patient, seed) == name for row in manifest.split(name))


def test_write_and_read_are_inverse(folder: Path) -> None:
    rows = [
        ManifestRow(
            folder / "a.nii", "P", 0, "train", slices="1,2", attributes={"x": 0.1, "y": None}, notes={"n": "a, b"}
        ),
        ManifestRow(
            folder / "b.nii", "Q", None, "test", mask=folder / "c.nii", centre=(1.0, 2.5, -3.0), attributes={"y": 4}
        ),
    ]
    manifest = Manifest(rows)
    path = manifest.write(folder / "m.csv")
    assert path.read_text().startswith("path,patient,label,mask,split,slices,centre,attr_x,attr_y,note_n\n")
    assert "a.nii,P,0" in path.read_text()  # relative
    again = Manifest.read(path)
    assert again.attribute_names == ("x", "y")
    for split, row in (("train", rows[0]), ("test", rows[1])):
        back = again.split(split)[0]
        for key in ("path", "patient", "label", "split", "mask", "slices", "centre"):
            assert getattr(back, key) == getattr(row, key)
        assert {k: v for k, v in back.attributes.items() if v is not None} == {
            k: v for k, v in row.attributes.items() if v is not None
        }
    again.write(folder / "again.csv")
    assert (folder / "again.csv").read_text() == path.read_text()
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [*(f"{c}.nii" for c in "abcdef"), "m.csv", "again.csv"]
    )


def test_class_counts() -> None:
    manifest = Manifest(rows_of([("P", 1, "train"), ("Q", None, "train"), ("R", 0, "train"), ("S", 1, "train")]))
    assert list(manifest.class_counts("train").items()) == [(0, 1), (1, 2), (None, 1)]
    assert manifest.class_counts("val") == {}


@settings(max_examples=40, deadline=None)
@given(
    cases=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=30, max_size=90),
    k=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_folds_part_the_patients_and_never_touch_test(cases: list[tuple[int, int]], k: int, seed: int) -> None:
    anchors = [(100 + i, i % 2) for i in range(2 * k)]  # each class has at least k patients
    split = ("train", "val", "test", "train")
    manifest = Manifest(rows_of([(f"P{p}", y, "train" if p >= 100 else split[p % 4]) for p, y in cases + anchors]))
    test = {row.patient for row in manifest.split("test")}
    everyone = {row.index for name in ("train", "val") for row in manifest.split(name)}
    folds = manifest.folds(k, seed)
    assert len(folds) == k
    seen: list[int] = []
    for train, val in folds:
        assert val
        assert not {row.patient for row in train} & {row.patient for row in val}
        assert not {row.patient for row in train + val} & test
        assert {row.index for row in train + val} == everyone
        seen += [row.index for row in val]
    assert sorted(seen) == sorted(everyone)
    assert folds == manifest.folds(k, seed)


def test_folds_share_out_a_rare_class_evenly() -> None:
    """27 deaths of 731, one scan each: five folds get 5 or 6, and 146 or 147 scans."""
    manifest = Manifest(rows_of([(f"P{i}", int(i < 27), "train") for i in range(731)]))
    folds = manifest.folds(5)
    assert sorted(sum(row.label == 1 for row in val) for _, val in folds) == [5, 5, 5, 6, 6]
    assert {len(val) for _, val in folds} == {146, 147}
    assert manifest.folds(5, 1) != folds


def test_folds_of_uneven_patients_are_as_balanced_as_scikit_learns() -> None:
    """Its StratifiedGroupKFold solves the same problem: the worst fold here is not worse than there."""
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    random = np.random.default_rng(0)
    cases = [
        (f"P{p}", int(random.random() < chance), "train")
        for p, chance in enumerate(random.random(80) * 0.5)
        for _ in range(int(random.integers(1, 12)))
    ]
    labels, groups = [y for _, y, _ in cases], [p for p, _, _ in cases]
    overall = float(np.mean(labels))

    def worst(parts: list[list[int]]) -> float:
        return max(abs(float(np.mean(part)) - overall) for part in parts)

    ours = worst([[row.label or 0 for row in val] for _, val in Manifest(rows_of(cases)).folds(5)])
    theirs = StratifiedGroupKFold(5).split(labels, labels, groups)
    assert ours <= max(worst([[labels[i] for i in val] for _, val in theirs]), 0.01)


def test_folds_that_cannot_be_are_refused() -> None:
    manifest = Manifest(rows_of([(f"P{i}", int(i < 3), "train") for i in range(20)] + [("T", 1, "test")]))
    with pytest.raises(ConfigError, match="class 1 has 3 patient"):
        manifest.folds(4)
    with pytest.raises(ConfigError, match="at least 2"):
        manifest.folds(1)
    with pytest.raises(ConfigError, match="too few for 2 folds"):
        Manifest(rows_of([("P", None, "train")])).folds(2)


def test_rows_are_immutable() -> None:
    row = Manifest(rows_of([("P", 1, "train")])).split("train")[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.split = "test"  # type: ignore[misc]


def test_a_manifest_of_test_rows_alone_is_not_split_anew() -> None:
    rows = [ManifestRow(Path(f"/scans/{i}"), f"P{i}", 1, "test") for i in range(40)]
    assert len(Manifest(rows).redrawn(3).split("test")) == 40
    mixed = [*rows, ManifestRow(Path("/scans/x"), "X", 1, "train")]
    assert len(Manifest(mixed).redrawn(3).split("test")) < 40


def test_tilt_is_allowed_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "a.npz").touch()
    (tmp_path / "b.npz").touch()
    path = tmp_path / "m.csv"
    path.write_text("path,patient,label,split,allow_tilt\na.npz,A,0,test,1\nb.npz,B,0,test,\n")
    read = Manifest.read(path)
    assert [row.allow_tilt for row in read.split("test")] == [True, False]
    assert read.write(tmp_path / "again.csv").read_text().splitlines()[1].endswith(",1")
    path.write_text("path,patient,label,split,allow_tilt\na.npz,A,0,test,yes\n")
    with pytest.raises(ConfigError, match=r"line 2: allow_tilt 'yes': expected 1, 0 or blank"):
        Manifest.read(path)
