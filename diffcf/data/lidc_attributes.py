"""LIDC's ratings as binary attributes, as CF-Align codes them (paper 000, appendix B.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffcf.errors import ScanError


@dataclass(frozen=True)
class Coding:
    """What 0 and 1 mean, and which ratings are 1. highest: of the scale, which starts at 1."""

    zero: str
    one: str
    ones: tuple[int, ...]
    highest: int = 5


# The table names a pair for every attribute; the first of it is 0 and the second 1.
CODINGS = {
    "subtlety": Coding("subtle (4 or less)", "obvious (5)", (5,)),
    "calcification": Coding("absent (6)", "present (5 or less)", (1, 2, 3, 4, 5), highest=6),
    "margin": Coding("sharp (5)", "poorly defined (4 or less)", (1, 2, 3, 4)),
    "spiculation": Coding("absent (1)", "present (2 or more)", (2, 3, 4, 5)),
    "lobulation": Coding("absent (1)", "present (2 or more)", (2, 3, 4, 5)),
    "texture": Coding("solid (5)", "ground glass or mixed (4 or less)", (1, 2, 3, 4)),
}
LIDC_ATTRIBUTES = tuple(CODINGS)  # the six of paper 001


def binary_attributes(ratings: np.ndarray, names: Sequence[str] = LIDC_ATTRIBUTES) -> np.ndarray:
    """Ratings "n p" in the order of `names` as 0 and 1 (paper 000, appendix B.1), float64; NaN stays NaN: not rated.

    0 and 1 are: subtlety subtle (4 or less), obvious (5); calcification absent (6), present (5 or less); margin sharp
    (5), poorly defined (4 or less); spiculation and lobulation absent (1), present (2 or more); texture solid (5),
    ground glass or mixed (4 or less). A mean of several radiologists counts as the nearest whole rating, halves as the
    higher one. Calcification as coded speaks against malignancy; whoever needs attributes that speak for it flips it
    (`diffcf.alignment.attribution`).

    Errors: ScanError for an attribute that the table does not have, and a rating outside of its scale.
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    unknown = [name for name in names if name not in CODINGS]
    if unknown or ratings.ndim != 2 or ratings.shape[1] != len(names):
        raise ScanError(
            f"ratings {ratings.shape} of {', '.join(names)}: expected 'n {len(names)}', of {', '.join(CODINGS)}."
        )
    coded = np.full(ratings.shape, np.nan)
    for j, name in enumerate(names):
        coding, column = CODINGS[name], ratings[:, j]
        outside = (column < 1) | (column > coding.highest)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            raise ScanError(
                f"case {first} has {name} {column[first]:g}: LIDC rates it from 1 to {coding.highest}; leave blank "
                "what is not rated."
            )
        coded[:, j] = np.where(np.isnan(column), np.nan, np.isin(np.floor(column + 0.5), coding.ones))
    return coded
