"""Phantoms: same seed, same bytes; causes that really cause; tables that hold; anatomy the right way round."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes

from diffcf.cards import Preparation, Window
from diffcf.data import Manifest
from diffcf.data.dataset import ScanDataset
from diffcf.data.phantom import Scene, Shortcut, fibrosis_scene, nodule_scene, territory_scene
from diffcf.data.phantom.__main__ import main
from diffcf.data.phantom.folder import PhantomSet, write_scenes
from diffcf.data.phantom.shortcut import add_shortcut, read_symbol
from diffcf.errors import ConfigError
from diffcf.scans import prepare, read_scan

MAKERS = {
    "nodule": lambda seed, **more: nodule_scene(seed, 48, **more),
    "fibrosis": lambda seed, **more: fibrosis_scene(seed, 48, 3, **more),
    "territory": lambda seed, **more: territory_scene(seed, 48, **more),
}
KINDS = pytest.mark.parametrize("kind", MAKERS)
CHEST = 256


@pytest.fixture(scope="module")
def chests() -> list[Scene]:
    """Six healthy chests of four slices."""
    return [fibrosis_scene(seed, CHEST, 4, extent=0.0) for seed in range(6)]


@KINDS
def test_a_scene_is_what_it_says(kind: str) -> None:
    scene = MAKERS[kind](3)
    volume, scan = scene.scan.volume, scene.scan
    assert volume.dtype == np.float32
    assert volume.shape == (3 if kind == "fibrosis" else 1, 48, 48)
    assert (volume == np.rint(volume)).all()
    assert volume.min() >= -1024
    assert scene.cause.shape == volume.shape
    assert scene.cause.dtype == np.uint8
    assert set(np.unique(scene.cause)) <= {0, 1}
    assert scene.label in range(len(scene.classes))
    assert 0 <= scene.probability <= 1
    assert scene.shortcut is None
    assert aff2axcodes(scan.affine) == ("L", "P", "S")
    np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), scan.spacing[::-1])
    middle = scan.affine @ [*((np.array(volume.shape[::-1]) - 1) / 2), 1]
    np.testing.assert_allclose(middle, [0, 0, 0, 1], atol=1e-9)


@KINDS
def test_the_seed_decides_every_byte(kind: str) -> None:
    one, same, other = MAKERS[kind](7), MAKERS[kind](7), MAKERS[kind](8)
    assert one.scan.volume.tobytes() == same.scan.volume.tobytes()
    assert one.cause.tobytes() == same.cause.tobytes()
    assert (one.label, one.attributes, one.probability) == (same.label, same.attributes, same.probability)
    assert one.scan.volume.tobytes() != other.scan.volume.tobytes()


@KINDS
@pytest.mark.parametrize("seed", range(6))
def test_without_its_cause_nothing_else_changes(kind: str, seed: int) -> None:
    scene, without = MAKERS[kind](seed), MAKERS[kind](seed, lesion=False)
    differs = scene.scan.volume != without.scan.volume
    assert not (differs & (scene.cause == 0)).any()
    assert not without.cause.any()
    assert without.label == scene.label
    if scene.attributes.get("grade", 1) and scene.attributes.get("extent", 1) > 0.02:
        assert differs.any()
        assert differs[scene.cause > 0].mean() > 0.8
    assert scene.cause.mean() < 0.35


RATINGS = ("subtlety", "sphericity", "margin", "lobulation", "spiculation", "texture")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(RATINGS), value=st.floats(1, 5))
def test_an_attribute_changes_the_nodule_only(seed: int, name: str, value: float) -> None:
    scene = nodule_scene(seed)
    changed = nodule_scene(seed, attributes={name: value})
    differs = scene.scan.volume != changed.scan.volume
    assert not (differs & (scene.cause == 0) & (changed.cause == 0)).any()
    others = {key: own for key, own in scene.attributes.items() if key != name}
    assert others == {key: own for key, own in changed.attributes.items() if key != name}
    assert changed.attributes[name] == pytest.approx(value, abs=1e-3)


def shown(name: str, value: float, measure, seeds: int = 5) -> float:
    """A measure (of a scene and the same one without lesion), averaged; one attribute set, the others plain."""
    plain = dict.fromkeys(RATINGS, 5.0) | {"lobulation": 1.0, "spiculation": 1.0, "diameter": 14.0, name: value}
    return float(
        np.mean([measure(nodule_scene(s, attributes=plain), nodule_scene(s, lesion=False)) for s in range(seeds)])
    )


def contrast(scene: Scene, without: Scene) -> float:
    difference = scene.scan.volume - without.scan.volume
    return float(np.percentile(difference, 99))


def area(scene: Scene, _: Scene) -> float:
    return float(scene.cause.sum())


def blurred(scene: Scene, without: Scene) -> float:
    """Pixels that the nodule changes by between a tenth and nine tenths of its most."""
    change = (scene.scan.volume - without.scan.volume) / 900
    return float(((change > 0.1) & (change < 0.8)).sum())


def elongation(scene: Scene, without: Scene) -> float:
    where = np.argwhere(scene.cause[0]).T
    small, large = np.linalg.eigvalsh(np.cov(where))
    return float(large / small)


def roughness(scene: Scene, _: Scene) -> float:
    """Border of the region against that of a square of the same area."""
    region = np.pad(scene.cause[0], 1)
    border = np.abs(np.diff(region.astype(int), axis=0)).sum() + np.abs(np.diff(region.astype(int), axis=1)).sum()
    return float(border / (4 * np.sqrt(region.sum())))


@pytest.mark.parametrize(
    ("name", "measure", "rises"),
    [
        ("subtlety", contrast, True),
        ("texture", contrast, True),
        ("diameter", area, True),
        ("margin", blurred, False),
        ("sphericity", elongation, False),
        ("lobulation", roughness, True),
        ("spiculation", roughness, True),
    ],
)
def test_each_attribute_is_seen(name: str, measure, rises: bool) -> None:
    low, high = (6.0, 20.0) if name == "diameter" else (1.0, 5.0)
    values = [shown(name, value, measure) for value in (low, (low + high) / 2, high)]
    assert values == sorted(values, reverse=not rises)
    assert max(values) > 1.1 * min(values)


def test_malignancy_follows_its_table() -> None:
    """The logistic of the docstring, written out again; label frequencies within the binomial error in four parts."""
    scenes = [nodule_scene(seed, 16) for seed in range(700)]
    for scene in scenes[:20]:
        a = scene.attributes
        logit = 1.5 * (a["spiculation"] - 2.6) + (a["lobulation"] - 2.6) - 0.6 * (a["margin"] - 3.6)
        logit += -0.5 * (a["sphericity"] - 3.6) + 0.3 * (a["texture"] - 4) + 0.3 * (a["diameter"] - 10)
        assert scene.probability == pytest.approx(1 / (1 + math.exp(-logit)))
    stated = np.array([scene.probability for scene in scenes])
    label = np.array([scene.label for scene in scenes])
    assert 0.4 < label.mean() < 0.6
    order = np.argsort(stated)
    for part in np.array_split(order, 4):
        error = np.sqrt((stated[part] * (1 - stated[part])).sum()) / len(part)
        assert abs(label[part].mean() - stated[part].mean()) < 4 * error + 1e-3


@pytest.mark.parametrize("extent", [0.0, 0.18, 0.2])
def test_death_follows_its_table(extent: float) -> None:
    scenes = [fibrosis_scene(seed, 16, 1, extent=extent, lesion=False) for seed in range(64)]
    stated = 1 / (1 + math.exp(-60 * (extent - 0.2)))
    assert scenes[0].probability == pytest.approx(stated)
    error = math.sqrt(stated * (1 - stated) / len(scenes))
    assert abs(np.mean([scene.label for scene in scenes]) - stated) < 4 * error + 1e-3


@pytest.mark.parametrize(("kind", "share"), [("nodule", 0.1), ("nodule", 0.8), ("fibrosis", 0.037), ("territory", 0.2)])
def test_the_share_of_positives_can_be_asked(kind: str, share: float) -> None:
    count = 80 if kind == "fibrosis" else 200
    small = {"nodule": {"size": 16}, "fibrosis": {"size": 16, "slices": 1, "lesion": False}, "territory": {"size": 16}}
    maker = {"nodule": nodule_scene, "fibrosis": fibrosis_scene, "territory": territory_scene}[kind]
    scenes = [maker(seed, imbalance=share, **small[kind]) for seed in range(count)]
    deviation = np.std([scene.probability for scene in scenes]) / math.sqrt(count)
    assert abs(np.mean([scene.probability for scene in scenes]) - share) < 4 * deviation + 0.005
    for scene in scenes[:10]:
        assert scene.label in (0, 1)


def test_more_extent_is_more_fibrosis() -> None:
    for seed in range(2):
        scenes = [fibrosis_scene(seed, 64, 4, extent=extent) for extent in (0, 0.05, 0.1, 0.2, 0.3, 0.4)]
        areas = [int(scene.cause.sum()) for scene in scenes]
        assert areas[0] == 0
        assert (np.diff(areas) > 0).all()
        healthy = scenes[0].scan.volume
        lung = (healthy > -960) & (healthy < -620)  # by its HU, not by what drew it
        share = (scenes[-1].cause > 0)[lung].mean()
        assert 0.25 < share < 0.6
        density = [scene.scan.volume[lung].mean() for scene in scenes]
        assert (np.diff(density) > 0).all()


def test_fibrosis_is_basal_and_subpleural() -> None:
    scenes = [fibrosis_scene(seed, 128, 4, extent=0.2) for seed in range(4)]
    by_slice = np.mean([scene.cause.mean(axis=(1, 2)) for scene in scenes], axis=0)
    assert by_slice[0] > 1.5 * by_slice[2] > by_slice[3]  # slice 0 is the lowest
    rows = np.mean([np.argwhere(scene.cause)[:, 1].mean() for scene in scenes])
    assert rows > 64  # rather at the back


def test_tissues_have_their_hounsfield_units(chests: list[Scene]) -> None:
    for scene in chests:
        volume = scene.scan.volume
        assert abs(volume[:, :12, :12].mean() + 1000) < 20  # air in a corner
        share = {
            "lung": ((volume > -960) & (volume < -700)).mean(),
            "fat": ((volume > -150) & (volume < -60)).mean(),
            "muscle": ((volume > 0) & (volume < 100)).mean(),
            "bone": (volume > 250).mean(),
        }
        assert 0.08 < share["lung"] < 0.4
        assert 0.02 < share["fat"] < 0.3
        assert 0.12 < share["muscle"] < 0.4
        assert 0.01 < share["bone"] < 0.07
        assert 700 < np.percentile(volume[volume > 250], 98) < 1500
        heart = volume[1, 118:130, 128:144]
        assert 25 < heart.mean() < 60


def test_the_chest_lies_on_its_back_and_the_heart_on_its_left(chests: list[Scene]) -> None:
    """Rows run from anterior to posterior, columns from the patient's right to left, slices from base to apex."""
    volume = np.mean([scene.scan.volume for scene in chests], axis=0)
    column = volume[:, :, CHEST // 2 - 10 : CHEST // 2 + 10]
    bone = (column > 200).sum(axis=(0, 2))
    assert bone[CHEST // 2 :].sum() > 3 * bone[: CHEST // 2].sum()  # vertebrae against sternum
    lung = (volume > -930) & (volume < -500)
    right, left = lung[1, :, : CHEST // 2].sum(), lung[1, :, CHEST // 2 :].sum()
    assert right > 1.08 * left  # the heart takes room from the left lung
    assert lung[3].sum() < 0.7 * lung[1].sum()  # the apex is small
    trachea = volume[3, 100:150, 110:146]
    assert trachea.min() < -700
    table = volume[1, 240:, 100:156].max(axis=0)  # the couch is under the back
    assert table.mean() > -900


def test_a_small_chest_looks_as_a_large_one_resized() -> None:
    """What is made at 64 pixels must be fit for training a model that will see a resized scan."""
    preparation = Preparation(field="resize", size=64, slices=4)
    for seed in range(2):
        small = fibrosis_scene(seed, 64, 4, extent=0.0).scan
        large = prepare(fibrosis_scene(seed, 256, 4, extent=0.0).scan, preparation).hu
        assert np.corrcoef(small.volume.ravel(), large.ravel())[0, 1] > 0.98
        assert abs(small.volume.mean() - large.mean()) < 15
        assert small.spacing[1:] == (5.5, 5.5)


def test_one_patient_keeps_the_body() -> None:
    first = fibrosis_scene(1, 48, 2, extent=0.0, anatomy_seed=9)
    second = fibrosis_scene(2, 48, 2, extent=0.0, anatomy_seed=9)
    other = fibrosis_scene(2, 48, 2, extent=0.0, anatomy_seed=10)
    apart = np.abs(first.scan.volume - second.scan.volume)
    assert 0 < apart.mean() < 20  # noise only
    assert np.abs(first.scan.volume - other.scan.volume).mean() > 40


def test_an_infarct_is_dark_and_keeps_to_its_territory() -> None:
    for territory in range(6):
        scene = territory_scene(4, 96, territory=territory, grade=3)
        names = list(scene.regions)
        cause = scene.cause > 0
        assert (scene.regions[names[territory]][cause] == 1).all()
        without = territory_scene(4, 96, territory=territory, grade=3, lesion=False)
        change = (scene.scan.volume - without.scan.volume)[cause]
        assert -16 < change.mean() < -4
        assert scene.label == 1
        assert scene.attributes["territory"] == territory
        columns = np.argwhere(scene.regions[names[territory]])[:, 2]
        assert (columns.mean() > 48) == names[territory].startswith("left")
    together = np.sum(list(scene.regions.values()), axis=0)
    assert together.max() == 1
    assert 0.15 < together.mean() < 0.6
    skull = scene.scan.volume > 600
    assert 0.02 < skull.mean() < 0.2


def test_the_grade_is_the_lesions_size() -> None:
    areas = np.array(
        [[territory_scene(s, 64, territory=1, grade=grade).cause.sum() for grade in range(5)] for s in range(8)]
    ).mean(axis=0)
    assert areas[0] == 0
    assert (np.diff(areas) > 0).all()
    grades = [territory_scene(seed, 16).attributes["grade"] for seed in range(400)]
    assert abs(np.mean(np.array(grades) > 0) - 0.5) < 4 * 0.5 / 20


@pytest.mark.parametrize("kind", ["symbol", "intensity"])
@pytest.mark.parametrize("correlation", [1.0, 0.5, 0.0, -1.0])
def test_a_shortcut_goes_with_the_label_as_asked(kind: str, correlation: float) -> None:
    shortcut = Shortcut(kind, correlation, corner="bottom right")  # type: ignore[arg-type]
    right = []
    for seed in range(100):
        scene = nodule_scene(seed, 32, shortcut=shortcut)
        right.append(scene.shortcut_class == scene.label)
        if seed < 5:
            plain = nodule_scene(seed, 32)
            assert scene.shortcut is not None
            assert not ((scene.scan.volume != plain.scan.volume) & (scene.shortcut == 0)).any()
            assert (scene.label, scene.probability) == (plain.label, plain.probability)
            np.testing.assert_array_equal(scene.cause, plain.cause)
            assert scene.shortcut[:, :16].sum() == 0
    expected = (1 + correlation) / 2
    assert abs(np.mean(right) - expected) <= 4 * math.sqrt(expected * (1 - expected) / len(right))


@pytest.mark.parametrize("kind", MAKERS)
def test_plus_and_minus_are_told_apart(kind: str) -> None:
    """Two scenes that differ in the class their symbol points to differ in the vertical bar of the + only."""
    one = MAKERS[kind](5, shortcut=Shortcut("symbol", 1.0))
    other = MAKERS[kind](5, shortcut=Shortcut("symbol", -1.0))
    assert one.shortcut_class != other.shortcut_class
    assert one.shortcut is not None
    differs = one.scan.volume != other.scan.volume
    assert differs.any()
    assert not (differs & (one.shortcut == 0)).any()
    plus = one if one.shortcut_class == 1 else other
    assert (plus.scan.volume[plus.shortcut > 0] == 400).all()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nodule_scene(-1), "seed -1"),
        (lambda: nodule_scene(0, 8), "size 8"),
        (lambda: nodule_scene(0, spacing=0), "spacing 0"),
        (lambda: nodule_scene(0, attributes={"colour": 2}), "unknown attribute"),
        (lambda: nodule_scene(0, attributes={"margin": 6}), "margin 6: expected 1 to 5"),
        (lambda: nodule_scene(0, imbalance=0.0), "imbalance 0"),
        (lambda: fibrosis_scene(0, 32, 0), "0 slices"),
        (lambda: fibrosis_scene(0, 32, extent=0.7), "extent 0.7"),
        (lambda: territory_scene(0, grade=5), "grade 5"),
        (lambda: territory_scene(0, territory=6), "territory 6"),
        (lambda: Shortcut("star"), "shortcut 'star'"),  # type: ignore[arg-type]
        (lambda: Shortcut(correlation=2), "correlation 2"),
    ],
)
def test_what_cannot_be_made_is_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


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


