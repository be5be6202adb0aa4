"""Classifiers over the slices of a scan, built from a card: what a black box is inside, and what is trained."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from diffcf.cards import ClassifierCard
from diffcf.errors import CheckpointError, ConfigError

SHOWN = 5  # names of weights that one error message lists
NOT_ARGUMENTS = (  # the card or the loader says these; some of them would download weights, or unpickle a file
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes", "in_chans",
)  # fmt: skip


class Network(Protocol):
    """A network over pictures "b c h w" that are normalised already."""

    @property
    def head(self) -> nn.Linear | None:
        """The final linear layer, where there is one."""
        ...

    def features(self, picture: Tensor) -> Tensor:
        """What the last module reads, "b f"; only where one was found."""
        ...

    def __call__(self, picture: Tensor) -> Tensor:
        """Logits "b k"."""
        ...


class TimmNetwork(nn.Module):
    """A network of timm with random weights; `net` is timm's own module, and its keys are those of the weights.

    channels: of the pictures. slices_in_head: the classification layer reads the features of so many pictures,
    concatenated.
    """

    def __init__(self, card: ClassifierCard, channels: int, slices_in_head: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.net: Any = _create(card, channels)
        self.end_name = _found_end(self.net, card, channels)
        head = self.head
        if slices_in_head > 1 and head is not None:
            wider = nn.Linear(head.in_features * slices_in_head, head.out_features, bias=head.bias is not None)
            self.net.set_submodule(cast(str, self.end_name), wider)

    @property
    def end(self) -> nn.Module | None:
        """The module that turns features "b f" into logits "b k"; None where timm's `forward_head` ends in none."""
        return None if self.end_name is None else self.net.get_submodule(self.end_name)

    @property
    def head(self) -> nn.Linear | None:
        """`end` where it is linear."""
        end = self.end
        return end if isinstance(end, nn.Linear) else None

    def features(self, picture: Tensor) -> Tensor:
        """What `end` reads, "b c h w" -> "b f"."""
        return self.net.forward_head(self.net.forward_features(picture), pre_logits=True)

    def forward(self, picture: Tensor) -> Tensor:
        """Logits, "b c h w" -> "b k"."""
        return self.net(picture)


class SlicedClassifier(nn.Module):
    """A network over scans "b s c h w", as the card's `slice_mode` says: the part of a black box that can be trained.

    Errors: CheckpointError where slices are to be averaged or concatenated and the network shows no features.
    """

    def __init__(self, network: Network, card: ClassifierCard) -> None:
        super().__init__()
        self.network = network
        self.card = card
        needed = network.head if card.slice_mode == "concatenate" else self._end
        if needed is None and card.slice_mode != "channels":
            raise CheckpointError(
                f"slice_mode {card.slice_mode!r} joins the features that the classification layer reads, but "
                f"{card.architecture if card.format == 'timm' else 'an export'} shows none; use slice_mode 'channels'."
            )

    @property
    def head(self) -> nn.Linear | None:
        """The final linear layer, `head(features(x)) == forward(x)`; None where there is none to be found."""
        return self.network.head

    @property
    def _end(self) -> nn.Module | None:
        return self.network.end if isinstance(self.network, TimmNetwork) else self.network.head

    def features(self, image: Tensor) -> Tensor:
        """Penultimate features of all slices together, "b s c h w" -> "b f".

        Errors: ConfigError where the network has none, and for images that do not fit the card.
        """
        if self.network.head is None:
            raise ConfigError(
                "this black box shows no features: no linear classification layer was found. Use its logits, and the "
                "KL loss for an agent."
            )
        return self._joined(image)

    def forward(self, image: Tensor) -> Tensor:
        """Scans "b s c h w" in [-1, 1] of the card's window -> logits "b k".

        Errors: ConfigError for images that do not fit the card.
        """
        end = self._end
        if end is None or (self.network.head is None and self.card.slice_mode == "channels"):
            return self.network(rearrange(normalised(image, self.card), "b s c h w -> b (s c) h w"))
        return end(self._joined(image))

    def _joined(self, image: Tensor) -> Tensor:
        """What the last module reads of all slices together, "b f"."""
        picture = normalised(image, self.card)
        if self.card.slice_mode == "channels":
            return self.network.features(rearrange(picture, "b s c h w -> b (s c) h w"))
        slices = image.shape[1]
        each = self.network.features(rearrange(picture, "b s c h w -> (b s) c h w"))
        if self.card.slice_mode == "average":
            return reduce(each, "(b s) f -> b f", "mean", s=slices)
        return rearrange(each, "(b s) f -> b (s f)", s=slices)


def normalised(image: Tensor, card: ClassifierCard) -> Tensor:
    """Scans "b s 1 h w" as the network reads them, (value - mean) / std.

    Errors: ConfigError for images that do not fit the card.
    """
    preparation = card.preparation
    expected = (preparation.slices, 1, preparation.size, preparation.size)
    if image.ndim != 5 or tuple(image.shape[1:]) != expected:
        raise ConfigError(
            f"images of shape {tuple(image.shape)}: this classifier reads (b, {', '.join(map(str, expected))}); "
            "prepare scans with its card's preparation, or adapt another model's images with view_of."
        )
    return (image - card.mean) / card.std


def build_network(card: ClassifierCard) -> TimmNetwork:
    """An untrained network of a card with format timm, wide enough for the card's slices.

    Errors: CheckpointError for an architecture that timm does not have, or that does not take this input; ConfigError
    for another format.
    """
    if card.format != "timm":
        raise ConfigError(f"format {card.format!r} cannot be built anew, only loaded; use format timm.")
    slices = card.preparation.slices
    return TimmNetwork(
        card,
        channels=slices if card.slice_mode == "channels" else 1,
        slices_in_head=slices if card.slice_mode == "concatenate" else 1,
    )


