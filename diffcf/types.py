"""The few nouns everything else is written in: scans, codes, candidates, solutions, explanations, and the protocols.

Shapes are einops patterns. Images are float32 in [-1, 1] of a `Window`; "b s c h w" is batch, slices, channels, rows,
columns. A generator works on single slices, "b c h w"; `SliceWise` lifts it to scans.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def unit_of(modality: str) -> str:
    """What values of a modality count in: HU for CT and where a format cannot say, else "grey levels"."""
    return "HU" if modality in ("CT", "unknown") else "grey levels"


@dataclass(frozen=True)
class Provenance:
    """Where a scan came from and what was done to read it."""

    path: str
    format: str  # "dicom", "nifti", "image", "array"
    modality: str  # "CT", "MR", ... ; "unknown" where the format cannot say
    series_uid: str | None = None
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what was dropped, sorted or assumed, in words
    grid_shape: tuple[int, ...] = ()  # shape of the source grid, in the source's own axis order
    grid_affine: Any = None  # 4x4, source voxel index -> RAS mm; None where the source has none
    to_grid: Any = None  # nibabel orientation transform (n x 2) from the scan's axes to the source's; None = same


@dataclass(frozen=True)
class Scan:
    """A volume in HU on a regular grid.

    volume: float32 "z y x", slices from inferior to superior, rows from anterior to posterior, columns from the
    patient's right to left (for an axial scan: as displayed). spacing: mm along (z, y, x). affine: 4x4 float64,
    (x, y, z, 1) voxel index -> RAS mm.
    """

    volume: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray
    provenance: Provenance


@dataclass(frozen=True)
class Code:
    """A point that a generator can decode.

    semantic: "b d" or "b d h w" (through SliceWise: "b s d" or "b s d h w"); the only thing a search edits.
    stochastic: "b n c h w", x_T with n = 1, or n = 2 consecutive states for a two-step exact sampler (through
    SliceWise: "b s n c h w"); held fixed. None where the generator has none.
    """

    semantic: Tensor
    stochastic: Tensor | None = None


class Generator(Protocol):
    """Image <-> code. `decode` is differentiable in `code.semantic`."""

    def encode(self, image: Tensor) -> Code:
        """Image "b c h w" in [-1, 1] -> code."""
        ...

    def decode(self, code: Code) -> Tensor:
        """Code -> image "b c h w"; not clamped."""
        ...


class Candidate:
    """A point in a search; its image is decoded once, and only if asked for."""

    def __init__(self, code: Code, decode: Any) -> None:
        self.code = code
        self._decode = decode
        self._image: Tensor | None = None

    @property
    def image(self) -> Tensor:
        """The decoded image, "b s c h w"."""
        image: Tensor = self._decode(self.code) if self._image is None else self._image
        self._image = image
        return image


class Scorer(Protocol):
    """Candidate -> logits "b k"; `ImageScorer(classifier)` reads the image, an agent reads the code."""

    def __call__(self, candidate: Candidate) -> Tensor:
        """Logits "b k" of the candidate."""
        ...


@dataclass(frozen=True)
class Solution:
    """What a solver found, per sample.

    value: the edited semantic code, shaped like the start. converged: bool "b". steps: int "b", evaluations used.
    residual: float "b", the solver's own stopping measure at the end.
    """

    value: Tensor
    converged: Tensor
    steps: Tensor
    residual: Tensor


@dataclass(frozen=True)
class Cost:
    """What an explanation cost, search and path included. Forwards and backwards are counted per image slice."""

    generator_forwards: int
    generator_backwards: int
    blackbox_forwards: int
    seconds: float
    peak_memory_mb: float


@dataclass(frozen=True)
class TrustCheck:
    """One question about an explanation's worth: what was measured, against what, and whether it passed."""

    name: str  # "in_distribution", "reconstruction", "validity", ... (`diffcf.trust.ORDER` has them all)
    passed: bool
    value: float
    threshold: float
    message: str


@dataclass(frozen=True)
class AttributeChange:
    """One attribute of a scan that a search in attribute space has changed.

    before, after: in the attribute's own unit. spreads: the change in standard deviations over the scans that the
    directions were fitted to, signed.
    """

    name: str
    before: float
    after: float
    spreads: float


@dataclass(frozen=True)
class Explanation:
    """The answer: what would have to look different for the black box to decide otherwise.

    Images are "b s c h w" in [-1, 1] of the generator's window; scores are black-box probabilities "b k".
    `reference` is what `difference` is taken against: the reconstruction for the plain decode, the factual image with
    residual carry. `path_*` run over the n points of the search, from one class to the other, the start included;
    `path_previewed`: those that are neither the start nor an end are previews, of one evaluation each.
    """

    factual: Tensor
    reconstruction: Tensor
    counterfactual: Tensor
    reference: Tensor
    difference: Tensor  # counterfactual - reference
    factual_code: Code
    counterfactual_code: Code
    factual_probability: Tensor
    reconstruction_probability: Tensor
    counterfactual_probability: Tensor
    agent_probability: Tensor  # of the factual code; NaN without an agent
    target: Tensor  # int "b"
    solution: Solution
    reachable: Tensor  # bool "b": the black box itself, and who must agree, gave the asked probability
    path_steps: Tensor  # "n", signed size of the shift
    path_images: Tensor  # "n b s c h w"
    path_probability: Tensor  # black box, "n b k"
    path_agent_probability: Tensor  # agent, "n b k"; NaN without one
    residual_carry: bool
    path_previewed: bool
    cost: Cost
    trust: tuple[TrustCheck, ...] = field(default_factory=tuple)
    attributes: tuple[AttributeChange, ...] = ()  # changed ones, the largest change first; of attribute searches only