@pytest.mark.parametrize("corner", ["top left", "bottom right"])
def test_a_symbol_is_read_as_it_was_painted(corner) -> None:
    shortcut = Shortcut(corner=corner)
    for seed in range(12):
        scene = nodule_scene(seed, shortcut=dataclasses.replace(shortcut, correlation=0))
        assert read_symbol(scene.scan.volume, shortcut) == scene.shortcut_class


def test_a_set_labelled_by_its_mark(tmp_path) -> None:
    wanted = PhantomSet("nodule", 12, size=32, shortcut=Shortcut(correlation=0), label="mark")
    made = write_scenes(wanted, tmp_path / "set")
    rows = [row for split in ("train", "val", "test") for row in made.split(split)]
    assert all(row.label == row.attributes["shortcut"] for row in rows)
    assert len({row.label for row in rows}) == 2
    mask = nibabel.load(rows[0].mask).get_fdata()
    assert 0 < mask.mean() < 0.1
    assert mask[16:, 16:].sum() == 0 or mask[:16, :16].sum() == 0  # a corner, not the nodule
    with pytest.raises(ConfigError, match="labels by the mark"):
        write_scenes(PhantomSet("nodule", 2, label="mark"), tmp_path / "other")


@pytest.mark.parametrize("seed", [1_000_003, 1_000_004, 1_000_005, 1_000_006])
def test_a_twin_differs_by_its_nodule_and_is_of_the_other_class(seed: int) -> None:
    scene, twin = nodule_scene(seed), nodule_scene(seed, twin=True)
    assert twin.label == 1 - scene.label
    given = twin.probability if twin.label else 1 - twin.probability
    assert given == pytest.approx(0.9, abs=0.01)
    changed = scene.scan.volume != twin.scan.volume
    assert changed.any()
    assert not (changed & ~(scene.cause | twin.cause).astype(bool)).any()
    larger = twin.attributes["diameter"] > scene.attributes["diameter"]
    assert larger == bool(twin.label)


