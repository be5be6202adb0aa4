"""What a classifier is trained with beside its cross-entropy: counterfactual alignment, and what it is compared with.

A method adds a term to the loss of a batch; a new one is one small class with one function. Each states its source.
Their settings have names of their own, since a config that changes the method keeps settings of the same name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.alignment.loss import AlignmentLoss, Inner, Judged, evaluating
from diffcf.alignment.spaces import Pixels, Space
from diffcf.alignment.starts import Starts
from diffcf.counterfactuals.direction import class_score
from diffcf.errors import ConfigError

TINY = 1e-12


@dataclass(frozen=True)
class Batch:
    """Images "b s c h w" in [-1, 1], labels int "b", regions "b s 1 h w" of 0 and 1: 1 may decide.

    Where experts rated attributes, attributes: "b p" of 0 and 1, NaN = not rated; causes: "b p" of 0 and 1, those that
    caused the label, none where that is not known. keys: which samples they are; turns: which view of each is shown
    (`diffcf.data.views`); for warm starts.
    """

    image: Tensor
    label: Tensor
    region: Tensor
    attributes: Tensor | None = None
    causes: Tensor | None = None
    keys: Sequence[int] | None = None
    turns: Sequence[int] | None = None

    def head(self, count: int) -> Batch:
        """The first so many."""
        parts = {name: None if value is None else value[:count] for name, value in vars(self).items()}
        return Batch(**parts)  # type: ignore[arg-type]

    def shown(self) -> tuple[Sequence[int], Sequence[int]]:
        """(keys, turns). Errors: ConfigError where they were not given."""
        if self.keys is None or self.turns is None:
            raise ConfigError("warm starts need to know the samples: give the loss keys and turns, or set warm: false.")
        return self.keys, self.turns


class Method(ABC):
    """Gives the module that trains a classifier by this method. A config names subclasses: {class_path, init_args}."""

    def fitted(self, space: Space, images: Tensor) -> Method:
        """The method with what it takes from the training images "n s c h w", before `terms`."""
        return self

    @abstractmethod
    def terms(self, classifier: nn.Module, space: Space | None = None) -> Terms:
        """Called once, before training."""


class Terms(nn.Module):
    """What a method adds: nothing, of plain training. `seen`: figures of the last batch, for a monitor. `starts`: what
    it keeps from step to step, and a checkpoint has to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}
        self.starts: Starts | None = None

    def logits(self, classifier: nn.Module, image: Tensor) -> Tensor:
        """What the cross-entropy reads, "b k"; called before `forward`, so that a method can keep what it saw."""
        return classifier(image)

    def taught(self, batch: Batch) -> Tensor:
        """What is learned from labels beside the label's cross-entropy, a scalar, weighed; called after `logits`."""
        return torch.zeros((), device=batch.image.device)

    def forward(self, batch: Batch, progress: float) -> Tensor:
        """A scalar, weighed. progress: share of the training that is done."""
        return torch.zeros((), device=batch.image.device)


@dataclass(frozen=True)
class Vanilla(Method):
    """Cross-entropy alone. With an architecture that sees the region only, the oracle (paper 001, section 5.2)."""

    def terms(self, classifier: nn.Module, space: Space | None = None) -> Terms:
        """See `Method`."""
        return Terms()


