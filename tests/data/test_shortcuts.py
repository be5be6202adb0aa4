"""Marks painted on loaded scans."""

from __future__ import annotations

import pytest
import torch

from diffcf.cards import Window
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.data.shortcuts import add_marks, reversed_mark
from diffcf.errors import ConfigError

WINDOW = Window(centre=-600, width=1600)


def scans(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((count, 2, 1, 64, 64), -0.5), torch.arange(count) % 2


def points_to(image: torch.Tensor) -> torch.Tensor:
    """1 for a +, by its area."""
    return ((image != -0.5).flatten(1).sum(1) > 30 * image.shape[1]).long()


def test_marks_follow_the_label_the_wrong_one_and_chance() -> None:
    image, labels = scans()
    right = add_marks(image, labels, Shortcut(), WINDOW, range(40))
    wrong = add_marks(image, labels, reversed_mark(Shortcut()), WINDOW, range(40))
    chance = add_marks(image, labels, Shortcut(correlation=0), WINDOW, range(40))
    assert torch.equal(points_to(right), labels)
    assert torch.equal(points_to(wrong), 1 - labels)
    assert 8 < int((points_to(chance) == labels).sum()) < 32
    assert torch.equal(right[:, 0], right[:, 1])
    assert float(right.max()) <= 1
    assert torch.equal(image, torch.full_like(image, -0.5))  # the scans themselves are left alone


def test_a_scan_keeps_its_mark_in_every_order_and_another_seed_changes_some() -> None:
    image, labels = scans()
    shortcut = Shortcut(correlation=0)
    whole = add_marks(image, labels, shortcut, WINDOW, range(40))
    some = torch.tensor([31, 4, 7])
    assert torch.equal(add_marks(image[some], labels[some], shortcut, WINDOW, some.tolist()), whole[some])
    assert not torch.equal(add_marks(image, labels, shortcut, WINDOW, range(40), seed=1), whole)


def test_intensity_nothing_and_colours() -> None:
    image, labels = scans(2)
    dark, bright = add_marks(image, labels, Shortcut("intensity"), WINDOW, range(2))
    assert float(dark.min()) < -0.5 < float(bright.max())
    assert add_marks(image, labels, None, WINDOW, range(2)) is image
    assert reversed_mark(None) is None
    with pytest.raises(ConfigError, match="3 channels"):
        add_marks(image.expand(-1, -1, 3, -1, -1), labels, Shortcut(), WINDOW, range(2))
