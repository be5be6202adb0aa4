"""The chest: tissues in their Hounsfield units, anatomy the right way round, one body a patient."""

from __future__ import annotations

import numpy as np
import pytest

from diffcf.cards import Preparation
from diffcf.data.phantom import Scene, fibrosis_scene
from diffcf.scans import prepare

CHEST = 256


@pytest.fixture(scope="module")
def chests() -> list[Scene]:
    """Six healthy chests of four slices."""
    return [fibrosis_scene(seed, CHEST, 4, extent=0.0) for seed in range(6)]


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