@dataclass(frozen=True)
class CounterfactualAlignment(Method):
    """align_weight * the mean over samples of `AlignmentLoss` (Algorithm 1 of paper 001).

    A nearest counterfactual can be kept inside the region without the outside losing its say: the network becomes so
    sensitive inside that it finds its change there, while a mark outside still decides by a jump that no gradient
    shows. Far counterfactuals show it: `swapped` adds, with that weight, the share of the way to an image of another
    class that its outside alone goes (`swapped_share`).

    align_weight: λ. form, floor, first: of the loss. inner: how counterfactuals are found. share: of every batch that
    is aligned. wait: share of the training over which the weight rises from 0: a classifier that has yet to learn
    anything can meet the penalty by learning nothing. warm: the search of a sample begins where its last one ended
    (`Starts`, `AlignmentLoss.begin`).
    """

    align_weight: float = 1.0
    form: Literal["relative", "absolute"] = "relative"
    floor: float = 1e-5
    first: float = 1.0
    swapped: float = 1.0
    inner: Inner = field(default_factory=Inner)
    share: float = 0.5
    wait: float = 0.2
    warm: bool = False

    def __post_init__(self) -> None:
        self.check_shares()
        if self.align_weight <= 0:
            raise ConfigError(f"align_weight {self.align_weight}: expected a positive weight, or the method Vanilla.")

    def check_shares(self) -> None:
        """Refuse shares that cannot be (ConfigError)."""
        if not (0 < self.share <= 1 and 0 <= self.wait < 1):
            raise ConfigError(
                f"share {self.share}, wait {self.wait}: expected a share above 0 and at most 1, and a wait of 0 to "
                "below 1."
            )
        check_weight("swapped", self.swapped)

    def fitted(self, space: Space, images: Tensor) -> CounterfactualAlignment:
        """See `Method`: the scale of the distance."""
        return self if self.inner.scaled == "no" else replace(self, inner=self.inner.fitted(space.samples(images)))

    def few(self, batch: Batch) -> Batch:
        """The part of a batch that is aligned."""
        return batch.head(max(1, round(self.share * len(batch.image))))

    def ramp(self, progress: float) -> float:
        """How much of its weight alignment has by now."""
        return 1.0 if not self.wait else min(1.0, progress / self.wait)

    def starts(self, loss: AlignmentLoss) -> Starts | None:
        """For what the searches of a loss find, if they are to begin there."""
        return Starts(turned=isinstance(loss.space, Pixels)) if self.warm else None

    def terms(self, classifier: nn.Module, space: Space | None = None) -> Terms:
        """See `Method`."""
        return AlignmentTerms(self, AlignmentLoss(classifier, self.inner, self.form, self.floor, space, self.first))


class AlignmentTerms(Terms):
    """See `CounterfactualAlignment`."""

    def __init__(self, method: CounterfactualAlignment, loss: AlignmentLoss) -> None:
        super().__init__()
        self.method, self.loss = method, loss
        self.starts = method.starts(loss)

    def forward(self, batch: Batch, progress: float) -> Tensor:
        """See `Terms`. Errors: ConfigError for warm starts without the batch's keys."""
        method = self.method
        few = method.few(batch)
        start = None if self.starts is None else self.starts.of(*few.shown())
        found = self.loss(few.image, few.region, start=start)
        self.seen = figures(found) | {"validity": found.valid.float().mean()}
        if self.starts is not None:
            self.starts.keep(*few.shown(), found.change, found.target)
            self.seen["warm"] = found.warm.float().mean()
        penalty = found.penalty.mean()
        if method.swapped:
            share = swapped_share(self.loss.classifier, few)
            self.seen["swapped"] = share.detach()
            penalty = penalty + method.swapped * share
        return method.align_weight * method.ramp(progress) * penalty


def label_odds(logits: Tensor, label: Tensor) -> Tensor:
    """The log-odds of labels int "b", "b k" -> "b 1"."""
    return rearrange(class_score(logits, label, "log_odds"), "b -> b 1")


