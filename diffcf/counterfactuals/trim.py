"""How little of a decoded change is needed: what black box and agent can do without is left out.

A pasted piece of another image brings along what lay around it there, and a decoder smears every edit a little. None of
it moved the decision, so none of it belongs into the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from diffcf.counterfactuals.carry import Gate
from diffcf.counterfactuals.ray import Ray, probability_of

CORE = 0.2  # of the strongest change: what the core of a piece is made of
SEAM = 0.2  # of the window's half width: the largest step between neighbours that a trimmed image may add


@dataclass(frozen=True)
class Trim:
    """Chooses, scan by scan, which pixels of a change are carried.

    1. Of the gates with `shares`, the narrowest is taken with which the black box still gives the target what it gave
       to the whole change, or the asked probability if that is less, the agent, reading the code of the trimmed image,
       does so too, and no edge appears that neither the scan nor the whole edit has (`seam`): a gate that cuts through
       the soft border of what was taken out leaves a rim there, which no scan shows.
    2. What is left is cut into connected pieces; of these, the smallest first and at most `pieces` of them, each is
       dropped with which nothing is lost in the same sense.

    The agent has a say since a black box alone is content with half a thing: an arm of a +, the rim of a nodule.
    """

    shares: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    pieces: int = 12
    seam: float = SEAM

    @torch.no_grad()
    def __call__(self, ray: Ray, semantic: Tensor, target: Tensor, asked: float) -> Tensor:
        """The share of every pixel's change that is carried, "b s c h w" from 0 to 1, judged on previews.

        semantic: the edited codes, "b s ...". The ray has an agent and carries residuals.
        """
        everyone = torch.arange(len(target), device=target.device)
        change = ray.change(semantic, everyone)
        enough = torch.stack(self._judged(ray, change, everyone, target)).clamp(max=asked)
        whole = (ray.factual + change).clamp(-1, 1)
        opened = torch.ones_like(change)
        for share in self.shares:
            narrower = Gate(share).opened(change)
            kept = self._keeps(ray, change * narrower, everyone, target, enough, whole)
            opened[kept] = narrower[kept]
        for sample in everyone.tolist():
            one = everyone[sample : sample + 1]
            for piece in _pieces(change[sample] * opened[sample], self.pieces):
                without = (opened[sample] * ~piece)[None]
                kept = self._keeps(ray, change[one] * without, one, target[one], enough[:, one], whole[one])
                if bool(without.any()) and bool(kept):
                    opened[sample] = without[0]
        return opened

    def _keeps(self, ray: Ray, change: Tensor, index: Tensor, target: Tensor, enough: Tensor, whole: Tensor) -> Tensor:
        trimmed = (ray.factual[index] + change).clamp(-1, 1)
        smooth = seam(trimmed, ray.factual[index], whole) <= self.seam
        return (torch.stack(self._judged(ray, change, index, target)) >= enough).all(0) & smooth

    @staticmethod
    def _judged(ray: Ray, change: Tensor, index: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """What black box and agent give the target where a change "m s c h w" is carried, "m" each."""
        image = (ray.factual[index] + change).clamp(-1, 1)
        ray.count_scored(index)
        told = ray.logits_of(image).softmax(1), ray.agent_logits(ray.encode_semantic(image)).softmax(1)
        return probability_of(told[0], target), probability_of(told[1], target)


def seam(mixed: Tensor, *sources: Tensor) -> Tensor:
    """The strongest edge of a mixture of images that none of its sources has there, "b"; all are "b s c h w".

    Between neighbours along a row or a column, by how much the step of the mixture lies outside the range of the steps
    that its sources take in the 3 x 3 pixels around.
    """
    worst = torch.zeros(len(mixed), dtype=mixed.dtype, device=mixed.device)
    for axis in (-1, -2):
        step = _steps(mixed, axis)
        near = [_steps(source, axis) for source in sources]
        high = torch.stack([F.max_pool2d(one, 3, 1, 1) for one in near]).amax(0)
        low = -torch.stack([F.max_pool2d(-one, 3, 1, 1) for one in near]).amax(0)
        beyond = reduce(torch.maximum(step - high, low - step), "(b s) c h w -> b", "max", b=len(mixed))
        worst = torch.maximum(worst, beyond)
    return worst


def _steps(image: Tensor, axis: int) -> Tensor:
    return rearrange(image.diff(dim=axis), "b s c h w -> (b s) c h w")


def _pieces(change: Tensor, most: int) -> list[Tensor]:
    """The pieces of a change "s c h w" as masks "s 1 h w", the smallest ones first.

    A piece is a connected set of pixels where the change is strong, with all that lies nearer to it than to another.
    """
    from scipy import ndimage

    strength = reduce(change.abs(), "s c h w -> s h w", "max").cpu().numpy()
    cores = np.zeros(strength.shape, np.int32)
    ndimage.label(strength > CORE * strength.max(), output=cores)
    count = int(cores.max())
    if count < 2:
        return []
    nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
    labels = cores[tuple(np.asarray(nearest))]
    sizes = ndimage.sum_labels(strength, labels, range(1, count + 1))
    order = sorted(range(1, count + 1), key=lambda label: sizes[label - 1])
    found = rearrange(torch.from_numpy(labels).to(change.device), "s h w -> s 1 h w")
    return [found == label for label in order[:most]]
