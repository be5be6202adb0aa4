"""What is hidden, and what is not."""

from __future__ import annotations

import pytest
import torch

from diffcf.errors import ConfigError
from diffcf.saliency import Occlusion


def test_occlusion_falls_where_the_reason_is(patch, scans, share) -> None:
    bright = scans.clone()
    bright[..., 4:8, 8:12] = 3.0
    found = Occlusion(4, 4)(patch, bright, torch.ones(3, dtype=torch.long))
    assert bool((share(found) > 0.999).all())
    assert float(found[..., 4:8, 8:12].min()) > 1
    assert float(found.min()) >= 0


def test_what_rises_when_hidden_is_0(patch, scans) -> None:
    bright = scans.clone()
    bright[..., 4:8, 8:12] = 3.0
    assert not bool(Occlusion(4, 4)(patch, bright, torch.zeros(3, dtype=torch.long)).any())


def test_no_place_is_left_out() -> None:
    with pytest.raises(ConfigError, match="stride 8, side 4"):
        Occlusion(4, 8)
