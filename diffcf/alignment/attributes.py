"""Attributes that experts rated, as 0 and 1, and which of them caused each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffcf.alignment.attribution import TableModel, attribute, flip, monotonicity
from diffcf.data.lidc_attributes import binary_attributes
from diffcf.data.manifest import ManifestRow
from diffcf.errors import ConfigError

Coding = Literal["binary", "lidc"]


@dataclass(frozen=True)
class AttributeSettings:
    """Which attributes of a manifest are used, and how the causal ones among them are told.

    names: columns of the manifest, without their prefix. coding: "binary", 0 and 1 already; "lidc", ratings as paper
    000 codes them. above: name -> number; the attribute is 1 above it, whatever the coding. strength: cases as which
    the logistic model counts in every cell of the table P(label | attributes) (`TableModel`). alpha: level at which an
    attribute counts as speaking against the label, so that it is turned round before CCCE. most, tolerance, rule: of
    `attribute`.
    """

    names: list[str]
    coding: Coding = "binary"
    above: dict[str, float] = field(default_factory=dict)
    strength: float = 10.0
    alpha: float = 0.01
    most: int = 3
    tolerance: float = 0.1
    rule: Literal["smallest", "likeliest"] = "smallest"

    def coded(self, rows: Sequence[ManifestRow]) -> NDArray[np.float64]:
        """See `coded_attributes`."""
        return coded_attributes(rows, self.names, self.coding, self.above)


def coded_attributes(
    rows: Sequence[ManifestRow], names: Sequence[str], coding: Coding, above: Mapping[str, float] | None = None
) -> NDArray[np.float64]:
    """The attributes of manifest rows "n p", 0 and 1, NaN where not rated; as `AttributeSettings` says.

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
    if unknown := set(above or {}) - set(names):
        raise ConfigError(f"above names {', '.join(sorted(unknown))}: expected some of {', '.join(names)}.")
    cut = [above is not None and name in above for name in names]
    for j, name in enumerate(names):
        if above and cut[j]:
            values[:, j] = np.where(np.isnan(values[:, j]), np.nan, values[:, j] > above[name])
    others = [j for j, own in enumerate(cut) if not own]
    if coding == "lidc" and others:
        values[:, others] = binary_attributes(values[:, others], [names[j] for j in others])
    wrong = ~np.isnan(values) & ~np.isin(values, (0, 1))
    if wrong.any():
        i, j = np.argwhere(wrong)[0]
        raise ConfigError(
            f"{rows[i].path} has {names[j]} {values[i, j]:g}: expected 0, 1 or nothing. Say above which number it is 1 "
            "(`above`), or code it in the manifest."
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
