"""Alignment of a classifier that decides by attributes (section 4.3 of paper 001, Eq. 4 of paper 000).

    L = CE(f_θ2(â), y) + attribute_weight * CE(f_θ1(x), a) + reason_weight * L_align(θ2) + align_weight * L_align(θ1)
    a* = argmin_a'  loss(f_θ2(a'), y*) + distance_weight * distance(a', â),    â = f_θ1(x)         (Eq. 6 of 001)
    x* = argmin_x'  loss(f_θ1(x'), a*) + distance_weight * distance(x', x)                         (Eq. 7 of 001)

L_align(θ2) measures the part of a* - â on attributes that did not cause the label, L_align(θ1) that of x* - x outside
of the region. Each counterfactual depends on its own network alone, as in the paper: â is given in Eq. 6, a* in Eq. 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.alignment.loss import AlignmentLoss, Inner, evaluating
from diffcf.alignment.methods import Batch, CounterfactualAlignment, Terms, figures, swapped_share
from diffcf.alignment.spaces import Opened, Space
from diffcf.classifiers.hierarchical import Hierarchical
from diffcf.classifiers.network import SlicedClassifier, normalised
from diffcf.errors import ConfigError
from diffcf.implicit import GaussNewton

EDGE = 1e-4  # â and a* are kept so far from 0 and 1, where their log-odds would be infinite


class Perceiver(nn.Module):
    """f_θ1 of a hierarchical classifier: scans "b s c h w" -> log-odds of the attributes "b p".

    Errors: ConfigError for another classifier.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.perceiver = hierarchy_of(classifier).perceiver
        assert isinstance(classifier, SlicedClassifier)
        self.card = classifier.card

    def forward(self, image: Tensor) -> Tensor:
        """Log-odds of the attributes."""
        return self.perceiver(rearrange(normalised(image, self.card), "b s c h w -> b (s c) h w"))


class Decider(nn.Module):
    """f_θ2 of a hierarchical classifier over attributes as `row_of` has them: "b 1 1 1 p" in [0, 1] -> logits "b k".

    Errors: ConfigError for another classifier.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.decider = hierarchy_of(classifier).decider

    def forward(self, row: Tensor) -> Tensor:
        """Logits."""
        return self.decider(rearrange(row, "b 1 1 1 p -> b p"))


def hierarchy_of(classifier: nn.Module) -> Hierarchical:
    """The network of a classifier that decides by attributes. Errors: ConfigError where it is another one."""
    sliced = isinstance(classifier, SlicedClassifier) and classifier.card.slice_mode == "channels"
    net = getattr(classifier.network, "net", None) if sliced else None
    if not isinstance(net, Hierarchical):
        raise ConfigError(
            "this classifier does not decide by attributes; train it with architecture diffcf_hierarchical, "
            "architecture_args {attributes: [...]} and slice_mode channels."
        )
    return net


def row_of(attributes: Tensor) -> Tensor:
    """Attributes "b p" as an image of one row "b 1 1 1 p": their counterfactuals are found and judged as an image's."""
    return rearrange(attributes, "b p -> b 1 1 1 p")


class LogOdds:
    """u are the log-odds of attributes "b 1 1 1 p", where nothing bounds them; what has changed are probabilities."""

    low: float | None = None
    high: float | None = None

    def at(self, image: Tensor) -> Opened:
        """See `Space`."""
        return Opened(torch.logit(image), torch.sigmoid)

    def samples(self, images: Tensor) -> Tensor:
        """See `Space`."""
        return torch.logit(images)


class Chances:
    """u are the attributes' probabilities themselves, in [0, 1], as in paper 001."""

    low: float | None = 0.0
    high: float | None = 1.0

    def at(self, image: Tensor) -> Opened:
        """See `Space`."""
        return Opened(image, lambda value: value)

    def samples(self, images: Tensor) -> Tensor:
        """See `Space`."""
        return images


