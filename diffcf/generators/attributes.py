"""Attributes as the code: what a scan would look like with more or less of what people have names for (paper 002).

Directions in the semantic code of a generator, one an attribute, fitted to rated scans in closed form; no network is
trained. `diffcf.generators.attribute_flow` learns what they do to each scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import einsum, pack, rearrange, unpack
from torch import Tensor, nn

from diffcf.cards import AttributesCard, check_varying, read_card, write_card
from diffcf.errors import ConfigError
from diffcf.generators.space import Space, same_stochastic
from diffcf.types import Code
from diffcf.weights import read_tensors, write_tensors

WEIGHTS = "attributes.safetensors"
PENALTIES = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5)  # of the reader, chosen on held-out codes


class AttributeModel(Protocol):
    """What k attributes do to codes "b s ...", as amounts in spreads "b k", and how they are read off them.

    `abduct` and `predict` are the steps of a counterfactual in a causal model (Pearl): infer what else made this scan,
    held fixed, then say what it would be with other attributes. predict(abduct(z, a), a) = z.
    """

    @property
    def card(self) -> AttributesCard:
        """Names, units and range of the attributes, and of which generator the codes are."""
        ...

    def read(self, semantic: Tensor) -> Tensor:
        """Amounts "b k" of codes."""
        ...

    def abduct(self, semantic: Tensor, amounts: Tensor) -> Tensor:
        """What else made the codes, given their amounts: "b ...", of any shape."""
        ...

    def predict(self, held: Tensor, amounts: Tensor) -> Tensor:
        """The codes with other amounts; differentiable in the amounts."""
        ...


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
        card = AttributesCard.of(names, values, generator_hash)
        check_varying(names, held_out[1], "the held-out scans")
        amounts = card.amounts(values.double())
        middle = codes.mean(0)
        flat = (codes - middle).flatten(1).double()
        directions = torch.linalg.lstsq(amounts, flat).solution
        test = (held_out[0] - middle).flatten(1).double(), card.amounts(held_out[1].double())
        eigenvalues, vectors = torch.linalg.eigh(flat.T @ flat)
        turned = vectors.T @ (flat.T @ amounts)
        readers = [vectors @ (turned / (eigenvalues.clamp(min=0) + penalty)[:, None]) for penalty in PENALTIES]
        fits = [1 - ((test[0] @ reader - test[1]) ** 2).mean(0) / test[1].var(0, unbiased=False) for reader in readers]
        best = max(range(len(readers)), key=lambda k: float(fits[k].mean()))
        card.about["read"] = {name: round(float(fit), 3) for name, fit in zip(names, fits[best], strict=True)}
        shape = (len(names), *middle.shape)
        return cls(card, directions.float().reshape(shape), readers[best].T.float().reshape(shape), middle)

    def read(self, semantic: Tensor) -> Tensor:
        """Amounts "b k" of codes "b s ...", in spreads."""
        flat = rearrange(semantic - self.middle.to(semantic), "b ... -> b (...)")
        return flat @ rearrange(self.reader.to(semantic), "k ... -> (...) k")

    def abduct(self, semantic: Tensor, amounts: Tensor) -> Tensor:
        """What is not the attributes: codes "b s ..." less what their amounts "b k" put there."""
        return semantic - self._put(amounts)

    def predict(self, held: Tensor, amounts: Tensor) -> Tensor:
        """Codes "b s ..." of what `abduct` held, with amounts "b k". Differentiable in both."""
        return held + self._put(amounts)

    def _put(self, amounts: Tensor) -> Tensor:
        return einsum(amounts, self.directions.to(amounts), "b k, k ... -> b ...")

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

    D'(a) = D(model.predict(held, a), x_T), with x_T the scan's own, a0 the amounts read off its code z, and held =
    model.abduct(z, a0): at a = a0 it is the plain decode. Differentiable in the amounts.

    frozen: names of attributes that keep the scan's own amounts; the code is of the others, as the card `attributes`.

    Errors: ConfigError for a frozen name that is no attribute, and where nothing is left.
    """

    def __init__(self, generator: Any, model: AttributeModel, frozen: Sequence[str] = ()) -> None:
        super().__init__(generator)
        names = model.card.names
        if unknown := [name for name in frozen if name not in names]:
            raise ConfigError(f"frozen attribute(s) {', '.join(unknown)} do not exist; there are {', '.join(names)}.")
        self.free = [k for k, name in enumerate(names) if name not in frozen]
        if not self.free:
            raise ConfigError("all attributes are frozen: nothing could change. Free at least one.")
        self.model, self.attributes = model, model.card.only(self.free)

    def encode_semantic(self, image: Tensor) -> Tensor:
        """Amounts "b k" of scans "b s c h w"."""
        return self._model(image).read(self.generator.encode_semantic(image))[:, self.free]

    def encode(self, image: Tensor) -> Code:
        """Scan "b s c h w" in [-1, 1] -> amounts, and its own codes."""
        own, model = self.generator.encode(image), self._model(image)
        amounts = model.read(own.semantic)
        return self._packed(model.abduct(own.semantic, amounts), own.stochastic, amounts)

    def decode(self, code: Code) -> Tensor:
        """Amounts -> scan "b s c h w"; not clamped. Only after `encode`, which learns the shapes of what is fixed."""
        return self.generator.decode(self._edited(code))

    def preview(self, code: Code) -> Tensor:
        """What one evaluation a slice says of it; decoded by a generator that has no such thing."""
        return getattr(self.generator, "preview", self.generator.decode)(self._edited(code))

    def amounts(self, code: Code) -> Tensor:
        """Amounts "b n" of all attributes: those of the code, and the scan's own of the frozen ones."""
        own = self._fixed(code)[-1].to(code.semantic)
        return own.index_copy(1, torch.tensor(self.free, device=own.device), code.semantic)

    def refreshed(self, code: Code, seed: int) -> Code:
        """The same codes with a fresh x_T."""
        held, stochastic, amounts = self._fixed(code)
        if not stochastic.numel():
            return code
        own = self.model.predict(held, amounts)
        fresh = same_stochastic(self.generator, own, seed).to(stochastic)
        return Code(code.semantic, self._packed(held, fresh, amounts).stochastic)

    def _model(self, image: Tensor) -> AttributeModel:
        """The model, with its weights where the scans are; directions follow by themselves."""
        if isinstance(self.model, nn.Module):
            self.model.to(image.device)
        return self.model

    def _packed(self, held: Tensor, stochastic: Tensor | None, amounts: Tensor) -> Code:
        nothing = held.new_zeros(len(amounts), 0)
        fixed, self._shapes = pack([held, nothing if stochastic is None else stochastic, amounts], "b *")
        return Code(amounts[:, self.free], fixed)

    def _fixed(self, code: Code) -> list[Tensor]:
        """What is not attributes, x_T (empty without one), and the scan's own amounts of all attributes."""
        assert code.stochastic is not None  # `encode` has packed them
        return unpack(code.stochastic, self._shapes, "b *")

    def _edited(self, code: Code) -> Code:
        held, stochastic, _ = self._fixed(code)
        return Code(self.model.predict(held, self.amounts(code)), stochastic if stochastic.numel() else None)
