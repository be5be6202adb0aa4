"""Labels: the share of positives that was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffcf.data.phantom import fibrosis_scene, nodule_scene, territory_scene


@pytest.mark.parametrize(("kind", "share"), [("nodule", 0.1), ("nodule", 0.8), ("fibrosis", 0.037), ("territory", 0.2)])
def test_the_share_of_positives_can_be_asked(kind: str, share: float) -> None:
    count = 60 if kind == "fibrosis" else 120
    small = {"nodule": {"size": 16}, "fibrosis": {"size": 16, "slices": 1, "lesion": False}, "territory": {"size": 16}}
    maker = {"nodule": nodule_scene, "fibrosis": fibrosis_scene, "territory": territory_scene}[kind]
    scenes = [maker(seed, imbalance=share, **small[kind]) for seed in range(count)]
    deviation = np.std([scene.probability for scene in scenes]) / math.sqrt(count)
    assert abs(np.mean([scene.probability for scene in scenes]) - share) < 4 * deviation + 0.005
    for scene in scenes[:10]:
        assert scene.label in (0, 1)
