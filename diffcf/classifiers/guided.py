"""Classifiers that read a saliency map beside the image, or change their features otherwise (paper 003).

Any timm network is wrapped by naming its stages: while it runs, a `Guide` replaces what they give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from diffcf.cards import ClassifierCard, parse_card, read_card, write_card
from diffcf.classifiers.attention import Attention
from diffcf.classifiers.competitors import HSM, SMIC, SalClassNet
from diffcf.classifiers.guides import Dropout, Guidance, SelfAttention, SpatialAttention, Unguided
from diffcf.classifiers.network import (
    SlicedClassifier,
    TimmNetwork,
    load_state,
    load_weights,
    normalised,
    unwrapped,
)
from diffcf.classifiers.stages import backbone_of, watched
from diffcf.errors import CheckpointError, ConfigError
from diffcf.folders import whole_folder
from diffcf.weights import MODEL_FOLDER, read_tensors, resolve, write_tensors

KINDS: tuple[type[Guidance], ...] = (
    Attention, Dropout, HSM, SalClassNet, SelfAttention, SMIC, SpatialAttention, Unguided,
)  # fmt: skip
WEIGHTS = "model.safetensors"
ROUNDING = 1e-3  # by which an interpolated map may leave [0, 1]


class GuidedClassifier(nn.Module):
    """A network of a card, guided: forward(image "b s 1 h w", saliency "b s 1 h w") -> logits "b k".

    Every slice goes through the network by itself; the guide joins their features before the last module. `card` and
    `guidance` say what it is, `network` is the image network and `guide` what guides it.

    Errors: ConfigError for a card that takes several slices otherwise than by averaging, an architecture that shows no
    features, and stages that it does not have; CheckpointError as in `build_network`.
    """

    def __init__(self, card: ClassifierCard, guidance: Guidance) -> None:
        super().__init__()
        if card.preparation.slices > 1 and card.slice_mode != "average":
            raise ConfigError(
                f"slice_mode {card.slice_mode!r} with {card.preparation.slices} slices: a guided classifier reads one "
                "slice at a time; use slice_mode 'average'."
            )
        self.card, self.guidance = card, guidance
        self.network = guidance.network(card)
        if self.network.end is None:
            raise ConfigError(f"{card.architecture} shows no features that slices could be joined by; use another one.")
        self.guide = guidance.guide(backbone_of(self.network, card, guidance.named))

    def start_from(self, baseline: SlicedClassifier | Mapping[str, Tensor]) -> None:
        """Copy the weights of a baseline of the same card, or its state dict with timm's own keys.

        Errors: ConfigError for a baseline of another card, CheckpointError for weights that do not fit.
        """
        weights = baseline
        if isinstance(baseline, SlicedClassifier):
            _check_same(baseline.card, self.card)
            if not isinstance(baseline.network, TimmNetwork):
                raise ConfigError("the baseline is an export, whose weights have no names; use a timm architecture.")
            weights = baseline.network.net.state_dict()
        assert isinstance(weights, Mapping)
        load_weights(self.network, self.guide.fitted(unwrapped(weights), self.network.net), "the baseline")
        self.guide.start_from(self.network.net)

    def features(self, image: Tensor, saliency: Tensor | None = None) -> Tensor:
        """What the last module reads of all slices together, "b f". Errors: as `forward`."""
        picture = rearrange(normalised(image, self.card), "b s c h w -> (b s) c h w")
        maps = self._maps(image, saliency)
        masks = self.guide.masks(picture, maps)
        with watched(
            self.network.net, self.guide.stages, lambda stage, found: self.guide.modulate(stage, found, masks)
        ):
            found = self.network.features(self.guide.picture(picture, maps))
        return self.guide.join(rearrange(found, "(b s) f -> b s f", b=len(image)))

    def forward(self, image: Tensor, saliency: Tensor | None = None) -> Tensor:
        """Scans in [-1, 1] of the card's window and their maps in [0, 1] -> logits "b k".

        saliency: may be left out where `guidance.reads_maps` is false. Errors: ConfigError for images that do not fit
        the card, maps of another size or count, and values that are not finite or leave [0, 1].
        """
        end = self.network.end
        assert end is not None
        return end(self.features(image, saliency))

    def _maps(self, image: Tensor, saliency: Tensor | None) -> Tensor:
        """The maps of all slices, "(b s) 1 h w"; of a guide that reads none, 0."""
        if not self.guidance.reads_maps:
            return torch.zeros_like(rearrange(image, "b s c h w -> (b s) c h w"))
        if saliency is None or saliency.shape != image.shape:
            came = "none" if saliency is None else str(tuple(saliency.shape))
            raise ConfigError(
                f"saliency maps {came} for images {tuple(image.shape)}: {type(self.guidance).__name__} reads one map "
                "a slice, of the images' size, in the images' order."
            )
        if not ((saliency >= -ROUNDING) & (saliency <= 1 + ROUNDING)).all():  # NaN is neither
            raise ConfigError("saliency maps hold NaN or values outside [0, 1]; normalise them first.")
        return rearrange(saliency, "b s c h w -> (b s) c h w")


class WithMap(nn.Module):
    """A guided classifier with the map of one scan, "1 s 1 h w", fixed: images "b s 1 h w" -> logits "b k".

    For what explains or searches with a classifier of images alone. All images have to be that scan or edits of it, in
    any number: which sample of a batch a search asks about cannot be known here, so that maps of several scans would be
    mistaken for each other unnoticed. Go through scans one by one.

    Errors: ConfigError for maps of several scans.
    """

    def __init__(self, model: GuidedClassifier, saliency: Tensor) -> None:
        super().__init__()
        if saliency.ndim != 5 or len(saliency) != 1:
            raise ConfigError(f"saliency of shape {tuple(saliency.shape)}: expected one scan's map (1, s, 1, h, w).")
        self.model, self.card = model, model.card
        self.register_buffer("saliency", saliency.detach().clone(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits "b k"."""
        saliency = self.get_buffer("saliency")
        return self.model(image, saliency.expand(len(image), -1, -1, -1, -1))