def swapped_share(
    classifier: nn.Module, batch: Batch, score: Callable[[Tensor, Tensor], Tensor] = label_odds
) -> Tensor:
    """How much of the way to images of another class the outside alone goes: the mean over samples of
    |f(x_out) - f(x)|_1 / (|f(x_out) - f(x)|_1 + |f(x_in) - f(x)|_1), a scalar in [0, 1].

    f: the outputs of the classifier, in evaluation mode, as `score` (outputs, labels) -> "b j" takes them, by default
    the log-odds of the label.

    x_out is x with the other image's pixels outside of both regions, x_in with those inside. Each sample takes the next
    one of the batch that has another label; 0 where there is none. Of several processes, each pairs its own part.
    """
    count = len(batch.label)
    order = (torch.arange(count)[:, None] + torch.arange(count)).to(batch.label.device) % count
    different = batch.label[order] != batch.label[:, None]
    own = different.any(1).nonzero().squeeze(1)
    if not len(own):
        return torch.zeros((), device=batch.image.device)
    other = order[own, different[own].int().argmax(1)]
    image, contrast = batch.image[own], batch.image[other]
    inside = torch.maximum(batch.region[own], batch.region[other])
    mixed = torch.cat([image, inside * image + (1 - inside) * contrast, (1 - inside) * image + inside * contrast])
    with evaluating(classifier):  # three draws of a dropout differ where no pixel does
        outputs = classifier(mixed)
    start, outside, within = score(outputs, batch.label[own].repeat(3)).chunk(3)
    gone, stayed = (reduce((one - start).abs(), "b j -> b", "sum") for one in (outside, within))
    return (gone / (gone + stayed).clamp(min=TINY)).mean()


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight below 0, which rewards what it is to punish (ConfigError)."""
    if not weight >= 0:
        raise ConfigError(f"{name} {weight}: expected a weight of 0 or more.")


def figures(found: Judged, asked: Tensor | None = None) -> dict[str, Tensor]:
    """What a monitor watches of counterfactuals: means over samples, of those "b" that something was asked of."""
    kept = slice(None) if asked is None else asked
    return {
        "penalty": found.penalty.detach()[kept].mean(),
        "first": found.first[kept].mean(),
        "outside": found.outside[kept].nanmean(),
        "moved": found.moved[kept].mean(),
    }


@dataclass(frozen=True)
class RightReasons(Method):
    """Ross et al. 2017 (RRR): the input gradient outside the region is penalised.

    form "squared", theirs: gradient_weight * the mean over samples of the sum over pixels of
    ((1 - m) d/dx sum_k log p_k)^2. "normalised": gradient_weight * the mean of |(1 - m) g|_1 / |g|_1, with g the
    gradient of the log-odds. That is the share outside of the first step of a counterfactual search in pixels, so that
    alignment has to be compared with it.
    """

    gradient_weight: float = 30.0
    form: Literal["squared", "normalised"] = "squared"

    def __post_init__(self) -> None:
        check_weight("gradient_weight", self.gradient_weight)

    def terms(self, classifier: nn.Module, space: Space | None = None) -> Terms:
        """See `Method`."""
        return RightReasonsTerms(self, classifier)


class RightReasonsTerms(Terms):
    """See `RightReasons`."""

    def __init__(self, method: RightReasons, classifier: nn.Module) -> None:
        super().__init__()
        self.method, self.classifier = method, classifier

    def forward(self, batch: Batch, progress: float) -> Tensor:
        """See `Terms`."""
        image = batch.image.detach().requires_grad_()
        scores = F.log_softmax(self.classifier(image), 1)
        if self.method.form == "normalised":
            rows = rearrange(batch.label, "b -> b 1")
            chosen = scores.gather(1, rows).squeeze(1)
            explained = (chosen - scores.scatter(1, rows, -torch.inf).logsumexp(1)).sum()
        else:
            explained = scores.sum()
        (slope,) = torch.autograd.grad(explained, image, create_graph=True)
        outside = slope * (1 - batch.region)
        if self.method.form == "squared":
            penalty = reduce(outside.square(), "b s c h w -> b", "sum")
        else:
            total = reduce(slope.abs(), "b s c h w -> b", "sum")
            penalty = reduce(outside.abs(), "b s c h w -> b", "sum") / total.clamp(min=TINY)
        self.seen = {"penalty": penalty.detach().mean()}
        return self.method.gradient_weight * penalty.mean()


@dataclass(frozen=True)
class Augmented(Method):
    """Chang et al. 2021 (CIDG): counterfactual augmentation.

    Two copies of every image go into the batch with a weight: one whose outside is replaced by another image's of the
    batch, with the same label, since the outside must not matter (their factual augmentation); one whose region is
    filled in from around it, with a uniform label, since the reason is gone (their counterfactual one). Filled by the
    outside's mean and noise of its spread, which is their "random" infilling.
    """

    augment_weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight("augment_weight", self.augment_weight)

    def terms(self, classifier: nn.Module, space: Space | None = None) -> Terms:
        """See `Method`."""
        return AugmentedTerms(self, classifier)


class AugmentedTerms(Terms):
    """See `Augmented`."""

    def __init__(self, method: Augmented, classifier: nn.Module) -> None:
        super().__init__()
        self.method, self.classifier = method, classifier

    def forward(self, batch: Batch, progress: float) -> Tensor:
        """See `Terms`."""
        image, region = batch.image, batch.region
        factual = region * image + (1 - region) * image.roll(1, 0)
        outside = 1 - region
        area = image.shape[2] * reduce(outside, "b s 1 h w -> b 1 1 1 1", "sum").clamp(min=1)
        mean = reduce(image * outside, "b s c h w -> b 1 1 1 1", "sum") / area
        spread = (reduce((image - mean).square() * outside, "b s c h w -> b 1 1 1 1", "sum") / area).sqrt()
        filled = outside * image + region * (mean + spread * torch.randn_like(image)).clamp(-1, 1)
        kept = F.cross_entropy(self.classifier(factual), batch.label)
        gone = -F.log_softmax(self.classifier(filled), 1).mean()
        self.seen = {"penalty": (kept + gone).detach()}
        return self.method.augment_weight * (kept + gone)


Part = Literal["both", "classification", "alignment"]


@dataclass(frozen=True)
class Alternating:
    """Steps on the classification loss and steps on the alignment loss by turns: "we iteratively optimize over the
    classification loss and the alignment loss" (paper 000, section 5.1).

    The paper says neither how many of each nor over which samples. classification, alignment: steps of a round, in this
    order; each has a batch of its own. Errors: ConfigError for a round without one or the other.
    """

    classification: int = 1
    alignment: int = 1

    def __post_init__(self) -> None:
        if min(self.classification, self.alignment) < 1:
            raise ConfigError(
                f"classification {self.classification}, alignment {self.alignment}: expected one step of each or more; "
                "for no alignment take the method Vanilla, for both losses in every step alternating: null."
            )

    def at(self, step: int) -> Part:
        """What step 0, 1, ... is on."""
        within = step % (self.classification + self.alignment)
        return "classification" if within < self.classification else "alignment"


class TrainingLoss(nn.Module):
    """Cross-entropy plus what a method adds, as one module: what distributed training wraps, and what is compiled.

    class_weights: "k", or None. `seen`: figures of the last batch.
    """

    def __init__(self, classifier: nn.Module, terms: Terms, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.classifier, self.terms = classifier, terms
        # Not divided by the weights of the batch: each process has another part of it.
        self.criterion = nn.CrossEntropyLoss(class_weights, reduction="none")
        self.seen: dict[str, Tensor] = {}

    def forward(
        self,
        image: Tensor,
        label: Tensor,
        region: Tensor,
        progress: float,
        attributes: Tensor | None = None,
        causes: Tensor | None = None,
        keys: Sequence[int] | None = None,
        turns: Sequence[int] | None = None,
        part: Part = "both",
    ) -> Tensor:
        """A scalar. Tensors, keys and turns are those of a `Batch`. part: of the loss whose gradient is taken.

        Errors: ConfigError for the alignment part of a method that adds nothing.
        """
        batch = Batch(image, label, region, attributes, causes, keys, turns)
        self.terms.seen = {}
        logits = self.terms.logits(self.classifier, image)
        plain = self.criterion(logits, label).mean()
        taught = plain + self.terms.taught(batch)
        majority = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).max() / len(logits)
        self.seen = {"cross_entropy": plain.detach(), "majority": majority}
        if part == "classification":
            self.seen |= self.terms.seen
            return taught
        if part == "alignment":
            if type(self.terms) is Terms:
                raise ConfigError("this method adds no loss to take turns with; set alternating: null.")
            taught = 0 * taught  # distributed training waits for a gradient of every weight, if only 0
        added = self.terms(batch, progress)
        self.seen |= self.terms.seen
        return taught + added
