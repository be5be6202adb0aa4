"""Any foreign classifier as a black box: weights and a card in, logits out, frozen.

Formats: `timm`, a state dict of a timm architecture, and `export`, a program of torch.export (EXTENDING.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from diffcf.cards import CARD_NAME, ClassifierCard, Preparation, read_card, write_card
from diffcf.classifiers.blackbox_view import make_view
from diffcf.classifiers.exported import ExportedNetwork, load_exported
from diffcf.classifiers.network import (
    Network,
    SlicedClassifier,
    TimmNetwork,
    build_network,
    load_weights,
    probe,
)
from diffcf.errors import CheckpointError, ConfigError
from diffcf.folders import whole_folder
from diffcf.types import unit_of
from diffcf.weights import MODEL_FOLDER, content_hash, part_of, read_tensors, write_tensors


@dataclass(frozen=True)
class Capabilities:
    """What a black box can give: logits always, penultimate features, gradients in its input."""

    logits: bool
    features: bool
    input_gradients: bool


class BlackBox(SlicedClassifier):
    """A classifier as it came: frozen, in eval mode whatever is asked, single precision.

    forward(image "b s c h w" in [-1, 1] of `card.preparation.window`) -> logits "b k"; features(image) -> "b f", with
    `head(features(x)) == forward(x)` where `head` is not None.
    """

    def __init__(self, network: Network, card: ClassifierCard) -> None:
        super().__init__(network, card)
        if isinstance(network, TimmNetwork):  # an export has no mode
            network.eval()
        self.requires_grad_(False)
        self.training = False

    def train(self, mode: bool = True) -> BlackBox:
        """Does nothing: a black box that learned, or took batch statistics, would be another one."""
        return self

    @cached_property
    def capabilities(self) -> Capabilities:
        """What it can give, found by trying it once."""
        weight = next(self.parameters(), torch.zeros(()))
        image = self.example().to(weight.device).requires_grad_()
        gradient = None
        try:
            with torch.enable_grad():
                logits = self(image)
                uneven = (logits * torch.arange(1, logits.shape[1] + 1).to(logits)).sum()  # probabilities sum to 1
                (gradient,) = torch.autograd.grad(uneven, image) if uneven.requires_grad else (None,)
        except (RuntimeError, NotImplementedError):  # an operator without a derivative
            gradient = None
        usable = gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())
        return Capabilities(logits=True, features=self.head is not None, input_gradients=usable)

    def view_of(self, preparation: Preparation) -> Callable[[Tensor], Tensor]:
        """An adapter of images "... h w" of another preparation (a generator's) to this black box's input.

        Differentiable; the identity where both are the same. See `make_view` for what can be adapted. Errors:
        ConfigError for what cannot.
        """
        return make_view(preparation, self.card.preparation)

    def example(self, batch: int = 2) -> Tensor:
        """Images "b s 1 h w" in [-1, 1] to try it with; they show nothing."""
        preparation = self.card.preparation
        return rearrange(probe(batch, preparation.slices, preparation.size), "b s h w -> b s 1 h w")


def load_blackbox(source: str | Path, card: str | Path | None = None) -> BlackBox:
    """Read a black box.

    source: folder or bundled name with `card.yaml` and weights, a set ("lidc") that holds a `classifier`, or a bare
    file of weights. card: of a bare file; where it is not given, a card beside the file that names it is taken.

    Errors: CheckpointError where weights or card are missing, do not fit each other, or would have to be unpickled.
    """
    made, weights = _find(source, card)
    if made.format == "export":
        network: Network = _checked_export(load_exported(weights), made, weights)
    else:
        network = build_network(made)
        load_weights(network, read_tensors(weights), str(weights))
    blackbox = BlackBox(network, made)
    _try(blackbox, weights)
    return blackbox


def save_blackbox(
    model: SlicedClassifier | Mapping[str, Tensor], card: ClassifierCard, folder: Path, *, half: bool = False
) -> None:
    """Write weights as safetensors, and `card.yaml`; the folder appears whole or not at all.

    model: of a timm architecture, or its state dict with timm's own keys. half: store floats in half precision, half
    the size; they are computed with in single precision all the same. An earlier black box in `folder` is replaced.

    Errors: ConfigError for another format, weights that half precision cannot hold, and a folder of something else.
    """
    network = model.network if isinstance(model, SlicedClassifier) else None
    if network is not None and not isinstance(network, TimmNetwork):
        raise ConfigError("an export is no timm architecture; copy its .pt2 file and its card instead.")
    if card.format != "timm" or Path(card.weights).suffix != ".safetensors" or Path(card.weights).name != card.weights:
        raise ConfigError(
            f"format {card.format!r} with weights {card.weights!r}: a black box is saved as format timm, in a file "
            "NAME.safetensors beside its card."
        )
    state: Mapping[str, Tensor] = model if network is None else network.net.state_dict()  # type: ignore[assignment]
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if half:
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise ConfigError(f"{bad[0]} holds NaN, infinity or what half precision cannot hold; nothing is written.")
    with whole_folder(folder, MODEL_FOLDER, overwrite=True) as whole:
        write_tensors(tensors, whole / card.weights)
        write_card(card, whole)


def inspect_blackbox(source: str | Path, card: str | Path | None = None) -> list[tuple[str, str]]:
    """What a black box is, reads and can give, as names and text; capabilities are found by trying them.

    Errors: as `load_blackbox`.
    """
    blackbox = load_blackbox(source, card)
    made, preparation = blackbox.card, blackbox.card.preparation
    low, high = (preparation.window.to_hu(edge) for edge in (-1.0, 1.0))
    spacing = "their own spacing" if preparation.spacing is None else f"{preparation.spacing:g} mm"
    field = f"a crop at {spacing}" if preparation.field == "crop" else "the whole slice, resized"
    arguments = "".join(f", {name}={value}" for name, value in made.architecture_args.items())
    can = blackbox.capabilities
    pairs = [
        ("format", made.format),
        ("architecture", "unknown to the card" if made.format == "export" else made.architecture + arguments),
        ("parameters", f"{sum(weight.numel() for weight in blackbox.parameters()):,}"),
        ("classes", ", ".join(f"{index} = {name}" for index, name in enumerate(made.classes))),
        ("input", f"{preparation.slices} slice(s) of {preparation.size} x {preparation.size} pixels, {field}"),
        ("modality", preparation.modality),
        ("window", f"{low:g} to {high:g} {unit_of(preparation.modality)}"),
        ("slice mode", made.slice_mode),
        ("normalisation", f"(value - {made.mean:g}) / {made.std:g}, of values in [-1, 1]"),
        ("logits", "yes"),
        (
            "features",
            f"yes, {blackbox.head.in_features}" if blackbox.head is not None else "no: agents need the KL loss",
        ),
        ("input gradients", "yes" if can.input_gradients else "no"),
        ("content hash", content_hash(source, "classifier", card=card)[:12]),
    ]
    return pairs + [(f"about {name}", _in_words(value)) for name, value in made.about.items() if value]


def _find(source: str | Path, card: str | Path | None) -> tuple[ClassifierCard, Path]:
    """The card, and the file of weights that it belongs to."""
    path = part_of(source, "classifier")
    if path.is_dir():
        if card is not None:
            raise ConfigError(
                f"--card is of a bare file of weights, and {path} is a folder, which agents and results know by the "
                "card.yaml in it. Give the file of weights itself, or put the card into a copy of the folder."
            )
        found = read_card(ClassifierCard, path)
        return found, path / found.weights
    if card is not None:
        return read_card(ClassifierCard, Path(card)), path
    beside = path.parent / CARD_NAME
    found = read_card(ClassifierCard, beside) if beside.is_file() else None
    if found is None or found.weights != path.name:
        raise CheckpointError(
            f"{path} has no card. If it is a bare file of weights, give its card with --card, or put a card.yaml that "
            "names it beside it (EXTENDING.md, 'Cards')."
        )
    return found, path


def _checked_export(network: ExportedNetwork, card: ClassifierCard, weights: Path) -> ExportedNetwork:
    preparation = card.preparation
    channels = preparation.slices if card.slice_mode == "channels" else 1
    expected = (channels, preparation.size, preparation.size)
    if any(side not in (None, asked) for side, asked in zip(network.shape, expected, strict=True)):
        raise CheckpointError(
            f"{weights} takes pictures of {_sides(network.shape)}, but its card says {_sides(expected)} "
            "(slices x size x size); correct the card or export the model again. One that takes colour pictures is "
            "exported in a wrapper that repeats the grey one (EXTENDING.md, 'Your own classifier')."
        )
    if card.slice_mode == "concatenate":
        raise CheckpointError(
            f"{weights}: an export takes its slices as channels or averages them; for slice_mode 'concatenate' its "
            "classification layer is too narrow."
        )
    return network


@torch.no_grad()
def _try(blackbox: BlackBox, weights: Path) -> None:
    """Refuse what does not return one finite logit a class."""
    classes = len(blackbox.card.classes)
    try:
        logits = blackbox(blackbox.example())
    except (RuntimeError, AssertionError, TypeError) as error:
        raise CheckpointError(f"{weights} does not run on the input that its card describes: {error}") from error
    if logits.shape != (2, classes) or not logits.is_floating_point() or not logits.isfinite().all():
        raise CheckpointError(
            f"{weights} returns {logits.dtype} of shape {tuple(logits.shape)} for two scans; expected finite logits "
            f"of shape (2, {classes}), one for each class of the card."
        )


def _in_words(value: Any) -> str:
    return ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)


def _sides(shape: tuple[int | None, ...]) -> str:
    return " x ".join("any" if side is None else str(side) for side in shape)
