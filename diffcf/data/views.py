"""Views of an image that are as likely as the image itself, and show the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

Views = Literal["none", "mirror", "square"]
KINDS = {"none": 1, "mirror": 2, "square": 8}


def view(image: Tensor, kinds: Sequence[int]) -> Tensor:
    """Each image "b ... h w" turned as asked: bit 0 mirrors left to right, bit 1 top to bottom, bit 2 transposes.

    kinds: "b" numbers below 8. "mirror" uses two of them (a body seen from the other side), "square" all eight (a crop
    without an upright, as of a nodule; h = w).
    """
    turned = []
    for one, kind in zip(image, kinds, strict=True):
        one = one.flip(-1) if kind & 1 else one
        one = one.flip(-2) if kind & 2 else one
        turned.append(rearrange(one, "... h w -> ... w h") if kind & 4 else one)
    return torch.stack(turned)
