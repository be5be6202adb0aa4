"""Who decides about counterfactuals: the black box, it after purification, another classifier, a reader of a symbol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffcf.cards import Window
from diffcf.classifiers.blackbox import load_blackbox
from diffcf.data.phantom.shortcut import Shortcut, read_symbol, symbol_contrast
from diffcf.explain import Explainer
from diffcf.generators.generator import SliceWise, load_generator

LEGIBLE = 0.1  # of the window's width: contrast of a symbol that can be read
Judge = Callable[[torch.Tensor], torch.Tensor]  # images "b s c h w" -> predicted classes "b"


@dataclass(frozen=True)
class Judges:
    """Who decides about images: the black box, it after purification, another classifier, a reader of the symbol.

    None where a case names none.
    """

    blackbox: Judge
    purified: Judge | None
    other: Judge | None
    reader: Judge | None


def judges_of(
    explainer: Explainer,
    *,
    other: str | None,
    purifier: str | None,
    symbol: Shortcut | None,
    batch: int,
    seed: int,
) -> Judges:
    """The judges of an explainer's counterfactuals.

    other, purifier: folders or bundled names of a classifier and of a generator. symbol: what is read in images.
    batch: images at once. seed: of purification.
    """
    device, preparation = next(explainer.blackbox.parameters()).device, explainer.preparation

    def by(blackbox: Any) -> Judge:
        view = blackbox.view_of(preparation)

        @torch.no_grad()
        def judge(images: torch.Tensor) -> torch.Tensor:
            parts = images.split(batch)
            return torch.cat([blackbox(view(part.to(device))).argmax(1).cpu() for part in parts])

        return judge

    def read(images: torch.Tensor) -> torch.Tensor:
        assert symbol is not None
        hu = preparation.window.to_hu(images[:, :, 0].cpu().numpy())
        return torch.tensor([read_symbol(volume, symbol) for volume in hu])

    decide = by(explainer.blackbox)
    cleaner = SliceWise(load_generator(purifier)).to(device) if purifier else None

    @torch.no_grad()
    def purified(images: torch.Tensor) -> torch.Tensor:
        assert cleaner is not None
        cleaned = [cleaner.purified(part.to(device), seed) for part in images.split(batch)]
        return decide(torch.cat(cleaned).clamp(-1, 1))

    another = by(load_blackbox(other).to(device)) if other else None
    return Judges(decide, purified if cleaner else None, another, read if symbol else None)


def judged_by(judge: Judge | None, factual: torch.Tensor, edited: torch.Tensor, label: int, target: int) -> float:
    """1 where a judge that gets the factual image right takes the counterfactual for the target, NaN where it is wrong
    about the factual image or there is no judge."""
    if judge is None or int(judge(factual)) != label:
        return np.nan
    return float(int(judge(edited)) == target)


def legible(images: torch.Tensor, symbol: Shortcut, window: Window) -> torch.Tensor:
    """Which images "n s c h w" show their symbol, bool "n": in the window it stands out from what it lies on."""
    hu = window.to_hu(images[:, :, 0].cpu().numpy())
    return torch.tensor([symbol_contrast(volume, symbol) > LEGIBLE * window.width for volume in hu])
