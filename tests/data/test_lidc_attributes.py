"""The table of paper 000, appendix B.1, rating by rating."""

from __future__ import annotations

import numpy as np
import pytest

from diffcf.data.lidc_attributes import LIDC_ATTRIBUTES, binary_attributes
from diffcf.errors import ScanError

TABLE = {  # attribute -> what the ratings 1, 2, ... are
    "subtlety": [0, 0, 0, 0, 1],
    "calcification": [1, 1, 1, 1, 1, 0],
    "margin": [1, 1, 1, 1, 0],
    "spiculation": [0, 1, 1, 1, 1],
    "lobulation": [0, 1, 1, 1, 1],
    "texture": [1, 1, 1, 1, 0],
}


def test_the_six_attributes_of_the_paper() -> None:
    assert tuple(TABLE) == LIDC_ATTRIBUTES


@pytest.mark.parametrize("name", TABLE)
def test_every_rating(name: str) -> None:
    ratings = np.arange(1, len(TABLE[name]) + 1)[:, None]
    assert binary_attributes(ratings, [name])[:, 0].tolist() == TABLE[name]


def test_what_is_not_rated_stays_unknown_and_means_are_rounded() -> None:
    coded = binary_attributes(np.array([[np.nan, 5.5, 4.4, 1.49, 1.5, 4.5]]))
    np.testing.assert_array_equal(coded, [[np.nan, 0, 1, 0, 1, 0]])


def test_what_is_no_rating_is_refused() -> None:
    with pytest.raises(ScanError, match="case 1 has margin 6: LIDC rates it from 1 to 5"):
        binary_attributes(np.array([[5.0], [6.0]]), ["margin"])
    with pytest.raises(ScanError, match="case 0 has texture 0"):
        binary_attributes(np.array([[0.0]]), ["texture"])
    assert binary_attributes(np.array([[6.0]]), ["calcification"]) == 0
    with pytest.raises(ScanError, match="expected 'n 1', of subtlety"):
        binary_attributes(np.array([[5.0]]), ["sphericity"])