@dataclass(frozen=True)
class HierarchicalAlignment(CounterfactualAlignment):
    """Eq. 5 of paper 001, at the top of this file; for `diffcf_hierarchical` and scans with rated attributes.

    What it takes over from `CounterfactualAlignment` is of the image: align_weight is λ_1 there, reason_weight λ_2, and
    `swapped` asks of the attributes, not of the label, that the outside of another image does not move them. The
    averages of either term are over the scans that have one; a weight of 0 leaves its term out. `warm` is of the search
    for images, while the same class is looked for; that for attributes is over a few numbers, and begins anew.

    reasons: how counterfactual attributes are found. reason_space: where; "chance" is the paper's, with bounds, which
    `ProximalSteps` keeps exactly. towards: "found" attributes a* (Eq. 7), or "flipped", those that caused the label
    turned round at once (Eq. 4 of paper 000).
    """

    attribute_weight: float = 1.0
    reason_weight: float = 1.0
    reasons: Inner = field(default_factory=lambda: Inner(distance_weight=0.1, solver=GaussNewton(8, halvings=4)))
    reason_space: Literal["log_odds", "chance"] = "log_odds"
    towards: Literal["found", "flipped"] = "found"

    def __post_init__(self) -> None:
        self.check_shares()
        if self.reasons.scaled != "no":
            raise ConfigError("reasons.scaled: attributes have one scale already; leave it at 'no'.")
        if min(self.attribute_weight, self.reason_weight, self.align_weight) < 0:
            raise ConfigError(
                f"attribute_weight {self.attribute_weight}, reason_weight {self.reason_weight}, align_weight "
                f"{self.align_weight}: expected 0 or more."
            )

    def terms(self, classifier: nn.Module, space: Space | None = None) -> Terms:
        """See `Method`."""
        return HierarchicalTerms(self, classifier, space)


