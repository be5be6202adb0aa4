"""Named stages of a network: what they give is seen or replaced while it runs, and nothing stays behind."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from diffcf.cards import ClassifierCard
from diffcf.classifiers.network import TimmNetwork, probe
from diffcf.errors import ConfigError

SHOWN = 12  # stages that one error message lists
Shape = tuple[int, int, int]


def _whole(picture: Tensor) -> Tensor:
    return picture


@dataclass(frozen=True)
class Backbone:
    """What is to be known of a network that is guided.

    card: what it was built from. shapes: (f, h, w) of the maps of the named stages, in the order in which they run.
    features: how many the last module reads. parts: pictures "n c h w" -> "m c h w", as the convolutions see them
    (diffcf_mtl7 looks at halves).
    """

    card: ClassifierCard
    shapes: Mapping[str, Shape]
    features: int
    parts: Callable[[Tensor], Tensor] = _whole


@contextmanager
def watched(net: nn.Module, names: Sequence[str], react: Callable[[str, Any], Any]) -> Iterator[None]:
    """While the block runs, `react` sees what the named modules of `net` give, and replaces it unless it returns None.

    Only in this thread: another one may run the same network at the same time.
    """
    thread = get_ident()
    handles = []
    try:
        for name in names:

            def hook(module: nn.Module, given: Any, output: Any, name: str = name) -> Any:
                return react(name, output) if get_ident() == thread else None

            handles.append(net.get_submodule(name).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def backbone_of(network: TimmNetwork, card: ClassifierCard, names: Sequence[str]) -> Backbone:
    """Try a network with its `names` as stages.

    Errors: ConfigError for a stage that it does not have, that gives no maps "n f h w" or runs more than once.
    """
    given: dict[str, list[Any]] = {}
    every = [name for name, _ in network.net.named_modules() if name]
    mode = network.training
    network.eval()
    try:
        weight = next(network.parameters())
        with watched(network.net, every, lambda name, output: given.setdefault(name, []).append(output)):
            features = network.features(probe(2, network.channels, card.preparation.size).to(weight))
    finally:
        network.train(mode)
    maps = [name for name in given if all(_is_map(output) for output in given[name])]
    for name in names:
        if name not in given or name not in maps or len(given[name]) > 1:
            raise ConfigError(f"{card.architecture} {_fault(name, every, given, maps)}")
    if names and getattr(network.net, "output_fmt", "NCHW") != "NCHW":
        raise ConfigError(f"{card.architecture} keeps channels last; stages are maps (n, channels, height, width).")
    shapes = {name: _shape(given[name][0]) for name in given if name in names}
    return Backbone(card, shapes, features.shape[1], getattr(network.net, "parts", _whole))


def _is_map(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4


def _shape(output: Tensor) -> Shape:
    return output.shape[1], output.shape[2], output.shape[3]


def _fault(name: str, every: Sequence[str], given: Mapping[str, list[Any]], maps: Sequence[str]) -> str:
    """What is wrong with a stage, in words."""
    if name in maps:
        return f"runs its stage {name!r} {len(given[name])} times in one pass; name one that runs once."
    outer = sorted(maps, key=lambda stage: stage.count("."))  # blocks before what they are made of
    listed = f"Stages that do: {', '.join(outer[:SHOWN])}{', ...' if len(outer) > SHOWN else ''}."
    if not outer:
        listed = "None of its stages does; use Unguided."
    if name in given:
        first = given[name][0]
        seen = f"a tensor of shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        return f"gives {seen} at its stage {name!r}, not maps (n, channels, height, width). {listed}"
    if name in every:
        return f"has {name!r}, but it gives nothing on the way to the features. {listed}"
    near = difflib.get_close_matches(name, every, n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return f"has no stage {name!r} that gives maps.{hint} {listed}"
