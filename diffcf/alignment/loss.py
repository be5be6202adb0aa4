"""The loss that keeps a classifier's counterfactual changes inside the experts' region (papers 000 and 001).

    x* = argmin_x  loss(f_θ(x), y*) + distance_weight * distance(x, x_0)             (Eq. 2 of 001)
    absolute:  || (1 - m) (x* - x_0) ||_1                                            (Eq. 3 of 001)
    relative:  || (1 - m) (x* - x_0) ||_1 / max(|| x* - x_0 ||_1, floor)

The absolute form is smallest where nothing moves at all, and a classifier in training finds that; the relative one asks
only *where* the change lies. Both reach θ through the argmin (`diffcf.implicit`). Ours may also ask it of the search's
first step, where the change is still the gradient's: the way out of the region is closed at its start and at its end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import log
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from diffcf.alignment.spaces import Opened, Pixels, Space
from diffcf.counterfactuals.direction import class_score
from diffcf.distances import L1, Distance, SquaredL2, median_deviation, per_sample, standard_deviation
from diffcf.errors import ConfigError
from diffcf.implicit import Adjoint, GaussNewton, Implicit, InnerSolver, Parameters, Problem, Report

NO_TARGET = -1  # of a sample of which no search is known


@dataclass(frozen=True)
class Inner:
    """How counterfactuals are found while the classifier trains.

    loss: "margin", (asked - log-odds of the target)^2 / 2 below the log-odds of `probability`, 0 above: its curvature
    does not vanish on the way, and nothing pulls beyond. "cross_entropy", the papers' own. distance, distance_weight:
    of u - u_0; over pixels in [-1, 1] a weight far below 1 asks for changes that a few steps do not reach. scaled:
    every coordinate by its deviation over the training scans, "mad" the median absolute one as in Wachter's L1, "std"
    the standard one, whose root scales SquaredL2: paper 001 (appendix C.4) divides the square by the deviation itself;
    for L1 and SquaredL2, once `fitted`. solver, adjoint: `diffcf.implicit`. A config that names
    another class than the default's keeps the default's settings of the same name: give a solver its `steps`.
    """

    loss: Literal["margin", "cross_entropy"] = "margin"
    probability: float = 0.9
    distance: Distance = field(default_factory=SquaredL2)
    distance_weight: float = 1.0
    scaled: Literal["no", "mad", "std"] = "no"
    solver: InnerSolver = field(default_factory=lambda: GaussNewton(4, halvings=2))
    adjoint: Adjoint = field(default_factory=Implicit)

    def __post_init__(self) -> None:
        if not (0.5 <= self.probability < 1 and self.distance_weight > 0):
            raise ConfigError(
                f"probability {self.probability}, distance_weight {self.distance_weight}: expected 0.5 to below 1, and "
                "a positive weight."
            )
        if self.scaled != "no" and not isinstance(self.distance, L1 | SquaredL2):
            raise ConfigError(
                f"scaled {self.scaled!r}: {type(self.distance).__name__} has no scale; L1 and SquaredL2 do."
            )

    def fitted(self, samples: Tensor) -> Inner:
        """The same with its scale taken from u of many scans, "n ...". Errors: ConfigError where nothing varies."""
        if self.scaled == "no" or not isinstance(self.distance, L1 | SquaredL2):
            return self
        scale = median_deviation(samples) if self.scaled == "mad" else standard_deviation(samples)
        if self.scaled == "std" and isinstance(self.distance, SquaredL2):
            scale = scale.sqrt()
        return replace(self, distance=replace(self.distance, scale=scale))

    def of_margin(self, margin: Tensor) -> Tensor:
        """The loss of log-odds of the target "b 1" -> "b"; cross-entropy is log(1 + exp(-margin))."""
        if self.loss == "cross_entropy":
            return F.softplus(-margin).squeeze(1)
        return (log(self.probability / (1 - self.probability)) - margin).clamp(min=0).square().squeeze(1) / 2


@dataclass(frozen=True)
class Start:
    """What earlier searches of the same samples found: change of u from u_0, "b ...", and the class that each looked
    for, int "b", NO_TARGET where there was none."""

    change: Tensor
    target: Tensor


@dataclass(frozen=True)
class Judged:
    """Counterfactuals and how they were judged, sample by sample "b" but for the image.

    penalty: the loss. first: the part of the search's first step, unweighed; 0 where it is not asked. counterfactual:
    "b s c h w", with its gradient. moved: mean |change| over the pixels. outside: share of the change outside the
    region. change: of u from u_0, "b ...", a `Start` of the next search of the same samples. warm: this search began
    at one, bool. report: of the implicit gradient, after the backward pass.
    """

    penalty: Tensor
    first: Tensor
    counterfactual: Tensor
    moved: Tensor
    outside: Tensor
    change: Tensor
    warm: Tensor
    report: Report


@dataclass(frozen=True)
class Aligned(Judged):
    """target: the class asked for, int "b". valid: the prediction has changed to it, bool "b"."""

    target: Tensor
    valid: Tensor


class AlignmentLoss(nn.Module):
    """Penalises the change outside the region, sample by sample.

       classifier: images "b s c h w" -> logits "b k". In the inner problem it is in eval mode, whatever it is in
    otherwise, since samples must not mix. form: "relative" or "absolute". floor: mean |change| over the pixels below
    which the relative form measures against it, so that a change that has died is not blown up. Keep it far below the
    changes of a fresh network: above them it makes the relative form the absolute one, and the changes die.
    first: weight of the same penalty on the change of the solver's first step, differentiated directly. With a squared
    distance in pixels it is along the gradient, and its share outside that of `RightReasons` ("normalised").

    Errors: ConfigError for regions that do not fit; a warning for BatchNorm.
    """

    def __init__(
        self,
        classifier: nn.Module,
        inner: Inner | None = None,
        form: Literal["relative", "absolute"] = "relative",
        floor: float = 1e-5,
        space: Space | None = None,
        first: float = 0.0,
    ) -> None:
        super().__init__()
        if floor <= 0 or first < 0:
            raise ConfigError(
                f"floor {floor}, first {first}: expected a positive mean change, such as 1e-5, and a weight, 0 or more."
            )
        self.classifier, self.form, self.floor, self.first = classifier, form, floor, first
        self.inner = inner or Inner()
        if self.inner.scaled != "no" and getattr(self.inner.distance, "scale", None) is None:
            raise ConfigError(
                f"scaled {self.inner.scaled!r} has no scale yet: take `inner.fitted(samples)` of training scans first, "
                "as train/align.py does; an evaluation's own search takes scaled: 'no'."
            )
        self.space: Space = space or Pixels()
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in classifier.modules()):
            warnings.warn(
                "the classifier has BatchNorm: counterfactuals are searched with its running statistics, training uses "
                "those of the batch, and what is aligned is not quite what is trained. Prefer GroupNorm.",
                stacklevel=2,
            )

    def forward(
        self, image: Tensor, region: Tensor, target: Tensor | None = None, start: Start | None = None
    ) -> Aligned:
        """Search counterfactuals of images "b s c h w" and judge them by regions "b s 1 h w" of 0 and 1.

        target: int "b"; None is the class that the classifier now holds for second best, so that its decision has to
        change. start: of earlier searches of the same samples, see `begin`; None is u_0.
        """
        _check(image, region)
        with torch.no_grad(), evaluating(self.classifier):
            logits = self.classifier(image)
        predicted = logits.argmax(1)
        second = logits.scatter(1, rearrange(predicted, "b -> b 1"), -torch.inf).argmax(1)
        wanted = second if target is None else target
        opened = self.space.at(image)
        problem = self.problem(opened.image, opened.start, wanted)
        judged = self.judge(problem, opened, image, region, self.begin(problem, opened, wanted, start))
        with torch.no_grad(), evaluating(self.classifier):
            valid = self.classifier(judged.counterfactual).argmax(1) == wanted
        return Aligned(**vars(judged), target=wanted, valid=valid & (predicted != wanted))

    @torch.no_grad()
    def begin(self, problem: Problem, opened: Opened, target: Tensor, start: Start | None) -> Tensor:
        """Where a search for classes int "b" begins, u "b ...": at the change that an earlier one found, inside the
        bounds, if that one looked for the same class and T is lower there than at u_0; else at u_0.

        The weights have moved since, and what was painted on a view need not turn with it: T says whether the change
        still serves, for one evaluation of the network more.
        """
        if start is None:
            return opened.start
        found = problem.bounded(opened.start + start.change.to(opened.start))
        serves = (start.target.to(target) == target) & (problem.whole(found) < problem.whole(opened.start))
        return torch.where(per_sample(serves, found), found, opened.start)

    def judge(
        self, problem: Problem, opened: Opened, image: Tensor, region: Tensor, start: Tensor | None = None
    ) -> Judged:
        """Solve any inner problem around the images, from start "b ..." or u_0, and judge where the change lies."""
        begun = opened.start if start is None else start
        solved = self.inner.adjoint(problem, self.inner.solver, begun)
        counterfactual = opened.image(solved.value)
        penalty, moved, outside = self._judged(counterfactual - image, region)
        first = torch.zeros_like(penalty)
        if self.first:
            stepped = self.inner.solver.step(problem, opened.start, differentiable=True)
            first = self._judged(opened.image(stepped) - image, region)[0]
        share = (outside / moved.clamp(min=torch.finfo(moved.dtype).tiny)).detach()
        # Where u* is u_0 the image of it may differ by what rounding leaves.
        there = reduce(solved.value.detach() != opened.start, "b ... -> b", "any") & (moved > 0)
        return Judged(
            penalty + self.first * first,
            first.detach(),
            counterfactual,
            moved.detach(),
            torch.where(there, share, torch.nan),
            solved.value.detach() - opened.start,
            reduce(begun != opened.start, "b ... -> b", "any"),
            solved.report,
        )

    def _judged(self, change: Tensor, region: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(penalty, mean |change|, its part outside) of changes "b s c h w", "b" each."""
        moved = reduce(change.abs(), "b s c h w -> b", "mean")
        outside = reduce(change.abs() * (1 - region), "b s c h w -> b", "mean")
        if self.form == "absolute":
            return outside * change[0].numel(), moved, outside
        return outside / moved.clamp(min=self.floor), moved, outside

    def problem(self, image_of: Callable[[Tensor], Tensor], start: Tensor, target: Tensor) -> Problem:
        """Eq. 2 around u_0 "b ...", towards classes int "b"; its one output is the log-odds of the target."""
        return self.posed(
            image_of,
            start,
            lambda logits: rearrange(class_score(logits, target, "log_odds"), "b -> b 1"),
            self.inner.of_margin,
        )

    def posed(
        self,
        image_of: Callable[[Tensor], Tensor],
        start: Tensor,
        outputs: Callable[[Tensor], Tensor],
        loss: Callable[[Tensor], Tensor],
    ) -> Problem:
        """loss(outputs(f(image))) + the distance, around u_0 "b ..."; outputs: logits "b k" -> "b j", loss: -> "b"."""

        def of(value: Tensor, parameters: Parameters) -> Tensor:
            with evaluating(self.classifier):
                return outputs(functional_call(self.classifier, dict(parameters), (image_of(value),)))

        return Problem(
            outputs=of,
            loss=loss,
            parameters=dict(self.classifier.named_parameters()),
            origin=start,
            weight=self.inner.distance_weight,
            distance=self.inner.distance,
            low=self.space.low,
            high=self.space.high,
        )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode for a while; every part of it gets its own mode back."""
    modes = [(module, module.training) for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _check(image: Tensor, region: Tensor) -> None:
    if region.shape[:2] + region.shape[3:] != image.shape[:2] + image.shape[3:] or region.shape[2] != 1:
        raise ConfigError(
            f"regions of shape {tuple(region.shape)} for images of {tuple(image.shape)}; expected the same scans, "
            "slices and sides, and one channel."
        )
