"""Rated attributes as 0 and 1, and the causes of planted labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffcf.alignment.attributes import AttributeSettings, Causes, coded_attributes
from diffcf.data.manifest import ManifestRow
from diffcf.errors import ConfigError


def rows(*attributes: dict[str, float]) -> list[ManifestRow]:
    return [
        ManifestRow(path=Path(f"{i}.npz"), patient=f"p{i}", label=i % 2, split="train", attributes=one, index=i)
        for i, one in enumerate(attributes)
    ]


def test_ratings_become_0_and_1() -> None:
    given = rows({"a": 1, "size": 12.5}, {"a": 0, "size": 3}, {"size": 8})
    coded = coded_attributes(given, ["size", "a"], "binary", {"size": 8})
    np.testing.assert_array_equal(coded, [[1, 1], [0, 0], [0, np.nan]])
    lidc = coded_attributes(rows({"margin": 5, "spiculation": 2}, {"margin": 3}), ["margin", "spiculation"], "lidc")
    np.testing.assert_array_equal(lidc, [[0, 1], [1, np.nan]])
    mixed = rows({"margin": 5, "diameter_mm": 9.5}, {"margin": 3, "diameter_mm": 4})
    coded = coded_attributes(mixed, ["diameter_mm", "margin"], "lidc", {"diameter_mm": 8})
    np.testing.assert_array_equal(coded, [[1, 0], [0, 1]])
    with pytest.raises(ConfigError, match="above names size"):
        coded_attributes(mixed, ["margin"], "lidc", {"size": 8})


@pytest.mark.parametrize(
    ("names", "above", "said"),
    [
        (["a", "shape"], None, "has the attribute shape; there are a, size"),
        ([], None, "none named"),
        (["size"], None, r"1\.npz has size 3: expected 0, 1 or nothing"),
        (["a"], {"size": 3.0}, "above names size"),
    ],
)
def test_attributes_that_cannot_be_coded(names, above, said) -> None:
    with pytest.raises(ConfigError, match=said):
        coded_attributes(rows({"a": 1}, {"a": 0, "size": 3}), names, "binary", above)


def planted(count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """The label follows the first attribute but for one case in ten; the second, turned round, goes with nothing."""
    rng = np.random.default_rng(0)
    coded = rng.integers(0, 2, (count, 3)).astype(float)
    label = np.where(rng.random(count) < 0.1, 1 - coded[:, 0], coded[:, 0]).astype(int)
    return coded, label


@pytest.mark.parametrize("turned", [False, True])
def test_the_attribute_that_decides_is_the_cause(turned: bool) -> None:
    coded, label = planted()
    if turned:  # it speaks against the label: CCCE needs it turned back
        coded[:, 0] = 1 - coded[:, 0]
    settings = AttributeSettings(["a", "b", "c"])
    causes = Causes.fit(coded, label, settings)
    assert causes.against.tolist() == [turned, False, False]
    clear = (coded[:, 0] == label) != turned
    found = causes.of(coded[clear], label[clear])
    np.testing.assert_array_equal(found, np.tile([True, False, False], (clear.sum(), 1)))


def test_cases_that_are_not_fully_rated_have_no_known_cause() -> None:
    coded, label = planted()
    causes = Causes.fit(coded, label, AttributeSettings(["a", "b", "c"]))
    part = coded[:2].copy()
    part[0, 2] = np.nan
    assert not causes.of(part, label[:2])[0].any()
    assert causes.of(part, label[:2])[1].any() == (part[1, 0] == label[1])
    assert causes.of(np.full((2, 3), np.nan), label[:2]).sum() == 0
    with pytest.raises(ConfigError, match="no training case is rated for all of a, b, c"):
        Causes.fit(np.full((5, 3), np.nan), label[:5], AttributeSettings(["a", "b", "c"]))