def build_classifier(card: ClassifierCard) -> SlicedClassifier:
    """An untrained classifier, to be trained. Errors: as `build_network`."""
    return SlicedClassifier(build_network(card), card)


def load_weights(network: TimmNetwork, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy a state dict into a timm network; of one with a single logit, for two classes, as `two_logits` has it.

    Errors: as `load_state`.
    """
    tensors = dict(unwrapped(tensors))
    head = network.head
    if head is not None and head.out_features == 2:
        for name in (f"{network.end_name}.weight", f"{network.end_name}.bias"):
            if name in tensors and len(tensors[name]) == 1:
                tensors[name] = after_zero(tensors[name])
    load_state(network.net, tensors, source)


def two_logits(head: nn.Linear) -> nn.Linear:
    """A linear head with a single logit z, as trained with a sigmoid, as one with (0, z): the same probabilities.

    Any other head as it is.
    """
    if head.out_features != 1:
        return head
    both = nn.Linear(head.in_features, 2, bias=head.bias is not None)
    both.load_state_dict({name: after_zero(value) for name, value in head.state_dict().items()})
    return both


def after_zero(row: Tensor) -> Tensor:
    """A row of zeros before the only one, "1 ..." -> "2 ..."."""
    return torch.cat([torch.zeros_like(row), row])


def unwrapped(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict without the prefix that distributed training puts before its names."""
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy a state dict into a module, names and shapes exactly; half precision becomes single.

    Errors: CheckpointError that lists the first keys that are missing, unexpected or of another shape, or not finite.
    """
    expected = module.state_dict()
    wrong = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": sorted(name for name in tensors if name not in expected),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
    }
    if any(wrong.values()):
        listed = "".join(
            f"\n  {len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
            for kind, names in wrong.items()
            if names
        )
        raise CheckpointError(
            f"{source} does not hold the weights that its card describes; check the card's architecture, "
            f"architecture_args, classes, slices and slice_mode:{listed}"
        )
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise CheckpointError(f"{source}: NaN or infinity in {', '.join(bad[:SHOWN])}; the weights are spoiled.")
    module.load_state_dict(dict(tensors))


def probe(batch: int, channels: int, size: int) -> Tensor:
    """Pictures "b c h w" in [-1, 1] to try a network with: smooth, all different, the same every time."""
    angle = rearrange(
        torch.arange(float(batch * channels * size * size)), "(b c h w) -> b c h w", b=batch, c=channels, h=size
    )
    return torch.sin(angle * 0.37) * torch.cos(angle * 0.0113)


def _create(card: ClassifierCard, channels: int) -> nn.Module:
    import timm

    from diffcf.classifiers import bagnet, cnn7, hierarchical, icnn, multitask  # noqa: F401  (our own architectures register themselves)

    refused = [name for name in card.architecture_args if name in NOT_ARGUMENTS]
    if refused:
        raise CheckpointError(
            f"architecture_args holds {', '.join(refused)}: classes and slices come from the rest of the card, and "
            "weights from its file; leave them out."
        )
    if not timm.is_model(card.architecture) or ":" in card.architecture:
        near = difflib.get_close_matches(card.architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise CheckpointError(f"timm has no architecture {card.architecture!r}.{hint}")
    try:
        return timm.create_model(
            card.architecture,
            pretrained=False,
            num_classes=len(card.classes),
            in_chans=channels,
            **card.architecture_args,
        )
    except Exception as error:  # whatever an architecture makes of arguments that it does not know
        raise CheckpointError(
            f"timm cannot build {card.architecture} with {card.architecture_args} and {channels} input channel(s): "
            f"{type(error).__name__}: {error}"
        ) from error


def _found_end(net: Any, card: ClassifierCard, channels: int) -> str | None:
    """The name of the module whose input `forward_head(..., pre_logits=True)` gives and whose output are the logits;
    None where there is none.

    Tried rather than believed: timm's architectures differ in what they call features.
    """
    picture = probe(2, channels, card.preparation.size)
    training = net.training
    net.eval()
    try:
        with torch.no_grad():
            try:
                logits = net(picture)
            except Exception as error:  # an assertion on the size, a shape that vanishes, ...
                raise CheckpointError(
                    f"{card.architecture} does not take pictures of {channels} x {card.preparation.size} x "
                    f"{card.preparation.size} ({error}); name what it needs in architecture_args, such as img_size."
                ) from error
            if not isinstance(logits, Tensor) or logits.shape != (2, len(card.classes)):
                raise CheckpointError(f"{card.architecture} does not return one logit a class.")
            return _tried_end(net, picture, logits)
    finally:
        net.train(training)


def _tried_end(net: Any, picture: Tensor, logits: Tensor) -> str | None:
    try:
        layer = net.get_classifier()
        features = net.forward_head(net.forward_features(picture), pre_logits=True)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    names = [name for name, module in net.named_modules() if module is layer]
    if not names or not isinstance(layer, nn.Module) or features.ndim != 2:
        return None
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        net(picture)
    finally:
        handle.remove()
    # Some heads start with weights of zero, which would make any features look right: compare what the layer read.
    reads_them = len(seen) == 1 and seen[0].shape == features.shape and torch.allclose(seen[0], features, atol=1e-5)
    return names[0] if reads_them and torch.allclose(layer(features), logits, atol=1e-5) else None