def test_the_cause_of_both_classes(tmp_path: Path) -> None:
    from diffcf.data.phantom.folder import PhantomSet, write_scenes
    from diffcf.scans import read_scan

    for cause in ("scene", "classes"):
        write_scenes(PhantomSet("nodule", 4, size=32, cause=cause), tmp_path / cause)
    for path in (tmp_path / "scene" / "masks").iterdir():
        one = read_scan(path, modality="other").volume > 0
        both = read_scan(tmp_path / "classes" / "masks" / path.name, modality="other").volume > 0
        assert (both | ~one).all()
        assert both.any()
    with pytest.raises(ConfigError, match="known for nodules"):
        write_scenes(PhantomSet("fibrosis", 1, cause="classes"), tmp_path / "none")


def test_a_symbol_stands_out_from_lung_and_not_from_what_is_as_bright() -> None:
    from diffcf.data.phantom.shortcut import symbol_contrast

    lung = np.full((1, 64, 64), -800.0, np.float32)
    shown, where, _ = add_shortcut(lung, 1, Shortcut(), 0)
    assert symbol_contrast(shown, Shortcut()) == pytest.approx(1200, abs=1)
    columns = np.nonzero(where[0])[1]
    wall = lung.copy()
    wall[:, :, : columns.min() + 3] = 400.0  # the symbol reaches over the edge of bone
    assert symbol_contrast(add_shortcut(wall, 0, Shortcut(), 0)[0], Shortcut()) == pytest.approx(0, abs=1)
