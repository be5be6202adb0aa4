"""A case: an explanation together with the scan it explains, which is what every report file is made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcf.cards import Window
from diffcf.errors import (
    EXIT_NOT_REACHABLE,
    EXIT_OUT_OF_DISTRIBUTION,
    EXIT_TRUST,
    ConfigError,
)
from diffcf.types import Explanation, Scan, TrustCheck, unit_of

if TYPE_CHECKING:
    from torch import Tensor

    from diffcf.scans import Patch

OUT_OF_DISTRIBUTION = "in_distribution"  # the trust check with an exit code of its own
NOT_REACHABLE = "validity"  # the check that repeats `Explanation.reachable`


@dataclass(frozen=True)
class Verdict:
    """What an explanation is worth, in one word, one exit code and one sentence."""

    name: str
    exit_code: int
    sentence: str


@dataclass(frozen=True, eq=False)
class Case:
    """One explanation (batch of one, one channel) and where it belongs.

    patch: the field of the scan that was explained; its preparation's window is the images' [-1, 1]. classes: names in
    the order of the scores. probability: the score that was asked for the target. provenance: plain data on models,
    versions and settings, written as it is. Errors: ConfigError where the shapes do not belong together.
    """

    explanation: Explanation
    scan: Scan
    patch: Patch
    classes: tuple[str, ...]
    probability: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = (1, len(self.patch.slices), 1, *self.patch.hu.shape[-2:])
        found = tuple(self.explanation.factual.shape)
        if found != expected:
            raise ConfigError(
                f"an explanation of shape {found} (b s c h w) does not belong to a patch of shape {expected}; report "
                "one explanation of one-channel slices at a time."
            )
        scores = self.explanation.factual_probability.shape[-1]
        if scores != len(self.classes):
            raise ConfigError(f"{scores} scores but {len(self.classes)} class names, {self.classes}; correct the card.")

    @property
    def window(self) -> Window:
        """The window whose limits are -1 and 1 of the images."""
        return self.patch.preparation.window

    @property
    def unit(self) -> str:
        """What the scan's values count in: "HU", or "grey levels" of a picture or of another modality than CT."""
        return unit_of(self.scan.provenance.modality)

    @property
    def target(self) -> int:
        """Index of the class that was searched for."""
        return int(self.explanation.target[0])

    @property
    def reference_name(self) -> str:
        """What the difference is taken against, in words."""
        return "factual" if self.explanation.residual_carry else "reconstruction"

    @property
    def end_name(self) -> str:
        """What the end of the search is called."""
        return "Counterfactual" if bool(self.explanation.reachable[0]) else "Best attempt"

    def image_hu(self, image: Tensor) -> np.ndarray:
        """An image "1 s 1 h w" in window units -> HU "s h w", limited to the window."""
        return np.asarray(self.window.to_hu(to_numpy(image)[0, :, 0].clip(-1.0, 1.0)), dtype=np.float32)

    @property
    def difference_hu(self) -> np.ndarray:
        """The signed change against its matching reference, in HU, "s h w"."""
        return to_numpy(self.explanation.difference)[0, :, 0] * np.float32(self.window.width / 2)

    @property
    def failed(self) -> tuple[TrustCheck, ...]:
        """Failed trust checks, the gravest first."""
        order = {OUT_OF_DISTRIBUTION: 0, NOT_REACHABLE: 1}
        checks = [check for check in self.explanation.trust if not check.passed]
        return tuple(sorted(checks, key=lambda check: order.get(check.name, len(order))))

    @property
    def verdict(self) -> Verdict:
        """The gravest that must be said; out of distribution before not reachable before any other failed check."""
        failed = self.failed
        if any(check.name == OUT_OF_DISTRIBUTION for check in failed):
            return Verdict(
                "out_of_distribution",
                EXIT_OUT_OF_DISTRIBUTION,
                "the scan is unlike what the generator was trained on: this is no explanation of it.",
            )
        if not bool(self.explanation.reachable[0]):
            return Verdict(
                "not_reachable",
                EXIT_NOT_REACHABLE,
                f"the search did not reach the asked score of {self.classes[self.target]!r}: this is no explanation.",
            )
        if failed:
            return Verdict(
                "trust_check_failed",
                EXIT_TRUST,
                f"{len(failed)} trust check(s) failed: do not take the explanation at face value.",
            )
        return Verdict("ok", 0, "all trust checks passed.")


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor on any device as float32 (booleans and integers keep their type)."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def round_up(value: float, steps: Sequence[float] = (1, 2, 5, 10)) -> float:
    """The next number of one of `steps` times a power of ten that is at least `value`; 1 for zero and less."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in steps if step * power >= value * (1 - 1e-9))
