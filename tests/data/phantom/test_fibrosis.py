"""Fibrosis: death follows its table, more extent is more of it, and it lies where it does in patients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffcf.data.phantom import fibrosis_scene


@pytest.mark.parametrize("extent", [0.0, 0.18, 0.2])
def test_death_follows_its_table(extent: float) -> None:
    scenes = [fibrosis_scene(seed, 16, 1, extent=extent, lesion=False) for seed in range(40)]
    stated = 1 / (1 + math.exp(-60 * (extent - 0.2)))
    assert scenes[0].probability == pytest.approx(stated)
    error = math.sqrt(stated * (1 - stated) / len(scenes))
    assert abs(np.mean([scene.label for scene in scenes]) - stated) < 4 * error + 1e-3


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
