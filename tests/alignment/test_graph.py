"""The PC algorithm on data from known graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffcf.alignment.graph import draw, edges, skeleton
from diffcf.errors import ConfigError


def known_graph(count: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """a -> b -> label <- c, and d beside it: a and the label are dependent, but not given b."""
    rng = np.random.default_rng(seed)
    a, c, d = rng.integers(0, 2, (3, count))
    b = (rng.random(count) < np.where(a == 1, 0.8, 0.2)).astype(int)
    label = (rng.random(count) < 0.1 + 0.4 * b + 0.4 * c).astype(int)
    return np.stack([a, b, c, d], axis=1), label


NAMES = ("a", "b", "c", "d", "label")


@pytest.mark.parametrize("seed", range(3))
def test_the_skeleton_of_a_known_graph_is_found(seed: int) -> None:
    attributes, label = known_graph(seed=seed)
    joined = skeleton(attributes, label, alpha=0.001)
    assert joined.dtype == bool
    assert (joined == joined.T).all()
    assert edges(joined, NAMES) == [("a", "b"), ("b", "label"), ("c", "label")]
    assert np.corrcoef(attributes[:, 0], label)[0, 1] > 0.15  # what a correlation would have joined


def test_a_hidden_common_cause_joins_what_it_causes() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.random(4000)
    attributes = (rng.random((4000, 2)) < hidden[:, None]).astype(int)
    label = (rng.random(4000) < 0.2 + 0.6 * attributes[:, 0]).astype(int)
    assert edges(skeleton(attributes, label, 0.001), ("a", "b", "label")) == [("a", "b"), ("a", "label")]


def test_the_order_of_the_attributes_does_not_matter() -> None:
    attributes, label = known_graph(600)
    turned = [2, 0, 3, 1]
    joined = skeleton(attributes, label)
    again = skeleton(attributes[:, turned], label)
    order = [*turned, 4]
    assert (again == joined[np.ix_(order, order)]).all()


def test_a_skeleton_is_drawn(tmp_path: Path) -> None:
    joined = skeleton(*known_graph(600))
    assert draw(joined, NAMES, tmp_path / "new" / "graph.png", "known").stat().st_size > 5000
    with pytest.raises(ConfigError, match="expected a name for each"):
        draw(joined, NAMES[:2], tmp_path / "graph.png")


def test_what_no_test_can_be_made_of_is_refused() -> None:
    attributes, label = known_graph(50)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        skeleton(attributes, label, alpha=1.0)
    with pytest.raises(ConfigError, match="not 0 or 1"):
        skeleton(attributes * 3, label)
