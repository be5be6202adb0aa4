"""Attributes as the code: what a scan would look like with more or less of what people have names for (paper 002).

Directions in the semantic code of a generator, one an attribute, fitted to rated scans in closed form; no network is
trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import einsum, pack, rearrange, unpack
from torch import Tensor

from diffcf.cards import AttributesCard, read_card, write_card
from diffcf.errors import ConfigError
from diffcf.generators.space import Space, same_stochastic
from diffcf.types import Code
from diffcf.weights import read_tensors, write_tensors

WEIGHTS = "attributes.safetensors"
PENALTIES = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5)  # of the reader, chosen on held-out codes


@dataclass(frozen=True, eq=False)
class AttributeDirections:
    """What k attributes do to codes "s ...", and how they are read off them.

    Attributes are measured in spreads, (value - mean) / spread.

    directions: "k s ...", the change of the code for one spread more, all other attributes held. reader: "k s ...", and
    middle: "s ...": the amounts of a code z are the products of the reader with z - middle. card: names, units, range.
    """

    card: AttributesCard
    directions: Tensor
    reader: Tensor
    middle: Tensor

    @classmethod
    def fit(
        cls, names: Sequence[str], codes: Tensor, values: Tensor, held_out: tuple[Tensor, Tensor], generator_hash: str
    ) -> AttributeDirections:
        """Fit to codes "n s ..." and the attributes' values "n k" in their own units.

        The directions are the least-squares solution V of codes = middle + A V with the standardised attributes A, the
        reader is the ridge regression of A on the codes whose penalty does best on `held_out` codes and values. The
        card's `about` says how well each attribute is read there (R^2).

        Errors: ConfigError for an attribute that never varies, there or here, and for fewer scans than attributes.
        """
        if len(codes) <= len(names) + 1:
            raise ConfigError(f"{len(codes)} rated scans for {len(names)} attributes; more scans are needed.")
        mean, spread = values.mean(0), values.std(0)
        for where, rated in (("these scans", values), ("the held-out scans", held_out[1])):
            constant = [
                name for name, column in zip(names, rated.unbind(1), strict=True) if len(set(column.tolist())) < 2
            ]
            if constant:
                raise ConfigError(f"attribute(s) {', '.join(constant)} never vary in {where}; leave them out.")
        amounts = ((values - mean) / spread).double()
        middle = codes.mean(0)
        flat = (codes - middle).flatten(1).double()
        directions = torch.linalg.lstsq(amounts, flat).solution
        test = (held_out[0] - middle).flatten(1).double(), ((held_out[1] - mean) / spread).double()
        eigenvalues, vectors = torch.linalg.eigh(flat.T @ flat)
        turned = vectors.T @ (flat.T @ amounts)
        readers = [vectors @ (turned / (eigenvalues.clamp(min=0) + penalty)[:, None]) for penalty in PENALTIES]
        fits = [1 - ((test[0] @ reader - test[1]) ** 2).mean(0) / test[1].var(0, unbiased=False) for reader in readers]
        best = max(range(len(readers)), key=lambda k: float(fits[k].mean()))
        card = AttributesCard(
            names=list(names),
            mean=mean.tolist(),
            spread=spread.tolist(),
            low=amounts.amin(0).tolist(),
            high=amounts.amax(0).tolist(),
            generator_hash=generator_hash,
            about={"read": {name: round(float(fit), 3) for name, fit in zip(names, fits[best], strict=True)}},
        )
        shape = (len(names), *middle.shape)
        return cls(card, directions.float().reshape(shape), readers[best].T.float().reshape(shape), middle)

    def read(self, semantic: Tensor) -> Tensor:
        """Amounts "b k" of codes "b s ...", in spreads."""
        flat = rearrange(semantic - self.middle.to(semantic), "b ... -> b (...)")
        return flat @ rearrange(self.reader.to(semantic), "k ... -> (...) k")

    def without(self, frozen: Sequence[str]) -> AttributeDirections:
        """The same with some attributes frozen: left out of what can be changed.

        Errors: ConfigError for a name that is no attribute, and where nothing is left.
        """
        unknown = [name for name in frozen if name not in self.card.names]
        if unknown:
            raise ConfigError(
                f"frozen attribute(s) {', '.join(unknown)} do not exist; these directions have "
                f"{', '.join(self.card.names)}."
            )
        kept = [k for k, name in enumerate(self.card.names) if name not in frozen]
        if not kept:
            raise ConfigError("all attributes are frozen: nothing could change. Free at least one.")

        def of(values: list[Any]) -> list[Any]:
            return [values[k] for k in kept]

        card = self.card
        smaller = replace(
            card,
            names=of(card.names),
            mean=of(card.mean),
            spread=of(card.spread),
            low=of(card.low),
            high=of(card.high),
        )
        return AttributeDirections(smaller, self.directions[kept], self.reader[kept], self.middle)

    def save(self, folder: Path) -> None:
        """Write attributes.safetensors and card.yaml."""
        tensors = {"directions": self.directions, "reader": self.reader, "middle": self.middle}
        write_tensors(tensors, folder / WEIGHTS)
        write_card(self.card, folder)

    @classmethod
    def load(cls, folder: str | Path) -> AttributeDirections:
        """Read what `save` wrote. Errors: CheckpointError where there is nothing of the kind."""
        return cls(read_card(AttributesCard, Path(folder)), **read_tensors(Path(folder) / WEIGHTS))


class AttributeSpace(Space):
    """Scans "b s c h w" <-> Code(semantic "b k" = amounts in spreads, stochastic = what is held fixed, flattened).

    D'(a) = D(z + sum_k (a_k - a0_k) v_k, x_T), with z and x_T the scan's own codes and a0 the amounts read off z: at
    a = a0 it is the plain decode. Differentiable in the amounts.
    """

    def __init__(self, generator: Any, directions: AttributeDirections) -> None:
        super().__init__(generator)
        self.directions = directions

    def encode_semantic(self, image: Tensor) -> Tensor:
        """Amounts "b k" of scans "b s c h w"."""
        return self.directions.read(self.generator.encode_semantic(image))

    def encode(self, image: Tensor) -> Code:
        """Scan "b s c h w" in [-1, 1] -> amounts, and its own codes."""
        return self._packed(self.generator.encode(image))

    def decode(self, code: Code) -> Tensor:
        """Amounts -> scan "b s c h w"; not clamped. Only after `encode`, which learns the shapes of what is fixed."""
        return self.generator.decode(self._edited(code))

    def preview(self, code: Code) -> Tensor:
        """What one evaluation a slice says of it; decoded by a generator that has no such thing."""
        return getattr(self.generator, "preview", self.generator.decode)(self._edited(code))

    def refreshed(self, code: Code, seed: int) -> Code:
        """The same codes with a fresh x_T."""
        own, stochastic, _ = self._fixed(code)
        if not stochastic.numel():
            return code
        fresh = same_stochastic(self.generator, own, seed).to(stochastic)
        return Code(code.semantic, self._packed(Code(own, fresh)).stochastic)

    def _packed(self, own: Code) -> Code:
        amounts = self.directions.read(own.semantic)
        nothing = own.semantic.new_zeros(len(amounts), 0)
        stochastic = nothing if own.stochastic is None else own.stochastic
        fixed, self._shapes = pack([own.semantic, stochastic, amounts], "b *")
        return Code(amounts, fixed)

    def _fixed(self, code: Code) -> list[Tensor]:
        """The scan's semantic codes, its x_T (empty without one) and its own amounts."""
        assert code.stochastic is not None  # `encode` has packed them
        return unpack(code.stochastic, self._shapes, "b *")

    def _edited(self, code: Code) -> Code:
        own, stochastic, amounts = self._fixed(code)
        change = einsum(code.semantic - amounts, self.directions.directions.to(own), "b k, k ... -> b ...")
        return Code(own + change, stochastic if stochastic.numel() else None)
