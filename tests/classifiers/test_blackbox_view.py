"""Views against the same scan cut anew for the other model."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcf.cards import Preparation, Window
from diffcf.classifiers.blackbox_view import make_view
from diffcf.errors import ConfigError
from diffcf.scans import prepare
from diffcf.types import Provenance, Scan

WIDE = Window(0, 4000)


def scan(side: int = 96, spacing: float = 0.7) -> Scan:
    z, y, x = np.mgrid[:2, :side, :side]
    volume = 900 * np.sin(x / 9 + z) * np.cos(y / 7) + 50 * np.sin(x * y / 40)
    affine = np.diag([-spacing, -spacing, 2.0, 1.0])
    return Scan(volume.astype(np.float32), (2.0, spacing, spacing), affine, Provenance("made", "array", "CT"))


def cut(preparation: Preparation, **centre) -> Tensor:
    return torch.from_numpy(prepare(scan(), preparation, **centre).unit())[None, :, None]


def test_equal_preparations_change_nothing() -> None:
    preparation = Preparation(slices=2)
    view = make_view(preparation, preparation)
    image = torch.rand(2, 2, 1, 64, 64)
    assert view.identity
    assert view(image) is image


def test_the_number_of_slices_does_not_matter() -> None:
    assert make_view(Preparation(slices=1), Preparation(slices=4)).identity


@pytest.mark.parametrize("window", [Window(-600, 1600), Window(40, 400)])
def test_another_window(window: Window) -> None:
    source, target = Preparation(WIDE, 64, 2), Preparation(window, 64, 2)
    torch.testing.assert_close(make_view(source, target)(cut(source)), cut(target), atol=1e-5, rtol=0)


def test_a_window_that_the_source_does_not_hold_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="-160 to 240 HU, but the generator's images end at -1400 and 200 HU"):
        make_view(Preparation(Window(-600, 1600)), Preparation(Window(40, 400)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_view(Preparation(WIDE), Preparation(Window(40, 400)))


@pytest.mark.parametrize("sizes", [(64, 32), (63, 31)])
@pytest.mark.parametrize("spacing", [None, 0.5])
@pytest.mark.parametrize("centre", [{}, {"centre_index": (40, 51)}])
def test_a_smaller_crop_is_the_middle_of_a_larger_one(sizes: tuple[int, int], spacing: float | None, centre) -> None:
    source, target = (Preparation(WIDE, size, 2, "crop", spacing) for size in sizes)
    torch.testing.assert_close(
        make_view(source, target)(cut(source, **centre)), cut(target, **centre), atol=1e-3, rtol=0
    )
    if spacing is None:
        assert torch.equal(make_view(source, target)(cut(source, **centre)), cut(target, **centre))


@pytest.mark.parametrize("field", ["crop", "resize"])
@pytest.mark.parametrize("sizes", [(64, 32), (64, 48), (32, 64)])
def test_another_size_over_the_same_extent(field: str, sizes: tuple[int, int]) -> None:
    spacings = [None if field == "resize" else 56 / size for size in sizes]
    source, target = (Preparation(WIDE, size, 2, field, mm) for size, mm in zip(sizes, spacings, strict=True))
    shown, anew = make_view(source, target)(cut(source)), cut(target)
    inner = (..., slice(2, -2), slice(2, -2))
    assert (shown - anew)[inner].abs().mean() < 0.02
    assert torch.corrcoef(torch.stack([shown[inner].flatten(), anew[inner].flatten()]))[0, 1] > 0.995


def test_shrinking_is_anti_aliased() -> None:
    stripes = torch.tensor([-1.0, 1.0]).repeat(32).expand(1, 1, 1, 64, 64)
    shown = make_view(Preparation(size=64, field="resize"), Preparation(size=16, field="resize"))(stripes)
    assert shown[..., 2:-2, 2:-2].abs().max() < 0.1  # grey, neither of the two


def test_it_is_differentiable() -> None:
    source = Preparation(WIDE, 12, 1, "crop", 1.0)
    target = Preparation(Window(0, 3000), 6, 1, "crop", 2.0)
    image = torch.rand(1, 1, 1, 12, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(make_view(source, target), (image * 0.5,))
    cropped = make_view(source, replace(source, size=8))
    assert torch.autograd.gradcheck(cropped, (image,))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ({"modality": "MR"}, {}, "modality MR, it expects CT"),
        ({"field": "resize"}, {}, "field 'resize', it expects 'crop'"),
        ({"size": 32}, {}, "at least as large"),
        ({"size": 65}, {}, "even number"),
        ({"spacing": 0.5}, {}, "own spacing"),
        ({}, {"spacing": 0.5}, "cannot be compared"),
        ({"spacing": 0.5}, {"spacing": 0.7}, r"\(32 mm\), it expects .*\(44.8 mm\)"),
    ],
)
def test_what_cannot_be_shown_is_refused(source: dict, target: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_view(Preparation(**source), Preparation(**target))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="size 64"):
        make_view(Preparation(), Preparation())(torch.zeros(1, 1, 1, 32, 32))