@dataclass(frozen=True)
class GuidedCard:
    """What a guided classifier is: the card of its network, the guidance's name and settings."""

    classifier: ClassifierCard
    guidance: str
    settings: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def save_guided(model: GuidedClassifier, about: Mapping[str, Any], folder: Path) -> None:
    """Write all weights as safetensors, and `card.yaml` with what there is to say `about` it; the folder appears whole
    or not at all, and an earlier model in it is replaced.

    Errors: ConfigError for weights that are not finite, a guidance that is not in `KINDS`, and a folder of something
    else.
    """
    name = type(model.guidance).__name__
    if type(model.guidance) not in KINDS:
        raise ConfigError(f"{name} could not be read again; add it to KINDS first.")
    tensors = model.state_dict()
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise ConfigError(f"{bad[0]} holds NaN or infinity; nothing is written.")
    card = GuidedCard(model.card, name, asdict(model.guidance), dict(about))  # type: ignore[arg-type]
    with whole_folder(folder, MODEL_FOLDER, overwrite=True) as whole:
        write_tensors(tensors, whole / WEIGHTS)
        write_card(card, whole)


def load_guided(folder: str | Path) -> GuidedClassifier:
    """Read a guided classifier: in eval mode, frozen. Nothing is unpickled.

    Errors: CheckpointError where weights or card are missing or damaged, or do not fit each other; ConfigError for
    settings that cannot be.
    """
    path = resolve(folder)
    card = read_card(GuidedCard, path)
    kinds = {kind.__name__: kind for kind in KINDS}
    if card.guidance not in kinds:
        raise CheckpointError(f"{path}: no guidance {card.guidance!r}; expected one of {', '.join(sorted(kinds))}.")
    model = GuidedClassifier(card.classifier, parse_card(kinds[card.guidance], card.settings, str(path)))
    load_state(model, read_tensors(path / WEIGHTS), str(path / WEIGHTS))
    return model.eval().requires_grad_(False)


def _check_same(baseline: ClassifierCard, card: ClassifierCard) -> None:
    """Refuse a baseline whose weights mean something else (ConfigError)."""
    free = {"about": {}, "weights": card.weights, "slice_mode": card.slice_mode}  # the shapes tell slice modes apart
    other = replace(baseline, **free)
    own = replace(card, **free)
    different = [name for name in vars(own) if getattr(other, name) != getattr(own, name)]
    if different:
        raise ConfigError(f"the baseline's card differs in {', '.join(different)}; start from one of the same card.")
