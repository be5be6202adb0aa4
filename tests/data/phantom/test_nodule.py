"""Nodules: each rating is seen, malignancy follows its table, a twin is of the other class."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcf.data.phantom import Scene, nodule_scene
from diffcf.data.phantom.nodule import nodule_draw

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
    scenes = [nodule_scene(seed, 16) for seed in range(300)]
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


def test_the_draw_of_a_label_is_known_without_the_picture() -> None:
    for seed in (3, 1_000_003, 2_000_004):
        for wanted in ({}, {"spiculation": 1.0, "diameter": 20.0}):
            scene = nodule_scene(seed, 16, attributes=wanted, imbalance=0.3)
            drawn, noise = nodule_draw(seed, attributes=wanted, imbalance=0.3)
            assert drawn == scene.attributes
            assert scene.label == int(noise < scene.probability)
            assert noise == nodule_draw(seed)[1]


def test_scenes_are_what_they_were() -> None:
    """Data sets made before stay reproducible: the first nodule of the set with seed 0."""
    scene = nodule_scene(1_000_000)
    assert scene.attributes == {
        "subtlety": 2.892, "sphericity": 2.717, "margin": 2.68, "lobulation": 3.281, "spiculation": 5.0,
        "texture": 5.0, "diameter": 13.926,
    }  # fmt: skip
    assert scene.label == 1
    assert round(scene.probability, 6) == 0.998833
    assert round(float(scene.scan.volume.mean()), 3) == -712.718
