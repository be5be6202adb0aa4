"""Warm starts: where the last search of every training sample ended is where its next search begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as processes

from diffcf.alignment.loss import NO_TARGET, Start
from diffcf.data.views import view


@dataclass(frozen=True)
class Kept:
    """What a search of one sample found. change: of u from u_0, "...". target: the class it looked for. turn: the view
    of the sample that it searched, 0 to 7."""

    change: Tensor
    target: int
    turn: int


class Starts:
    """The last change of every sample that was searched, on the CPU, by the sample's key.

    turned: u is an image, and its change turns with the view. A code is not: nothing says what its change would be in
    another view, and it serves only where the view is the same again.

    A change is kept, not u: what it is added to then is this step's u_0. Every process keeps what all of them found,
    since another one sees the sample in the next epoch; and whichever writes a checkpoint then has everything. Keep
    this out of the loss's buffers: distributed training would send all of it to all processes at every step.
    """

    def __init__(self, turned: bool) -> None:
        self.turned = turned
        self._kept: dict[int, Kept] = {}

    def of(self, keys: Sequence[int], turns: Sequence[int]) -> Start | None:
        """Where searches of these samples in these views may begin; None where nothing is kept of any."""
        known = [self._kept.get(key) for key in keys]
        one = next((kept for kept in known if kept is not None), None)
        if one is None:
            return None
        nothing = Kept(torch.zeros_like(one.change), NO_TARGET, 0)
        found = [kept or nothing for kept in known]
        change = torch.stack([kept.change for kept in found])
        targets = [kept.target for kept in found]
        if self.turned:
            change = view(view(change, [inverse(kept.turn) for kept in found]), turns)
        else:
            pairs = zip(found, turns, strict=True)
            targets = [kept.target if kept.turn == turn else NO_TARGET for kept, turn in pairs]
        return Start(change, torch.tensor(targets))

    def keep(self, keys: Sequence[int], turns: Sequence[int], change: Tensor, target: Tensor) -> None:
        """Changes "b ..." that searches for classes int "b" found. Called by all processes, with equal shares."""
        about = torch.stack([torch.tensor(keys), torch.tensor(turns), target.cpu()], 1).to(change.device)
        for (key, turn, wanted), own in zip(_of_all(about).tolist(), _of_all(change).cpu(), strict=True):
            self._kept[key] = Kept(own.clone(), wanted, turn)

    def tensors(self) -> dict[str, Tensor]:
        """All that is kept, for a checkpoint: change "n ...", and key, turn, target, int "n"; nothing before the first
        search."""
        if not self._kept:
            return {}
        kept = list(self._kept.values())
        return {
            "change": torch.stack([one.change for one in kept]),
            "key": torch.tensor(list(self._kept)),
            "turn": torch.tensor([one.turn for one in kept]),
            "target": torch.tensor([one.target for one in kept]),
        }

    def restore(self, named: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        self._kept = {}
        if named:
            numbers = [named[name].tolist() for name in ("key", "target", "turn")]
            for change, key, target, turn in zip(named["change"], *numbers, strict=True):
                self._kept[key] = Kept(change.clone(), target, turn)


def inverse(turn: int) -> int:
    """The view that turns another one, 0 to 7, back: with a transposition, the two mirrors change places."""
    return turn if turn < 4 else 4 | (turn & 1) << 1 | (turn & 2) >> 1


def _of_all(own: Tensor) -> Tensor:
    """Rows "b ..." of all processes, one after the other."""
    if not (processes.is_available() and processes.is_initialized()):
        return own
    parts = [torch.empty_like(own) for _ in range(processes.get_world_size())]
    processes.all_gather(parts, own.contiguous())
    return torch.cat(parts)