class HierarchicalTerms(Terms):
    """See `HierarchicalAlignment`."""

    def __init__(self, method: HierarchicalAlignment, classifier: nn.Module, space: Space | None) -> None:
        super().__init__()
        self.method, self.classifier = method, classifier
        perceiver, decider = Perceiver(classifier), Decider(classifier)
        self.image = AlignmentLoss(perceiver, method.inner, method.form, method.floor, space, method.first)
        over = LogOdds() if method.reason_space == "log_odds" else Chances()
        self.reason = AlignmentLoss(decider, method.reasons, method.form, method.floor, over)
        self._perceived = torch.zeros(0)
        self.starts = method.starts(self.image)

    def logits(self, classifier: nn.Module, image: Tensor) -> Tensor:
        """See `Terms`."""
        self._perceived = self.image.classifier(image)
        return self.reason.classifier(row_of(self._perceived.sigmoid()))

    def taught(self, batch: Batch) -> Tensor:
        """See `Terms`: the cross-entropy of the attributes. Errors: ConfigError for a batch without them."""
        told, _ = experts_of(batch)
        rated = ~told.isnan()
        wrong = F.binary_cross_entropy_with_logits(
            self._perceived, told.nan_to_num(), rated.to(self._perceived), reduction="sum"
        ) / rated.sum().clamp(min=1)
        self.seen["attribute_loss"] = wrong.detach()
        return self.method.attribute_weight * wrong

    def forward(self, batch: Batch, progress: float) -> Tensor:
        """See `Terms`: what is aligned. Errors: ConfigError for a batch without attributes, or warm starts without its
        keys."""
        method, ramp = self.method, self.method.ramp(progress)
        few = method.few(batch)
        _, causes = experts_of(few)
        total = torch.zeros((), device=batch.image.device)
        attributes = self._perceived[: len(few.image)].detach().sigmoid().clamp(EDGE, 1 - EDGE)
        wanted = self._wanted(attributes)
        asked: Tensor | None = None
        if method.reason_weight or (method.align_weight and method.towards == "found"):
            found = self.reason(row_of(attributes), row_of(causes.to(attributes)), wanted)
            known = causes.any(1)
            self.seen |= {"reason_validity": found.valid.float().mean()}
            if bool(known.any()):
                self.seen["reason_outside"] = found.outside[known].nanmean()
                total = total + method.reason_weight * ramp * found.penalty[known].mean()
            if method.towards == "found":
                asked = rearrange(found.counterfactual, "b 1 1 1 p -> b p").detach()
        if method.align_weight:
            loss = of_flipped(few, method.inner) if asked is None else of_found(asked, method.inner)
            total = total + method.align_weight * ramp * self._of_image(few, loss, wanted)
        return total

    def _wanted(self, attributes: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(self.reason.classifier):
            logits = self.reason.classifier(row_of(attributes))
        best = rearrange(logits.argmax(1), "b -> b 1")
        return logits.scatter(1, best, -torch.inf).argmax(1)

    def _of_image(self, few: Batch, loss: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
        """L_align(θ1) of the part that is aligned, with the share of swapped outsides."""
        opened = self.image.space.at(few.image)
        problem = self.image.posed(opened.image, opened.start, lambda logits: logits, loss)
        start = None if self.starts is None else self.starts.of(*few.shown())
        begun = self.image.begin(problem, opened, wanted, start)
        judged = self.image.judge(problem, opened, few.image, few.region, begun)
        if self.starts is not None:
            self.starts.keep(*few.shown(), judged.change, wanted)
            self.seen["warm"] = judged.warm.float().mean()
        with torch.no_grad(), evaluating(self.classifier):
            valid = self.classifier(judged.counterfactual).argmax(1) == wanted
        asked = torch.ones_like(valid)
        if self.method.towards == "flipped":  # of a scan without a known cause nothing is asked
            asked = experts_of(few)[1].bool().any(1)
        self.seen |= figures(judged, asked) | {"validity": valid[asked].float().mean()}
        penalty = judged.penalty[asked].sum() / asked.sum().clamp(min=1)
        if self.method.swapped:
            share = swapped_share(self.image.classifier, few, lambda logits, label: logits)
            self.seen["swapped"] = share.detach()
            penalty = penalty + self.method.swapped * share
        return penalty


def experts_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Attributes and causes of a batch. Errors: ConfigError where it has none."""
    if batch.attributes is None or batch.causes is None:
        raise ConfigError("hierarchical alignment needs the scans' attributes and which of them caused the label.")
    return batch.attributes, batch.causes


def of_found(asked: Tensor, inner: Inner) -> Callable[[Tensor], Tensor]:
    """The loss "b" of log-odds "b p" towards probabilities a* "b p" (Eq. 7): cross-entropy, or half the squared
    distance of the log-odds, summed over the attributes: those that a* leaves as they are shall stay so."""
    goal = torch.logit(asked.clamp(EDGE, 1 - EDGE))

    def loss(logits: Tensor) -> Tensor:
        if inner.loss == "cross_entropy":
            each = F.binary_cross_entropy_with_logits(logits, asked, reduction="none")
        else:
            each = (logits - goal).square() / 2
        return reduce(each, "b p -> b", "sum")

    return loss


def of_flipped(batch: Batch, inner: Inner) -> Callable[[Tensor], Tensor]:
    """The loss "b" of log-odds "b p" towards the other value of the attributes that caused the label, and of no others
    (Eq. 4 of paper 000); 0 where no cause is known, so that nothing moves there."""
    attributes, causes = experts_of(batch)
    causes = causes.bool()
    side = 1 - 2 * attributes.nan_to_num()
    goal = log(inner.probability / (1 - inner.probability))

    def loss(logits: Tensor) -> Tensor:
        margin = side * logits
        each = F.softplus(-margin) if inner.loss == "cross_entropy" else (goal - margin).clamp(min=0).square() / 2
        return reduce(torch.where(causes, each, 0.0), "b p -> b", "sum")

    return loss
