"""Shortcuts: with the label as asked, told apart, read as painted."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from diffcf.data.phantom import Shortcut, nodule_scene
from diffcf.data.phantom.shortcut import add_shortcut, read_symbol, symbol_contrast


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


def test_plus_and_minus_are_told_apart(make_scene) -> None:
    """Two scenes that differ in the class their symbol points to differ in the vertical bar of the + only."""
    one = make_scene(5, shortcut=Shortcut("symbol", 1.0))
    other = make_scene(5, shortcut=Shortcut("symbol", -1.0))
    assert one.shortcut_class != other.shortcut_class
    assert one.shortcut is not None
    differs = one.scan.volume != other.scan.volume
    assert differs.any()
    assert not (differs & (one.shortcut == 0)).any()
    plus = one if one.shortcut_class == 1 else other
    assert (plus.scan.volume[plus.shortcut > 0] == 400).all()  # type: ignore[operator]


@pytest.mark.parametrize("corner", ["top left", "bottom right"])
def test_a_symbol_is_read_as_it_was_painted(corner) -> None:
    shortcut = Shortcut(corner=corner)
    for seed in range(12):
        scene = nodule_scene(seed, shortcut=dataclasses.replace(shortcut, correlation=0))
        assert read_symbol(scene.scan.volume, shortcut) == scene.shortcut_class


def test_a_symbol_stands_out_from_lung_and_not_from_what_is_as_bright() -> None:
    lung = np.full((1, 64, 64), -800.0, np.float32)
    shown, where, _ = add_shortcut(lung, 1, Shortcut(), 0)
    assert symbol_contrast(shown, Shortcut()) == pytest.approx(1200, abs=1)
    columns = np.nonzero(where[0])[1]
    wall = lung.copy()
    wall[:, :, : columns.min() + 3] = 400.0  # the symbol reaches over the edge of bone
    assert symbol_contrast(add_shortcut(wall, 0, Shortcut(), 0)[0], Shortcut()) == pytest.approx(0, abs=1)
