"""The brain: an infarct keeps to its territory, and its grade is its size."""

from __future__ import annotations

import numpy as np

from diffcf.data.phantom import territory_scene


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
