"""Attributes that experts rated, as 0 and 1, and which of them caused each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffcf.alignment.attribution import TableModel, attribute, flip, monotonicity
from diffcf.data.lidc_attributes import binary_attributes
from diffcf.data.manifest import ManifestRow
from diffcf.data.phantom.nodule import DRAWN
from diffcf.errors import ConfigError

Coding = Literal["binary", "lidc", "middle"]


@dataclass(frozen=True)
class AttributeSettings:
    """Which attributes of a manifest are used, and how the causal ones among them are told.

    names: columns of the manifest, without their prefix. coding: "binary", 0 and 1 already; "lidc", ratings as paper
    000 codes them; "middle", a phantom's, above the middle of what is drawn. strength: cases as which the logistic
    model counts in every cell of the table P(label | attributes) (`TableModel`). alpha: level at which an attribute
    counts as speaking against the label, so that it is turned round before CCCE. most, tolerance, rule: of `attribute`.
    """

    names: list[str]
    coding: Coding = "binary"
    strength: float = 10.0
    alpha: float = 0.01
    most: int = 3
    tolerance: float = 0.1
    rule: Literal["smallest", "likeliest"] = "smallest"


def coded_attributes(rows: Sequence[ManifestRow], names: Sequence[str], coding: Coding) -> NDArray[np.float64]:
    """The attributes of manifest rows "n p", 0 and 1, NaN where not rated.

    Errors: ConfigError for an attribute that no row has, or values other than 0 and 1 with coding "binary"; ScanError
    for ratings outside LIDC's scales.
    """
    absent = [name for name in names if not any(name in row.attributes for row in rows)]
    if absent or not names:
        have = sorted({name for row in rows for name in row.attributes})
        raise ConfigError(
            f"no row of the manifest has the attribute {', '.join(absent) or '(none named)'}; there are "
            f"{', '.join(have) or 'none'}."
        )
    rated = [[row.attributes.get(name) for name in names] for row in rows]
    values = np.array(rated, dtype=np.float64).reshape(len(rows), len(names))
    if coding == "lidc":
        return binary_attributes(values, names)
    if coding == "middle":
        unknown = [name for name in names if name not in DRAWN]
        if unknown:
            raise ConfigError(f"phantoms have no attribute {', '.join(unknown)}; there are {', '.join(DRAWN)}.")
        middle = np.array([DRAWN[name][0] for name in names])
        return np.where(np.isnan(values), np.nan, values > middle)
    wrong = ~np.isnan(values) & ~np.isin(values, (0, 1))
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        raise ConfigError(
            f"{rows[i].path} has {names[j]} {values[i, j]:g}: expected 0, 1 or nothing. Ratings on a scale have to be "
            "cut at a value of your choice first."
        )
    return values


@dataclass(frozen=True, eq=False)
class Causes:
    """What tells the causal attributes of a case: a table over the fully rated training cases, and what is turned."""

    table: TableModel
    against: NDArray[np.bool_]
    settings: AttributeSettings

    @classmethod
    def fit(cls, coded: NDArray[np.float64], labels: np.ndarray, settings: AttributeSettings) -> Causes:
        """coded: "n p" of 0, 1 and NaN, labels: "n" of 0 and 1. Errors: ConfigError as `TableModel.fit`."""
        whole = ~np.isnan(coded).any(1)
        if not whole.any():
            raise ConfigError(f"no training case is rated for all of {', '.join(settings.names)}.")
        coded, labels = coded[whole], labels[whole]
        against = np.array([one.against for one in monotonicity(coded, labels, settings.alpha)])
        return cls(TableModel.fit(flip(coded, against), labels, settings.strength), against, settings)

    def of(self, coded: NDArray[np.float64], labels: np.ndarray) -> NDArray[np.bool_]:
        """The attributes "n p" that caused each label; none of a case that is not fully rated."""
        found = np.zeros(coded.shape, dtype=bool)
        whole = ~np.isnan(coded).any(1)
        if whole.any():
            said = attribute(
                self.table,
                flip(coded[whole], self.against),
                labels[whole],
                most=self.settings.most,
                tolerance=self.settings.tolerance,
                rule=self.settings.rule,
            )
            found[whole] = said.causal
        return found
