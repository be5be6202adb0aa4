"""Cards: what a set of weights expects of a scan and what it was made from, kept beside the weights as `card.yaml`.

The same words serve the classifier, the generator and the agent, so that two models can be checked against each
other before anything is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from diffcf.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

CARD_NAME = "card.yaml"


@dataclass(frozen=True)
class Window:
    """A display window in HU; maps [centre - width/2, centre + width/2] to [-1, 1].

    Works on anything with arithmetic (floats, arrays, tensors). `to_unit` does not clip: clip where it is meant.

    Errors: ConfigError for a width that is not above 0.
    """

    centre: float = -600.0
    width: float = 1600.0

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ConfigError(f"a window {self.width} wide: expected a width above 0.")

    def to_unit(self, hu: Any) -> Any:
        """HU -> window units: (hu - centre) / (width / 2); values outside the window fall outside [-1, 1]."""
        return (hu - self.centre) / (self.width / 2)

    def to_hu(self, unit: Any) -> Any:
        """Window units -> HU, the inverse of `to_unit`."""
        return unit * (self.width / 2) + self.centre


@dataclass(frozen=True)
class Preparation:
    """How a model's input is cut from a scan: which slices, which field, which grid, which window.

    field "crop": the slice is resampled in its plane to `spacing` mm (null: left at its own) and a square of
    `size` pixels is cut around a centre. field "resize": the whole slice is resized to `size` x `size`.

    Errors: ConfigError for a size or slices below 1, and a spacing that is not above 0.
    """

    window: Window = field(default_factory=Window)
    size: int = 64
    slices: int = 1
    field: Literal["crop", "resize"] = "crop"
    spacing: float | None = None
    modality: str = "CT"

    def __post_init__(self) -> None:
        if self.size < 1 or self.slices < 1:
            raise ConfigError(f"size {self.size}, slices {self.slices}: expected 1 or more of each.")
        if self.spacing is not None and not self.spacing > 0:
            raise ConfigError(f"spacing {self.spacing}: expected mm above 0, or null for the slice's own.")


def unlike(one: Preparation, other: Preparation) -> list[str]:
    """Where two preparations differ, in words."""
    names = [field.name for field in fields(Preparation)]
    return [
        f"{name} {getattr(one, name)} in place of {getattr(other, name)}"
        for name in names
        if getattr(one, name) != getattr(other, name)
    ]


def check_alike(one: Preparation, other: Preparation, whose: str) -> None:
    """Errors: ConfigError where slices of the one are no slices of the other, however many of them."""
    found = unlike(replace(one, slices=other.slices), other)
    if found:
        raise ConfigError(f"{whose} have preparations that differ: {', '.join(found)}; expected the same images.")


@dataclass(frozen=True)
class ClassifierCard:
    """What a black box is: architecture, input and classes.

    Errors: ConfigError for fewer than two classes, two of the same name, and a std that is not above 0.
    """

    preparation: Preparation
    classes: list[str]
    format: Literal["timm", "export"] = "timm"
    architecture: str = "densenet121"
    architecture_args: dict[str, Any] = field(default_factory=dict)
    slice_mode: Literal["channels", "average", "concatenate"] = "channels"
    mean: float = 0.0  # normalisation after the window: (unit - mean) / std
    std: float = 1.0
    weights: str = "model.safetensors"
    about: dict[str, Any] = field(default_factory=dict)  # data, terms, training command, figures

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ConfigError(f"std {self.std}: expected a number above 0.")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"classes {self.classes}: expected two or more different names.")


@dataclass(frozen=True)
class Sampling:
    """How a generator turns images into codes and back.

    sampler: "ddim" as in paper 004; "dpm", DPM-Solver++(2M) to decode and DDIM to encode; "obelm", exactly invertible.
    steps: network evaluations each way. spacing: where the steps lie (`diffcf.generators.sampling.make_grid`).
    """

    sampler: Literal["ddim", "dpm", "obelm"] = "ddim"
    steps: int = 20
    spacing: Literal["uniform", "quadratic", "cubic", "logsnr"] = "uniform"


@dataclass(frozen=True)
class GeneratorCard:
    """What a generator was trained on, and how it is sampled unless something else is asked.

    trust: file of the held-out statistics that the trust checks compare with.
    """

    preparation: Preparation
    sampling: Sampling = field(default_factory=Sampling)
    trust: str | None = "trust.safetensors"
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AgentCard:
    """Which black box (by content hash) an agent imitates, over which generator, and how well on held-out cases."""

    classes: list[str]
    slices: int
    blackbox_hash: str
    generator_hash: str
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OneStepCard:
    """Which generator (by content hash) a one-step decoder was distilled from, and which sampling it imitates."""

    generator_hash: str
    sampling: Sampling = field(default_factory=Sampling)
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AttributesCard:
    """Names of attributes, with mean and spread in their own units and the range seen, in spreads; and over which
    generator (by content hash) their directions were fitted."""

    names: list[str]
    mean: list[float]
    spread: list[float]
    low: list[float]
    high: list[float]
    generator_hash: str
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str], values: Tensor, generator_hash: str) -> AttributesCard:
        """Of the values "n k" of n scans, in their own units.

        Errors: ConfigError for an attribute that never varies.
        """
        check_varying(names, values, "these scans")
        mean, spread = values.mean(0), values.std(0)
        amounts = (values - mean) / spread
        ends = (amounts.amin(0).tolist(), amounts.amax(0).tolist())
        return cls(list(names), mean.tolist(), spread.tolist(), *ends, generator_hash)

    def amounts(self, values: Tensor) -> Tensor:
        """Values "n k" in their own units, in spreads."""
        return (values - values.new_tensor(self.mean)) / values.new_tensor(self.spread)

    def only(self, kept: Sequence[int]) -> AttributesCard:
        """Of these attributes alone, by position."""
        lists = {name: [getattr(self, name)[k] for k in kept] for name in ("names", "mean", "spread", "low", "high")}
        return dataclasses.replace(self, **lists)


@dataclass(frozen=True)
class AttributeAgentCard:
    """Which black box (by content hash) an agent of attributes imitates, and from which: names, with the mean and the
    spread that amounts are measured by, as in the `AttributesCard`."""

    names: list[str]
    mean: list[float]
    spread: list[float]
    classes: list[str]
    blackbox_hash: str
    about: dict[str, Any] = field(default_factory=dict)


def check_varying(names: Sequence[str], values: Tensor, where: str) -> None:
    """Refuse attributes whose values "n k" are all the same (ConfigError); where: in what scans, in words."""
    if constant := [name for name, column in zip(names, values.T.tolist(), strict=True) if len(set(column)) < 2]:
        raise ConfigError(f"attribute(s) {', '.join(constant)} never vary in {where}; leave them out.")


Card = TypeVar("Card")
CARDS = (ClassifierCard, GeneratorCard, AgentCard, OneStepCard, AttributesCard, AttributeAgentCard)


def parse_card(kind: type[Card], data: Mapping[str, Any], source: str) -> Card:
    """Build a card from plain data, checking every field's name and type.

    Errors: CheckpointError naming `source` and the field.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "card")
    try:
        return parser.instantiate(parser.parse_object({"card": dict(data)}))["card"]
    except Exception as error:  # jsonargparse raises several kinds
        likely = [other for other in CARDS if _fits(other, data)]
        mistaken = likely and kind not in likely
        hint = f"It looks like a {likely[0].__name__}: another model's folder? " if mistaken else ""
        said = str(error).rstrip(". ")
        if said.endswith(("Got value: True", "Got value: False")):
            hint += "Put yes, no, on and off in quotes: they are not text in YAML. "
        if "guidance" in data:
            hint += "It is that of a classifier that reads saliency maps: `diffcf.classifiers.guided` (docs/acat.md). "
        if '"card.mean"' in said or '"card.std"' in said:
            hint += "What differs between channels belongs into the network ('Your own classifier'). "
        raise CheckpointError(
            f"{source} is not a valid {kind.__name__}: {said}. {hint}See EXTENDING.md, 'Cards'."
        ) from error


def _fits(kind: type, data: Mapping[str, Any]) -> bool:
    return set(data) <= {field.name for field in dataclasses.fields(kind)}


def read_card(kind: type[Card], path: Path) -> Card:
    """Read `card.yaml` (or the folder that holds it)."""
    import yaml

    path = path / CARD_NAME if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"no card at {path}; write a card.yaml beside the weights (EXTENDING.md, 'Cards').")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}, expected a mapping of a {kind.__name__}'s fields.")
    return parse_card(kind, data, str(path))


def write_card(card: Any, path: Path) -> None:
    """Write a card dataclass as YAML to `path` (a folder takes `card.yaml`)."""
    import yaml

    path = path / CARD_NAME if path.is_dir() else path
    path.write_text(yaml.safe_dump(dataclasses.asdict(card), sort_keys=False, allow_unicode=True), encoding="utf-8")
