"""The brain: an infarct keeps to its territory, and its grade is its size."""

from __future__ import annotations

import numpy as np
import pytest

from diffcf.data.phantom import territory_scene
from diffcf.data.phantom.brain import SIDES, side_of
from diffcf.errors import ConfigError


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


def test_a_second_lesion_lies_on_the_other_side() -> None:
    for seed in range(12):
        one, two = (territory_scene(seed, 64, grade=3, second=share) for share in (0.0, 1.0))
        assert "second" not in one.attributes
        first, second = (int(two.attributes[name]) for name in ("territory", "second"))
        assert first == one.attributes["territory"]
        assert first // 3 != second // 3
        names = list(two.regions)
        other = (two.cause > 0) & ~(one.cause > 0)
        assert (two.regions[names[second]][other] == 1).all()
        assert other.any()
        assert (two.scan.volume == one.scan.volume)[~other].all()
        assert SIDES[side_of(two.attributes)] == "both"
        assert SIDES[side_of(one.attributes)] == names[first].split()[0]
    drawn = [territory_scene(seed, 16, second=0.25).attributes for seed in range(400)]
    sides = np.bincount([side_of(each) for each in drawn], minlength=4) / 400
    assert np.abs(sides - [0.5, 0.1875, 0.1875, 0.125]).max() < 4 * 0.5 / 20
    assert all(each["second"] == -1 for each in drawn if each["grade"] == 0)
    assert {each["second"] for each in drawn} == {-1, 0, 1, 2, 3, 4, 5}
    with pytest.raises(ConfigError, match=r"second 1\.5: expected the share"):
        territory_scene(0, second=1.5)
