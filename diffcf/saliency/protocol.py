"""What every saliency method is: a classifier and images in, one map a scan out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import reduce
from torch import Tensor, nn

from diffcf.counterfactuals.direction import class_score
from diffcf.errors import ConfigError


@dataclass(frozen=True)
class SaliencyMethod(ABC):
    """A map of what decided. A new method is a frozen dataclass with `find`; a config names subclasses.

    needs_generator: it looks at images through a generator's codes.
    """

    needs_generator: ClassVar[bool] = False

    @torch.no_grad()
    def __call__(
        self, classifier: nn.Module, image: Tensor, target: Tensor | None = None, generator: Any = None
    ) -> Tensor:
        """Images "b s c h w" in [-1, 1] -> maps "b s 1 h w", at least 0, in the method's own unit (see `normalised`).

        classifier: scans -> logits "b k"; it is asked as in evaluation, and left in the mode that it was in.
        target: int "b", the class that is explained; None is the predicted one, for counterfactual methods every class.
        generator: a `SliceWise`, or anything that encodes and decodes scans; for methods that need one.

        Errors: ConfigError for images that are no batch of scans, and for a method without the generator it needs.
        """
        if image.ndim != 5:
            raise ConfigError(f"images of shape {tuple(image.shape)}: expected scans, slices, channels, rows, columns.")
        if self.needs_generator and generator is None:
            raise ConfigError(
                f"{type(self).__name__} searches the codes of a generator, and there is none; give one "
                "(train/autoencoder.py trains the paper's)."
            )
        with evaluating(classifier):
            return self.find(classifier, image, target, generator)

    @abstractmethod
    def find(self, classifier: nn.Module, image: Tensor, target: Tensor | None, generator: Any) -> Tensor:
        """The maps, as `__call__` has them, which has checked its arguments; called without gradients."""


def explained(logits: Tensor, target: Tensor | None) -> Tensor:
    """The number whose reasons are asked for, "b": the log-odds of the target, None being the predicted class.

    Errors: ConfigError for logits of one class, which has odds against no other.
    """
    if logits.shape[1] < 2:
        raise ConfigError(
            "the classifier gives one logit, and classes are compared here; let it give a logit a class: of a single "
            "logit m, (0, m)."
        )
    return class_score(logits, logits.argmax(1) if target is None else target, "log_odds")


def class_of(classifier: nn.Module, image: Tensor, target: Tensor | None) -> Tensor:
    """The class to explain, int "b": the target, None being the predicted one."""
    return classifier(image).argmax(1) if target is None else target


def slope(score: Tensor, at: Tensor) -> Tensor:
    """d score / d at, shaped like `at`, of scores "b" of b samples that do not touch; 0 where nothing depends on it.

    Errors: ConfigError where the classifier passes no gradient on, which is not the same as a gradient of 0.
    """
    if not score.requires_grad:
        raise ConfigError("the classifier gives no gradient, which this saliency method needs; take Occlusion.")
    return torch.autograd.grad(score.sum(), at, allow_unused=True, materialize_grads=True)[0]


def normalised(saliency: Tensor) -> Tensor:
    """Maps "b s 1 h w" -> [0, 1], the least value of every scan at 0 and its largest at 1; constant maps become 0."""
    low, high = (reduce(saliency, "b s 1 h w -> b 1 1 1 1", way) for way in ("min", "max"))
    span = high - low
    return ((saliency - low) / torch.where(span == 0, 1.0, span)).clamp(0, 1)


@contextmanager
def evaluating(classifier: nn.Module) -> Iterator[None]:
    """The classifier in evaluation mode, and after that every module of it in the mode that it was in."""
    modes = [(module, module.training) for module in classifier.modules()]
    try:
        for module, _ in modes:
            module.training = False  # not eval(): exported programs refuse it
        yield
    finally:
        for module, mode in modes:
            module.training = mode
