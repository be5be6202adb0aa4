"""Saliency from counterfactuals by descent in a generator's code (paper 003, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from einops import reduce, repeat
from torch import Tensor, nn

from diffcf.counterfactuals.objective import Loss, Objective
from diffcf.counterfactuals.ray import probability_of, take
from diffcf.counterfactuals.solvers import GradientDescent, ProximalGradient, Solver, Watch
from diffcf.distances import L1, Distance, GroupL1, per_sample
from diffcf.errors import ConfigError
from diffcf.saliency.protocol import SaliencyMethod, evaluating, normalised
from diffcf.types import Code


@dataclass(frozen=True)
class CounterfactualSaliency(SaliencyMethod):
    """The mean over the classes of |counterfactual - image|, each in [0, 1] (paper 003, Eq. 3-4 and section 4.4).

        z'_class = argmin_z  loss(f(D(z)), class) + distance_weight * distance(z - E(x))

    and the map of a class is |D(z'_class) - D(E(x))|, the mean over channels, `normalised`. D is the generator's
    preview where it has one, limited to [-1, 1]. No label is read: every class is asked for. What is predicted already
    as surely as the loss asks moves nothing, and its part of the mean is 0. With a target its map alone.

    The defaults are ours: a loss that is content at a probability of 0.9 and a distance whose proximal steps leave most
    places of a spatial code exactly as they are, so that the map is empty elsewhere. `published` is the paper's.

    loss, distance, distance_weight, solver: of the descent; a distance of None is none. against: "reconstruction", as
    above, or "factual", |D(z') - x|, which also shows what the generator cannot reproduce. point: of the descent, the
    solver's "best" by the objective, or the "last": where no step lowers the objective, the best is the start.

    With two classes a map costs at most 32 backward passes, and no more forward passes than make it 45 of both
    together (a forward pass alone is a third); half of it where one class is certain already. `published` costs 42.
    """

    loss: Loss = field(default_factory=lambda: Loss("margin", 0.9))
    distance: Distance | None = field(default_factory=GroupL1)
    distance_weight: float = 0.1
    solver: Solver = field(default_factory=lambda: ProximalGradient(steps=16, halvings=1))
    against: Literal["reconstruction", "factual"] = "reconstruction"
    point: Literal["best", "last"] = "best"

    needs_generator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.distance_weight < 0:
            raise ConfigError(f"distance_weight {self.distance_weight}: expected 0 or more.")

    @classmethod
    def published(cls) -> CounterfactualSaliency:
        """The paper's: 20 steps of size 1 on the cross-entropy and 100 times the L1 distance, against the image.

        The distance is the mean over the code, as in the authors' release: 100 times the sum would let nothing move. On
        small codes steps of size 1 may overshoot even so, and then none lowers Eq. 4; hence the last point.
        """
        descent = GradientDescent(rate=1.0, steps=20, tolerance=0.0)
        return cls(Loss("cross_entropy"), L1("mean"), 100.0, descent, against="factual", point="last")

    @classmethod
    def no_rec(cls) -> CounterfactualSaliency:
        """NoRec, which the paper compares with (appendix H): as many steps on the cross-entropy alone."""
        return cls(Loss("cross_entropy"), None, 0.0, GradientDescent(rate=1.0, steps=20, tolerance=0.0))

    def find(self, classifier: nn.Module, image: Tensor, target: Tensor | None, generator: Any) -> Tensor:
        """See `SaliencyMethod`."""
        code, scans = generator.encode(image), len(image)
        if target is None:
            classes = classifier(image[:1]).shape[1]
            target = repeat(torch.arange(classes, device=image.device), "k -> (k b)", b=scans)
        semantic = self.descend(classifier, generator, code, target)
        index = torch.arange(len(target), device=image.device) % scans
        change = shown(generator, code, semantic, index)
        if self.against == "factual":
            change = change - image[index]
        else:
            change = change - shown(generator, code, code.semantic[index], index)
            change = change * per_sample((semantic != code.semantic[index]).flatten(1).any(1), change)
        return mean_of_changes(change, scans)

    def descend(
        self, classifier: nn.Module, generator: Any, code: Code, target: Tensor, watch: Watch | None = None
    ) -> Tensor:
        """The semantic codes "n ..." of the counterfactuals that give the classes target int "n", n a multiple of b.

        code: of b scans; the i-th class is asked of scan i modulo b. watch: as of `Solver`.
        """
        index = torch.arange(len(target), device=target.device) % len(code.semantic)
        origin = code.semantic[index]

        def loss_at(value: Tensor, chosen: Tensor) -> Tensor:
            logits = logits_of(classifier, shown(generator, code, value, index[chosen]))
            return self.loss(logits, target[chosen])

        weight = origin.new_full((len(origin),), self.distance_weight)
        last = origin

        def keep(value: Tensor) -> None:
            nonlocal last
            last = value.detach().clone()
            if watch is not None:
                watch(value)

        best = self.solver(Objective(loss_at, origin, weight, self.distance), origin, keep).value
        return best if self.point == "best" else last


@torch.no_grad()
def descent_curve(
    method: CounterfactualSaliency, classifier: nn.Module, image: Tensor, generator: Any, target: Tensor
) -> Tensor:
    """The probability of the target int "b" at the reconstruction and after each step of the descent, "b n".

    image: "b s c h w". The paper's appendix F, Fig. 5 (b, d) and Fig. 6. A scan that has converged stays as it is.
    """
    seen: list[Tensor] = []
    with evaluating(classifier):
        code = generator.encode(image)
        method.descend(classifier, generator, code, target, lambda value: seen.append(value.detach().clone()))
        everyone = torch.arange(len(image), device=image.device)
        curve = [classifier(shown(generator, code, value, everyone)).softmax(1) for value in seen]
    return torch.stack([probability_of(one, target) for one in curve], 1)


def shown(generator: Any, code: Code, semantic: Tensor, index: Tensor) -> Tensor:
    """The images "m s c h w", limited to [-1, 1], of codes "m s ..." of the scans `index`, int "m", of `code`."""
    preview = getattr(generator, "preview", generator.decode)
    return preview(Code(semantic, take(code, index).stochastic)).clamp(-1, 1)


def logits_of(classifier: nn.Module, image: Tensor) -> Tensor:
    """The logits "m k" of decoded images. Errors: ConfigError where a gradient is wanted and there is none."""
    logits = classifier(image)
    if image.requires_grad and not logits.requires_grad:
        raise ConfigError("the classifier gives no gradient, which this saliency method needs; take Occlusion.")
    return logits


def mean_of_changes(change: Tensor, scans: int) -> Tensor:
    """Changes "(k b) s c h w" of k searches over b scans -> the mean of their maps, each `normalised`, "b s 1 h w"."""
    each = normalised(reduce(change.abs(), "n s c h w -> n s 1 h w", "mean"))
    return reduce(each, "(k b) s 1 h w -> b s 1 h w", "mean", b=scans)
