"""Saliency from counterfactuals by descent in a generator's code (paper 003, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from einops import repeat
from torch import Tensor, nn

from diffcf.counterfactuals.objective import Loss, Objective
from diffcf.counterfactuals.ray import probability_of, take
from diffcf.counterfactuals.solvers import GradientDescent, ProximalGradient, Solver, Watch
from diffcf.distances import L1, Distance, GroupL1, per_sample
from diffcf.errors import ConfigError
from diffcf.saliency.changes import check_changes, mean_of_changes, mean_slope
from diffcf.saliency.protocol import SaliencyMethod, evaluating
from diffcf.types import Code


@dataclass(frozen=True)
class CounterfactualSaliency(SaliencyMethod):
    """The mean over the classes of how each counterfactual changes the scan, each in [0, 1] (paper 003, section 4.4).

        z'_class = argmin_z  loss(f(x'), class) + distance_weight * distance(z - E(x))          (Eq. 3-4)

    and the map of a class is |x' - x|, the mean over channels, `normalised`. D is the generator's preview where it has
    one; images are limited to [-1, 1]. No label is read: every class is asked for. What is predicted already as surely
    as the loss asks moves nothing, and its part of the mean is 0. With a target its map alone.

    The defaults are ours. A loss that is content at a probability of 0.97 and a distance whose proximal steps leave
    most places of a spatial code exactly as they are keep the map empty elsewhere. The classifier looks at the scan
    itself with the change in it, and not at a reconstruction, which may mean something else to it. And a change counts
    by what it does: the map is the geometric mean of |x' - x| and of the mean slope of the class's log-odds on the way
    from x to x', whose product is the change's own share of the log-odds (integrated gradients, with the counterfactual
    as the baseline). Pixels that the decoder moves for nothing, and those that would matter but need no change, drop
    out. `published` is the paper's.

    loss, distance, distance_weight, solver: of the descent; a distance of None is none. change: what x and x' are:
    "carried", x' = x + D(z') - D(E(x)); "decoded", D(E(x)) and D(z'); "factual", x and D(z'), as printed, which also
    shows what the generator cannot reproduce. point: of the descent, the "best", by the whole objective, or the "last";
    `ProximalGradient` has one answer, the last. slopes: on the way from x to x', at so many points (Gauss-Legendre);
    0: |x' - x| alone. smooth: deviation in pixels of a Gaussian over each class's map; a code with a place for every 4
    pixels knows nothing finer.

    With two classes a map costs at most 40 backward passes, and no more forward passes than make it 45 of both
    together (a forward pass alone is a third); half of it where one class is certain already. `published` costs 42.
    """

    loss: Loss = field(default_factory=lambda: Loss("margin", 0.97))
    distance: Distance | None = field(default_factory=GroupL1)
    distance_weight: float = 0.3
    solver: Solver = field(default_factory=lambda: ProximalGradient(steps=14, halvings=1))
    change: Literal["carried", "decoded", "factual"] = "carried"
    point: Literal["best", "last"] = "best"
    slopes: int = 3
    smooth: float = 2.0

    needs_generator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.distance_weight < 0:
            raise ConfigError(f"distance_weight {self.distance_weight}: expected 0 or more.")
        check_changes(self.slopes, self.smooth)

    @classmethod
    def published(cls) -> CounterfactualSaliency:
        """The paper's: 20 steps of size 1 on the cross-entropy and 100 times the L1 distance, against the image.

        The distance is the mean over the code, as in the authors' release: 100 times the sum would let nothing move. On
        small codes steps of size 1 may overshoot even so, and then none lowers Eq. 4; hence the last point.
        """
        descent = GradientDescent(rate=1.0, steps=20, tolerance=0.0)
        return cls(Loss("cross_entropy"), L1("mean"), 100.0, descent, "factual", "last", 0, 0.0)

    @classmethod
    def no_rec(cls) -> CounterfactualSaliency:
        """NoRec, which the paper compares with (appendix H): as many steps on the cross-entropy alone."""
        descent = GradientDescent(rate=1.0, steps=20, tolerance=0.0)
        return cls(Loss("cross_entropy"), None, 0.0, descent, "decoded", "best", 0, 0.0)

    def find(self, classifier: nn.Module, image: Tensor, target: Tensor | None, generator: Any) -> Tensor:
        """See `SaliencyMethod`."""
        scans = len(image)
        if target is None:
            classes = classifier(image[:1]).shape[1]
            target = repeat(torch.arange(classes, device=image.device), "k -> (k b)", b=scans)
        scene = Scene(generator, image, self.change)
        index = torch.arange(len(target), device=image.device) % scans
        semantic = self.descend(classifier, scene, target)
        start = image[index] if self.change == "factual" else scene.shown(scene.code.semantic[index], index)
        moved = (semantic != scene.code.semantic[index]).flatten(1).any(1)
        change = scene.shown(semantic, index) - start
        if self.change != "factual":  # where the code did not move, rounding is no change
            change = change * per_sample(moved, change)
        if self.slopes:
            change = (change * mean_slope(classifier, start, change, target, self.slopes)).abs().sqrt()
        return mean_of_changes(change, scans, self.smooth)

    def descend(self, classifier: nn.Module, scene: Scene, target: Tensor, watch: Watch | None = None) -> Tensor:
        """The semantic codes "n ..." of the counterfactuals that give the classes target int "n", n a multiple of b.

        The i-th class is asked of scan i modulo b of the scene. watch: as of `Solver`.
        """
        index = torch.arange(len(target), device=target.device) % len(scene.image)
        origin = scene.code.semantic[index]

        def loss_at(value: Tensor, chosen: Tensor) -> Tensor:
            return self.loss(logits_of(classifier, scene.shown(value, index[chosen])), target[chosen])

        weight = origin.new_full((len(origin),), self.distance_weight)
        last = origin

        def keep(value: Tensor) -> None:
            nonlocal last
            last = value.detach().clone()
            if watch is not None:
                watch(value)

        best = self.solver(Objective(loss_at, origin, weight, self.distance), origin, keep).value
        return best if self.point == "best" else last


class Scene:
    """Scans "b s c h w", their code, and how a classifier is shown other codes of them."""

    def __init__(self, generator: Any, image: Tensor, change: Literal["carried", "decoded", "factual"]) -> None:
        self.generator, self.image = generator, image
        self.code: Code = generator.encode(image)
        self.rest: Tensor | None = None
        if change == "carried":
            everyone = torch.arange(len(image), device=image.device)
            self.rest = image - decoded(generator, self.code, self.code.semantic, everyone)

    def shown(self, semantic: Tensor, index: Tensor) -> Tensor:
        """The images "m s c h w", limited to [-1, 1], of codes "m s ..." of the scans `index`, int "m"."""
        image = decoded(self.generator, self.code, semantic, index)
        return (image if self.rest is None else image + self.rest[index]).clamp(-1, 1)


@torch.no_grad()
def descent_curve(
    method: CounterfactualSaliency, classifier: nn.Module, image: Tensor, generator: Any, target: Tensor
) -> Tensor:
    """The probability of the target int "b" at the reconstruction and after each step of the descent, "b n".

    image: "b s c h w". The paper's appendix F, Fig. 5 (b, d) and Fig. 6. A scan that has converged stays as it is.
    """
    seen: list[Tensor] = []
    with evaluating(classifier):
        scene = Scene(generator, image, method.change)
        method.descend(classifier, scene, target, lambda value: seen.append(value.detach().clone()))
        everyone = torch.arange(len(image), device=image.device)
        curve = [classifier(scene.shown(value, everyone)).softmax(1) for value in seen]
    return torch.stack([probability_of(one, target) for one in curve], 1)


def decoded(generator: Any, code: Code, semantic: Tensor, index: Tensor) -> Tensor:
    """The images "m s c h w" of codes "m s ..." of the scans `index`, int "m", of `code`; not limited."""
    preview = getattr(generator, "preview", generator.decode)
    return preview(Code(semantic, take(code, index).stochastic))


def logits_of(classifier: nn.Module, image: Tensor) -> Tensor:
    """The logits "m k" of decoded images. Errors: ConfigError where a gradient is wanted and there is none."""
    logits = classifier(image)
    if image.requires_grad and not logits.requires_grad:
        raise ConfigError("the classifier gives no gradient, which this saliency method needs; take Occlusion.")
    return logits
