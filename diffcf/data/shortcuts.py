"""Marks that go with the label, painted on scans as they are loaded: how a data set is given a reason that is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from diffcf.cards import Window
from diffcf.data.phantom.shortcut import Shortcut, add_shortcut
from diffcf.errors import ConfigError


def add_marks(
    image: Tensor, labels: Tensor, shortcut: Shortcut | None, window: Window, keys: Sequence[int], seed: int = 0
) -> Tensor:
    """Images "n s 1 h w" in [-1, 1] of `window` with the mark that the shortcut's `correlation` gives each label.

    keys: of the scans, which decide by `seed` whose mark points the wrong way; the same in every subset and order.
    A mark brighter than the window is as bright as the window. None paints nothing. Errors: ConfigError for images of
    more than one channel.
    """
    if shortcut is None:
        return image
    if image.shape[2] != 1:
        raise ConfigError(f"marks are painted on grey images; these have {image.shape[2]} channels.")
    painted = []
    for one, label, key in zip(image, labels.tolist(), keys, strict=True):
        hu = window.to_hu(rearrange(one, "s 1 h w -> s h w").double().cpu().numpy())
        hu, _, _ = add_shortcut(hu, int(label), shortcut, seed * 1_000_003 + int(key))
        painted.append(torch.from_numpy(window.to_unit(hu)))
    return rearrange(torch.stack(painted), "n s h w -> n s 1 h w").clamp(-1, 1).to(image)


def reversed_mark(shortcut: Shortcut | None) -> Shortcut | None:
    """The mark that points the wrong way for every scan."""
    return None if shortcut is None else replace(shortcut, correlation=-1.0)
