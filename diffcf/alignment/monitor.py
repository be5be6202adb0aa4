"""What to watch while a classifier is being aligned: means of what its loss saw, and signs that it has collapsed."""

from __future__ import annotations

import torch
from torch import Tensor

from diffcf.alignment.methods import TrainingLoss

DEAD = 0.05  # validity below which counterfactuals no longer change the decision
ONE_CLASS = 0.99  # share of predictions


class Monitor:
    """Collects `TrainingLoss.seen` step by step; `figures` are means since they were last asked for."""

    def __init__(self, loss: TrainingLoss) -> None:
        self.loss = loss
        self._kept: dict[str, list[Tensor]] = {}
        self._last: dict[str, float] = {}

    def take(self) -> None:
        """Take what the last batch showed; nothing before the first."""
        for name, value in self.loss.seen.items():
            self._kept.setdefault(name, []).append(value.detach().float().cpu())
        self.loss.seen = {}

    def figures(self) -> dict[str, float]:
        """cross_entropy, majority (share of the commonest prediction), and the method's own: for alignment penalty,
        outside, moved and validity. What was not a number in a batch does not count."""
        self.take()
        self._last = {name: float(torch.stack(values).nanmean()) for name, values in self._kept.items()}
        self._kept = {}
        return dict(self._last)

    def warnings(self, logits: Tensor, labels: Tensor) -> list[str]:
        """What has gone wrong, in words: from validation logits "n k" and labels "n", and what the loss saw."""
        said = []
        share = torch.bincount(logits.argmax(1)).max() / len(logits)
        commonest = torch.bincount(labels).max() / len(labels)
        if float(share) >= ONE_CLASS and float(commonest) < ONE_CLASS:
            said.append(
                f"{float(share):.0%} of the validation scans are given one class: the classifier has collapsed to the "
                "majority. Lower align_weight (or the method's weight), balance the classes, or let alignment wait."
            )
        self.take()
        each = self._kept.get("validity")
        if each and (changed := float(torch.stack(each).nanmean())) < DEAD:
            said.append(
                f"counterfactuals change {changed:.0%} of the decisions: they have died, and "
                "the penalty measures nothing. Lower distance_weight, give the inner solver more steps, "
                "or use the relative form."
            )
        return said
