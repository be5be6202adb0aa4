"""Is an explanation worth believing? Statistics of what a generator knows, and the questions asked with them.

The statistics are taken once from a generator and its data (`fit_trust`; `python train/trust.py` for a finished
generator) and kept beside its weights as `trust.safetensors`. An encoder may send any image to the middle of its
training codes, so whether a scan is like the training scans is asked of its code *and* of its intensities.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from diffcf.errors import CheckpointError, ConfigError
from diffcf.metrics.images import psnr
from diffcf.types import TrustCheck
from diffcf.weights import TRUST_NAME, write_tensors

DIRECTIONS = 64  # principal directions of the codes that are kept; the rest share one variance
NEIGHBOURS = 5
MOST_APPEARANCES = 2000
CODE_QUANTILE, APPEARANCE_QUANTILE, PSNR_QUANTILE = 0.995, 0.99, 0.01
FEWEST_HELD_OUT, MOST_HELD_OUT = 20, 400  # scans; more would cost time and move the quantiles little
# The gravest first, which is how failed checks are listed.
ORDER = (
    "in_distribution", "validity", "plausibility", "reconstruction_decision", "reconstruction", "agent_agreement",
    "edit_size", "trust_statistics",
)  # fmt: skip


def appearance(image: Tensor) -> Tensor:
    """What a slice looks like as 34 numbers: image "n c h w" in [-1, 1] -> "n 34".

    13 quantiles of the intensity, the logarithm of a 16-bin histogram, and the logarithm of 5 quantiles of the
    gradient's size: which tissues there are, how much of each, and how rough they are.
    """
    flat = rearrange(image, "n c h w -> n (c h w)").float()
    quantiles = torch.quantile(flat, torch.linspace(0.02, 0.98, 13, device=flat.device), dim=1)
    bins = ((flat + 1) * 8).long().clamp(0, 15)
    share = F.one_hot(bins, 16).float().mean(1)
    rows, columns = image.diff(dim=-2)[..., :-1], image.diff(dim=-1)[..., :-1, :]
    size = rearrange(torch.hypot(rows, columns), "n c h w -> n (c h w)").float()
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], device=flat.device)
    roughness = torch.quantile(size, levels, dim=1)
    return torch.cat(
        [
            rearrange(quantiles, "q n -> n q"),
            (share + 0.003).log(),
            rearrange((roughness + 0.005).log(), "q n -> n q"),
        ],
        dim=1,
    )


@dataclass(frozen=True, eq=False)
class CodeDensity:
    """A Gaussian over one slice's codes, flattened to D numbers: r principal directions, and one variance for the rest.

    mean "D", directions "r D" (orthonormal rows), variance "r", rest "" (scalar).
    """

    mean: Tensor
    directions: Tensor
    variance: Tensor
    rest: Tensor

    @classmethod
    def fit(cls, codes: Tensor, directions: int = DIRECTIONS) -> CodeDensity:
        """Fit to codes "n D". At most a quarter of n directions are told apart."""
        mean = codes.mean(0)
        _, spread, basis = torch.linalg.svd(codes - mean, full_matrices=False)
        variance = spread.square() / max(len(codes) - 1, 1)
        kept = min(directions, len(codes) // 4, codes.shape[1])
        left = codes.shape[1] - kept
        rest = variance[kept:].sum() / left if left else variance[-1]
        floor = 1e-6 * variance[0]  # codes that never vary must not divide by zero
        return cls(mean, basis[:kept], variance[:kept].clamp(min=floor), rest.clamp(min=floor))

    def distance(self, codes: Tensor) -> Tensor:
        """Mahalanobis distance "n D" -> "n", divided by sqrt(D): about 1 for what the Gaussian describes."""
        centred = codes - self.mean
        along = centred @ rearrange(self.directions, "r d -> d r")
        outside = (centred.square().sum(1) - along.square().sum(1)).clamp(min=0)
        return (((along.square() / self.variance).sum(1) + outside / self.rest) / codes.shape[1]).sqrt()


@dataclass(frozen=True, eq=False)
class TrustStatistics:
    """What a generator's training and held-out scans are like.

    codes: density of the training slices' codes. appearances: "m 34", standardised by `centre` and `spread`, "34"
    each. held_out: statistic -> its sorted values on held-out scans ("code", "appearance": distances of a scan's
    farthest slice; "psnr": of its worst slice's plain reconstruction, dB). about: how it was measured, in words and
    numbers.
    """

    codes: CodeDensity
    appearances: Tensor
    centre: Tensor
    spread: Tensor
    held_out: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def code_limit(self) -> float:
        """The distance that 99.5% of the held-out scans keep."""
        return float(torch.quantile(self.held_out["code"], CODE_QUANTILE))

    @property
    def appearance_limit(self) -> float:
        """The distance that 99% of the held-out scans keep."""
        return float(torch.quantile(self.held_out["appearance"], APPEARANCE_QUANTILE))

    @property
    def psnr_limit(self) -> float:
        """The PSNR in dB that 99% of the held-out scans exceed."""
        return float(torch.quantile(self.held_out["psnr"], PSNR_QUANTILE))

    def code_distance(self, semantic: Tensor) -> Tensor:
        """Distance of a scan's farthest slice: "b s ..." -> "b".

        Errors: ConfigError where the codes are not those of the generator that the statistics describe.
        """
        flat = semantic.detach().float().flatten(2).cpu()
        if flat.shape[2] != len(self.codes.mean):
            raise ConfigError(
                f"codes of {flat.shape[2]} numbers a slice, but the trust statistics describe {len(self.codes.mean)}; "
                "they belong to another generator. Run train/trust.py for this one."
            )
        return self.codes.distance(rearrange(flat, "b s d -> (b s) d")).reshape(len(flat), -1).amax(1)

    def appearance_distance(self, image: Tensor) -> Tensor:
        """How far a scan's most unusual slice looks from the 5th most similar training slice: "b s c h w" -> "b"."""
        seen = appearance(rearrange(image.detach().float().cpu(), "b s c h w -> (b s) c h w"))
        distances = torch.cdist((seen - self.centre) / self.spread, self.appearances)
        near = distances.topk(min(NEIGHBOURS, len(self.appearances)), largest=False).values[:, -1]
        return near.reshape(len(image), -1).amax(1)

    def save(self, folder: str | Path) -> Path:
        """Write `trust.safetensors` into the generator's folder."""
        path = Path(folder) / TRUST_NAME
        tensors = {
            "codes.mean": self.codes.mean,
            "codes.directions": self.codes.directions,
            "codes.variance": self.codes.variance,
            "codes.rest": self.codes.rest,
            "appearances": self.appearances,
            "centre": self.centre,
            "spread": self.spread,
            **{f"held_out.{name}": values for name, values in self.held_out.items()},
        }
        write_tensors(tensors, path, about={"about": json.dumps(self.about, sort_keys=True)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> TrustStatistics:
        """Read the file, or the folder that holds it. Errors: CheckpointError where it is missing or incomplete."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        path = path / TRUST_NAME if path.is_dir() else path
        if not path.is_file():
            raise CheckpointError(f"no trust statistics at {path}; run train/trust.py for this generator.")
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                about = json.loads((file.metadata() or {}).get("about", "{}"))
            codes = CodeDensity(*(tensors.pop(f"codes.{name}") for name in ("mean", "directions", "variance", "rest")))
            held_out = {name: tensors.pop(f"held_out.{name}") for name in ("code", "appearance", "psnr")}
            return cls(codes, tensors["appearances"], tensors["centre"], tensors["spread"], held_out, about)
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not hold trust statistics ({error}); run train/trust.py for this generator."
            ) from error


@torch.no_grad()
def fit_trust(
    generator: Any, images: Tensor, held_out: Tensor, *, batch: int = 32, about: dict[str, Any] | None = None
) -> TrustStatistics:
    """Take the statistics of a finished generator.

    generator: a `SliceWise` with the sampler and steps that explanations will use, which decide its PSNR. images:
    training scans "n s c h w" in [-1, 1]. held_out: scans "m s c h w" of other patients; the thresholds come from
    them, so that what the generator has learned by heart makes them no tighter; of more than 400, evenly spaced ones.
    about: kept with the result.

    Errors: ConfigError for fewer than 20 held-out scans, whose quantiles would mean nothing.
    """
    if len(held_out) < FEWEST_HELD_OUT:
        raise ConfigError(f"{len(held_out)} held-out scans; expected at least {FEWEST_HELD_OUT}, better 200 and more.")
    device = next(iter(generator.parameters())).device if hasattr(generator, "parameters") else images.device
    encode = getattr(generator, "encode_semantic", None) or (lambda image: generator.encode(image).semantic)
    codes = torch.cat([encode(part.to(device)).float().cpu() for part in images.split(batch)])
    density = CodeDensity.fit(rearrange(codes.flatten(2), "n s d -> (n s) d"))
    seen = torch.cat([appearance(part.flatten(0, 1)) for part in images.float().cpu().split(batch)])
    centre, spread = seen.mean(0), seen.std(0).clamp(min=1e-3)
    every = max(1, math.ceil(len(seen) / MOST_APPEARANCES))
    empty = TrustStatistics(density, ((seen - centre) / spread)[::every], centre, spread, {}, about or {})
    values: dict[str, list[Tensor]] = {"code": [], "appearance": [], "psnr": []}
    held_out = held_out[:: math.ceil(len(held_out) / MOST_HELD_OUT)]
    for part in held_out.split(batch):
        code = generator.encode(part.to(device))
        reconstruction = generator.decode(code).clamp(-1, 1)
        values["code"].append(empty.code_distance(code.semantic))
        values["appearance"].append(empty.appearance_distance(part))
        values["psnr"].append(worst_psnr(reconstruction.cpu(), part.cpu()))
    empty.held_out.update({name: torch.cat(parts).float().sort().values for name, parts in values.items()})
    return empty


def worst_psnr(reconstruction: Tensor, image: Tensor) -> Tensor:
    """PSNR in dB of a scan's worst slice, "b s c h w" -> "b"; a perfect reconstruction counts as 100 dB."""
    return psnr(reconstruction, image).clamp(max=100).amin(1)


@dataclass(frozen=True)
class TrustThresholds:
    """Thresholds that no statistics give.

    decision_change: the most that any class's probability may differ between the black box on the image and on its
        plain reconstruction. edit: the smallest edit, as a share of the seed-to-seed floor. plausibility: how far the
        counterfactual may look from training scans, in distances that 99% of held-out scans keep. An edit leads to
        where few scans are, so this is no 1; a decoder that has left its ground gives noise, which is beyond 100.
    """

    decision_change: float = 0.1
    edit: float = 0.1
    plausibility: float = 10.0


@dataclass(frozen=True)
class Evidence:
    """What was measured on one explanation; probabilities are "k", in the order of the classes.

    code_distance, appearance_distance, psnr: as `TrustStatistics` measures them on the factual image, and
    edited_distance: the appearance of the counterfactual; None without statistics. edit: mean
    absolute difference between counterfactual and reference on the tenth of the pixels that changed most, in [-1, 1]
    units. floor: the same between two decodings of the factual code from two fresh x_T; 0 without an x_T. agreed: what
    the method's own agent gives the target, where it has one that must agree.
    """

    factual: Sequence[float]
    reconstruction: Sequence[float]
    counterfactual: Sequence[float]
    agent: Sequence[float] | None  # None where no agent was asked
    target: int
    probability: float
    edit: float
    floor: float
    code_distance: float | None = None
    appearance_distance: float | None = None
    psnr: float | None = None
    edited_distance: float | None = None
    agreed: float | None = None


def edit_magnitude(difference: Tensor) -> Tensor:
    """Mean |difference| over the tenth of the pixels where it is largest: "b s c h w" -> "b".

    An edit is judged where it is: a nodule fills few of the pixels, and a mean over all of them would say more about
    the field of view than about the edit.
    """
    size = difference.detach().abs().flatten(1)
    return size.topk(max(1, size.shape[1] // 10), dim=1).values.mean(1)


def trust_checks(
    evidence: Evidence,
    statistics: TrustStatistics | None,
    thresholds: TrustThresholds | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[TrustCheck, ...]:
    """Every check of one explanation, the failed ones first and the gravest of them foremost."""
    thresholds = thresholds or TrustThresholds()
    names = classes or [f"class {index}" for index in range(len(evidence.factual))]
    checks = [
        *_statistics_checks(evidence, statistics, thresholds.plausibility),
        _validity(evidence, names),
        _reconstruction_decision(evidence, thresholds.decision_change, names),
        *([] if evidence.agent is None else [_agent_agreement(evidence.agent, evidence.factual, names)]),
        _edit_size(evidence, thresholds.edit, names),
    ]
    return tuple(sorted(checks, key=lambda check: (check.passed, ORDER.index(check.name))))


def _statistics_checks(evidence: Evidence, statistics: TrustStatistics | None, plausibility: float) -> list[TrustCheck]:
    if (
        statistics is None
        or evidence.code_distance is None
        or evidence.appearance_distance is None
        or evidence.psnr is None
        or evidence.edited_distance is None
    ):
        return [
            TrustCheck(
                "trust_statistics",
                False,
                math.nan,
                math.nan,
                "the generator comes without trust statistics: nobody knows whether this scan is like those it was "
                "trained on, nor how well it reconstructs them. Run train/trust.py for it.",
            )
        ]
    code = evidence.code_distance / statistics.code_limit
    look = evidence.appearance_distance / statistics.appearance_limit
    farther = "its code is" if code > look else "its intensities are"
    where = f"code {code:.2f}, intensities {look:.2f} of the distance that held-out scans keep"
    strange = f"{farther} unlike those of the generator's training scans ({where})"
    alike = f"code and intensities are like those of held-out scans ({where})"
    edited = evidence.edited_distance / statistics.appearance_limit
    kept = f"its intensities lie at {edited:.2f} of the distance that held-out scans keep"
    limit = statistics.psnr_limit
    inside, faithful = max(code, look) <= 1, evidence.psnr >= limit
    worse = float((statistics.held_out["psnr"] < evidence.psnr).float().mean())
    return [
        TrustCheck("in_distribution", inside, max(code, look), 1.0, alike if inside else strange),
        TrustCheck(
            "plausibility",
            edited <= plausibility,
            edited,
            plausibility,
            f"the counterfactual is {'like' if edited <= plausibility else 'unlike'} what the generator knows ({kept})",
        ),
        TrustCheck(
            "reconstruction",
            faithful,
            evidence.psnr,
            limit,
            f"the plain reconstruction has {evidence.psnr:.1f} dB, better than {worse:.0%} of held-out scans; "
            f"{'at least' if faithful else 'expected at least'} {limit:.1f} dB",
        ),
    ]


def _validity(evidence: Evidence, names: Sequence[str]) -> TrustCheck:
    given = evidence.counterfactual[evidence.target]
    decided = _argmax(evidence.counterfactual)
    least = given if evidence.agreed is None else min(given, evidence.agreed)
    reached = least >= evidence.probability - 1e-6  # the search compared in single precision
    passed = reached and (decided == evidence.target or evidence.probability < 0.5)
    close = not passed and abs(least - evidence.probability) < 0.01  # must not be shown as the asked one itself
    digits = 4 if close else 2
    said = f"the black box gives the counterfactual {given:.{digits}f} for {names[evidence.target]!r}"
    if evidence.agreed is not None:
        said += f", the agent of attributes {evidence.agreed:.{digits}f}"
    return TrustCheck(
        "validity",
        passed,
        given,
        evidence.probability,
        f"{said}, {'as asked' if passed else f'asked were {evidence.probability:g}: the target was not reached'}",
    )


def _reconstruction_decision(evidence: Evidence, limit: float, names: Sequence[str]) -> TrustCheck:
    change = max(abs(a - b) for a, b in zip(evidence.factual, evidence.reconstruction, strict=True))
    before, after = _argmax(evidence.factual), _argmax(evidence.reconstruction)
    said = f"from {names[before]!r} to {names[after]!r}" if before != after else f"within {names[before]!r}"
    return TrustCheck(
        "reconstruction_decision",
        before == after and change <= limit,
        change,
        limit,
        f"reconstruction alone, without an edit, moves the black box by {change:.2f} {said}",
    )


def _agent_agreement(agent: Sequence[float], factual: Sequence[float], names: Sequence[str]) -> TrustCheck:
    decided = _argmax(factual)
    passed = _argmax(agent) == decided
    given, threshold = agent[decided], 1 / len(agent)
    return TrustCheck(
        "agent_agreement",
        passed,
        given,
        threshold,
        f"the agent {'agrees' if passed else 'disagrees'} with the black box's {names[decided]!r}, "
        f"to which it gives {given:.2f}",
    )


def _edit_size(evidence: Evidence, threshold: float, names: Sequence[str]) -> TrustCheck:
    share = evidence.edit / evidence.floor if evidence.floor > 0 else math.inf if evidence.edit > 0 else 0.0
    passed = evidence.edit > 0 and share >= threshold
    floor = (
        f"{share:.2f} of what another noise seed changes ({evidence.floor:.3f})"
        if evidence.floor > 0
        else "which no noise bounds from below: what was searched has none"
    )
    given = evidence.counterfactual[evidence.target]
    if not evidence.edit and given >= evidence.probability:
        nothing = (
            f"nothing had to change: the black box gives {names[evidence.target]!r} {given:.2f} already, asked were "
            f"{evidence.probability:g}; ask for another target or a higher --probability"
        )
        return TrustCheck("edit_size", False, share, threshold, nothing)
    return TrustCheck(
        "edit_size",
        passed,
        share,
        threshold,
        f"where the edit is strongest it changes {evidence.edit:.3f} of the window's half width, {floor}"
        + ("" if passed else ": too little to be told from noise"),
    )


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: values[index])
