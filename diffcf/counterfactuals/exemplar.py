"""Counterfactuals out of parts of real images: what is there in a scan of the other class?

A gradient finds what moves the black box, and whatever else moves it: half a nodule, a pattern of pixels. Here it only
says *where*. What is put there comes from the codes of training images that the black box takes for the target
(Goyal et al. 2019, "Counterfactual visual explanations", with places of a spatial code instead of tiles of pixels), so
that the edit is a whole thing as images have it: another classifier sees it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import ClassVar

import torch
from einops import rearrange, reduce
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from diffcf.counterfactuals.carry import Gate
from diffcf.counterfactuals.methods import Latent, Method, Proposal, standardised
from diffcf.counterfactuals.ray import Ray
from diffcf.counterfactuals.steps import StepSearch
from diffcf.counterfactuals.trim import Trim
from diffcf.errors import CheckpointError, ConfigError
from diffcf.weights import write_tensors

EXEMPLARS_NAME = "exemplars.safetensors"


@dataclass(frozen=True)
class Exemplars:
    """Codes of real images, "n s d h w", and what the black box says about them, "n k"."""

    semantic: Tensor
    probability: Tensor

    def save(self, folder: Path) -> None:
        """Write exemplars.safetensors, codes in half precision, beside the agent of the same generator."""
        tensors = {"semantic": self.semantic.half(), "probability": self.probability.float()}
        write_tensors(tensors, folder / EXEMPLARS_NAME)

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """How many there are of each class. Errors: ConfigError where a class has none."""
        found = torch.bincount(self.probability.argmax(1), minlength=len(classes)).tolist()
        missing = [name for name, count in zip(classes, found, strict=True) if not count]
        if missing:
            raise ConfigError(
                f"the black box is sure of no image of {', '.join(missing)}; give it other images, or ask less of it."
            )
        return dict(zip(classes, found, strict=True))

    @classmethod
    def load(cls, folder: str | Path) -> Exemplars:
        """Read what `save` wrote. Errors: CheckpointError where there is nothing."""
        path = Path(folder) / EXEMPLARS_NAME
        if not path.is_file():
            raise CheckpointError(
                f"no {EXEMPLARS_NAME} in {folder}: train/exemplars.py keeps the codes of images beside an agent; or "
                "take another method."
            )
        tensors = load_file(path)
        return cls(tensors["semantic"].float(), tensors["probability"])

    @classmethod
    def sure(cls, semantic: Tensor, probability: Tensor, *, least: float = 0.8, most: int = 512) -> Exemplars:
        """Those that the black box is sure of: at least `least` for a class, at most `most` a class, evenly chosen."""
        kept = []
        for k in range(probability.shape[1]):
            index = (probability[:, k] >= least).nonzero().squeeze(1)
            kept.append(index[:: max(1, -(-len(index) // most))])
        index = torch.cat(kept)
        return cls(semantic[index], probability[index])


@dataclass(frozen=True)
class Exemplar(Method):
    """Where the agent's sparse search moves the code, places are taken from the code of an exemplar.

    1. `latent` lets the agent alone move the code sparsely (`Latent.alone`). Places moved by at least `moved` of the
       largest move, widened by one place and more in each round of `rounds`, are the region.
    2. Of the exemplars that the black box takes for the target, the `near` whose codes are most like the factual one in
       a ring around the region are pasted into it; of those that the agent takes for the target, the `tried` closest
       ones are shown to the black box in the generator's preview.
    3. The one that changes the image least and gets the asked probability is taken. Where none does, the region grows.
    4. Where none ever does, a gradient has pointed to the wrong place: square windows of `window` places all over the
       code are tried in its stead, those first where pasting convinces the agent most; the best point of all is where
       `latent` goes on with black box and agent together, if the black box gives gradients.
    5. What black box and agent can do without is left out of the change (`Trim`).

    exemplars: folder that holds them, the agent's. asked: what black box and agent must give, as a probability; more
    where the search asks for more (`StepSearch.beyond`). share: of the gate, while exemplars are compared. trim: None
    leaves the gate in place of step 5. alike: where other answers are there already, exemplars whose change of the code
    has a cosine above this with one of theirs are left out.
    """

    exemplars: Path
    latent: Latent = field(default_factory=Latent)
    moved: float = 0.3
    rounds: int = 3
    window: int = 5
    near: int = 128
    tried: int = 8
    asked: float = 0.85
    share: float = 0.3
    trim: Trim | None = field(default_factory=Trim)
    alike: float = 0.5

    needs_agent: ClassVar[bool] = True
    diverse: ClassVar[bool] = True

    @property
    def gate(self) -> Gate | None:
        """Of the change that is carried."""
        return Gate(self.share) if self.share else None

    def propose(self, ray: Ray, target: Tensor, search: StepSearch) -> Proposal:
        """The pasted code less the factual one."""
        scale, origin = standardised(ray)
        if origin.ndim != 5:
            raise ConfigError("exemplars are put together place by place, which needs a spatial code; take 'agent'.")
        kept = Exemplars.load(self.exemplars)
        exemplars = Exemplars(kept.semantic.to(origin) / scale, kept.probability.to(origin))
        if exemplars.semantic.shape[1:] != origin.shape[1:]:
            raise CheckpointError(
                f"exemplars of shape {tuple(exemplars.semantic.shape[1:])} for codes of {tuple(origin.shape[1:])}: "
                "they belong to another generator; train the agent again."
            )
        asked = search.beyond(self.asked)
        best, score = origin.clone(), torch.full((len(origin),), -torch.inf).to(origin)

        def paste(sample: int, region: Tensor) -> None:
            wanted = int(target[sample])
            others = [other[sample] / scale for other in ray.others]
            pasted = self._pasted(ray, origin[sample], region, exemplars, wanted, asked, scale, others)
            if not len(pasted):
                return
            chosen, given = self._seen(ray, pasted * scale, sample, wanted, asked)
            if given > float(score[sample]):
                best[sample], score[sample] = pasted[chosen], given

        seed = self._seed(self.latent.alone(ray, target, search) - origin)
        for turn in range(self.rounds):
            for sample in (score < asked).nonzero().squeeze(1).tolist():
                paste(sample, _widened(seed[sample : sample + 1], turn + 1)[0])
        for sample in (score < asked).nonzero().squeeze(1).tolist():
            for region in self._windows(ray, origin[sample], exemplars, int(target[sample]), asked, scale):
                paste(sample, region)
        left = (score < asked).nonzero().squeeze(1)
        if len(left) and ray.gives_gradient:
            objective = self.latent.objective(ray, target, search)
            ends = self.latent.solver(objective.of(left), best[left]).value
            for sample, end in zip(left.tolist(), ends, strict=True):
                _, given = self._seen(ray, end[None] * scale, sample, int(target[sample]), asked)
                if given > float(score[sample]):
                    best[sample] = end
        carried = None
        if self.trim is not None and ray.residual_carry:
            carried = self.trim(ray, best * scale, target, search.probability)
        return Proposal((best - origin) * scale, ray.glimpse_at, whole=True, carried=carried, previewed=True)

    def _seed(self, change: Tensor) -> Tensor:
        """The places "b s h w" that a change of codes "b s d h w" moves most, as a mask."""
        move = torch.linalg.vector_norm(change, dim=2)
        strongest = reduce(move, "b s h w -> b 1 1 1", "max").clamp(min=torch.finfo(move.dtype).tiny)
        return (move >= self.moved * strongest).to(change)

    @torch.no_grad()
    def _pasted(
        self,
        ray: Ray,
        origin: Tensor,
        region: Tensor,
        exemplars: Exemplars,
        target: int,
        asked: float,
        scale: Tensor,
        others: Sequence[Tensor] = (),
    ) -> Tensor:
        """The most promising codes for a sample, "m s d h w": closest of those that the agent takes for the target.

        None where all are like other answers.
        """
        sure = exemplars.semantic[exemplars.probability.argmax(1) == target]
        if not len(sure):
            raise ConfigError(f"no exemplar of class {target}: the black box is sure of none; run train/exemplars.py.")
        ring = _widened(region[None], 1)[0] - region
        unlike = reduce((sure - origin).square() * rearrange(ring, "s h w -> s 1 h w"), "n s d h w -> n", "sum")
        fitting = sure[unlike.topk(min(self.near, len(sure)), largest=False).indices]
        inside = rearrange(region, "s h w -> s 1 h w")
        pasted = origin * (1 - inside) + fitting * inside
        for other in others:
            cosine = F.cosine_similarity((pasted - origin).flatten(1), other.flatten()[None], dim=1)
            pasted = pasted[cosine <= self.alike]
        if not len(pasted):
            return pasted
        given = ray.agent_logits(pasted * scale).softmax(1)[:, target]
        distance = reduce((pasted - origin).square(), "n s d h w -> n", "sum").sqrt()
        rank = _least(distance, given, asked)
        return pasted[rank.topk(min(self.tried, len(pasted)), largest=False).indices]

    @torch.no_grad()
    def _windows(
        self, ray: Ray, origin: Tensor, exemplars: Exemplars, target: int, asked: float, scale: Tensor
    ) -> list[Tensor]:
        """The `rounds` windows, masks "s h w", where an exemplar's places convince the agent most."""
        (slices, _, rows, columns), side = origin.shape, self.window
        found = []
        for top, left in product(_starts(rows, side), _starts(columns, side)):
            mask = torch.zeros(slices, rows, columns).to(origin)
            mask[:, top : top + side, left : left + side] = 1
            pasted = self._pasted(ray, origin, mask, exemplars, target, asked, scale)
            given = ray.agent_logits(pasted * scale).softmax(1)
            found.append((float(given[:, target].max()), mask))
        return [mask for _, mask in sorted(found, key=lambda one: -one[0])[: self.rounds]]

    @staticmethod
    def _seen(ray: Ray, codes: Tensor, sample: int, target: int, asked: float) -> tuple[int, float]:
        """(which code the black box takes for the target at the least change of the image, its probability)."""
        index = torch.full((len(codes),), sample, device=codes.device)
        with torch.no_grad():
            image = ray.glimpse(codes, index)
            given = ray.logits_of(image).softmax(1)[:, target]
        ray.count_scored(index)
        change = reduce((image - ray.glimpsed[index]).abs(), "m ... -> m", "sum")
        chosen = int(_least(change, given, asked).argmin())
        return chosen, float(given[chosen])


def _least(change: Tensor, given: Tensor, asked: float) -> Tensor:
    """A rank "m", least first: of those that are given the asked probability the least change; the others come after
    them, the most probable first."""
    enough = given >= asked
    return torch.where(enough, change - change.max() - 1, 1 - given)


def _starts(places: int, side: int) -> list[int]:
    """Where windows of a side begin, every second place and the last."""
    last = max(places - side, 0)
    return sorted({*range(0, last + 1, 2), last})


def _widened(mask: Tensor, places: int) -> Tensor:
    """A mask of places "b s h w", wider by so many on every side."""
    return F.max_pool2d(mask, 2 * places + 1, stride=1, padding=places)
