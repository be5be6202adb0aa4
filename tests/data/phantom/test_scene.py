"""Any scene: same seed, same bytes; a cause that really causes; what cannot be made is refused."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from diffcf.data.phantom import Shortcut, fibrosis_scene, nodule_scene, territory_scene
from diffcf.errors import ConfigError


def test_a_scene_is_what_it_says(kind: str, make_scene) -> None:
    scene = make_scene(3)
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


def test_the_seed_decides_every_byte(make_scene) -> None:
    one, same, other = make_scene(7), make_scene(7), make_scene(8)
    assert one.scan.volume.tobytes() == same.scan.volume.tobytes()
    assert one.cause.tobytes() == same.cause.tobytes()
    assert (one.label, one.attributes, one.probability) == (same.label, same.attributes, same.probability)
    assert one.scan.volume.tobytes() != other.scan.volume.tobytes()


@pytest.mark.parametrize("seed", range(6))
def test_without_its_cause_nothing_else_changes(make_scene, seed: int) -> None:
    scene, without = make_scene(seed), make_scene(seed, lesion=False)
    differs = scene.scan.volume != without.scan.volume
    assert not (differs & (scene.cause == 0)).any()
    assert not without.cause.any()
    assert without.label == scene.label
    if scene.attributes.get("grade", 1) and scene.attributes.get("extent", 1) > 0.02:
        assert differs.any()
        assert differs[scene.cause > 0].mean() > 0.8
    assert scene.cause.mean() < 0.35


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
