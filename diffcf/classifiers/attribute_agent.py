"""An agent that reads attributes: what scans with such amounts are told by the black box, fitted in closed form.

Where a generator makes something of an attribute that the attribute is not, the black box may turn on that. Such an
answer is one of the generator, and no scan bears it out. This agent has never seen the generator: it imitates the black
box on rated scans, from their ratings alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F

from diffcf.cards import AttributeAgentCard, AttributesCard, read_card, write_card
from diffcf.errors import CheckpointError, ConfigError
from diffcf.weights import read_tensors, write_tensors

WEIGHTS = "agent.safetensors"
PENALTIES = (1e-1, 1e0, 1e1, 1e2, 1e3)  # of the squared weights, chosen on held-out scans


@dataclass(frozen=True, eq=False)
class AttributeAgent:
    """Amounts "b n" of attributes in spreads -> logits "b k", which sum to 0.

    logits = weight^T (1, a_i, a_i a_j with i <= j): what each attribute does by itself, and two together.

    card: of the attributes, and of the black box. weight: "f k".
    """

    card: AttributeAgentCard
    weight: Tensor

    def __call__(self, amounts: Tensor) -> Tensor:
        """Logits "b k", differentiable in the amounts."""
        return features(amounts) @ self.weight.to(amounts)

    @classmethod
    def fit(
        cls,
        attributes: AttributesCard,
        classes: list[str],
        blackbox_hash: str,
        train: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor],
    ) -> AttributeAgent:
        """Ridge regression of the black box's logits on the features, from (values "m n" in their own units, logits "m
        k") of rated scans.

        The penalty is the one that does best on the held-out scans. The card's `about` says how much of the logits is
        explained there (`explained`, R^2 over all classes) and how often the decision is the black box's (`agrees`).

        Errors: ConfigError for fewer scans than features.
        """
        seen, told = features(attributes.amounts(train[0].double())), _centred(train[1].double())
        if len(seen) <= seen.shape[1]:
            raise ConfigError(
                f"{len(seen)} rated scans for {seen.shape[1]} features of {len(attributes.names)} attributes; "
                "more scans or fewer attributes are needed."
            )
        other, wanted = features(attributes.amounts(held_out[0].double())), _centred(held_out[1].double())
        free = torch.ones(seen.shape[1]).double()
        free[0] = 0  # the mean is not shrunk
        fits = [torch.linalg.solve(seen.T @ seen + torch.diag(free * penalty), seen.T @ told) for penalty in PENALTIES]
        best = min(fits, key=lambda weight: float((other @ weight - wanted).square().mean()))
        error, spread = (other @ best - wanted).square().sum(), (wanted - wanted.mean(0)).square().sum()
        about: dict[str, Any] = {
            "explained": round(1 - float(error / spread.clamp(min=1e-12)), 3),
            "agrees": round(float(((other @ best).argmax(1) == wanted.argmax(1)).double().mean()), 3),
        }
        card = AttributeAgentCard(attributes.names, attributes.mean, attributes.spread, classes, blackbox_hash, about)
        return cls(card, best.float())

    def save(self, folder: Path) -> None:
        """Write agent.safetensors and card.yaml."""
        write_tensors({"weight": self.weight}, folder / WEIGHTS)
        write_card(self.card, folder)

    @classmethod
    def load(cls, folder: str | Path) -> AttributeAgent:
        """Read what `save` wrote. Errors: CheckpointError where there is nothing of the kind."""
        card, kept = read_card(AttributeAgentCard, Path(folder)), read_tensors(Path(folder) / WEIGHTS)
        size = len(card.names) + 1
        expected = (size * (size + 1) // 2, len(card.classes))
        if set(kept) != {"weight"} or kept["weight"].shape != expected:
            came = {name: tuple(value.shape) for name, value in kept.items()}
            raise CheckpointError(f"{folder} holds {came}; expected what its card says: weight of shape {expected}.")
        return cls(card, kept["weight"])


def features(amounts: Tensor) -> Tensor:
    """1, every amount, and every product of two, of amounts "b n": "b f" with f = (n + 1) (n + 2) / 2."""
    known = F.pad(amounts, (1, 0), value=1.0)
    products = einsum(known, known, "b i, b j -> b i j")
    first, second = torch.triu_indices(known.shape[1], known.shape[1], device=amounts.device)
    return products[:, first, second]


def _centred(logits: Tensor) -> Tensor:
    return logits - rearrange(logits.mean(1), "b -> b 1")
