"""Saliency against regions: values by hand and the degenerate cases."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from diffcf.errors import ConfigError
from diffcf.metrics.localisation import (
    class_averaged_dice,
    class_averaged_iou,
    dice,
    iou,
    pointing,
    region_share,
    relevance_mass,
    saliency_precision,
    top_p,
)

OVERLAPS = (dice, iou, class_averaged_dice, class_averaged_iou)


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    region = torch.zeros(3, 1, 1, 4, 4)
    region[..., :2, :2] = 1
    saliency = torch.zeros(3, 1, 1, 4, 4)
    saliency[0, 0, 0, 0, 0], saliency[0, 0, 0, 3, 3], saliency[0, 0, 0, 2, 2] = 1.0, 0.6, 0.4
    saliency[1] = 1.0
    return saliency, region


def test_by_hand(maps) -> None:
    saliency, region = maps
    assert region_share(region).tolist() == [0.25] * 3
    precision = saliency_precision(saliency, region)
    assert precision[:2].tolist() == [0.5, 0.25]  # a map that is the same everywhere has the chance level
    assert saliency_precision(saliency, region, 0.3)[0] == pytest.approx(1 / 3)
    assert relevance_mass(saliency, region)[:2].tolist() == [0.5, 0.25]
    assert pointing(saliency, region)[:2].tolist() == [1, 1]
    for figure in (saliency_precision, relevance_mass, pointing):
        assert figure(saliency, region)[2].isnan()


def test_scale_does_not_matter(maps) -> None:
    saliency, region = maps
    for figure in (saliency_precision, relevance_mass, pointing):
        assert torch.equal(figure(7 * saliency, region).nan_to_num(9), figure(saliency, region).nan_to_num(9))


def test_the_highest_pixels_as_many_as_the_region_has() -> None:
    saliency = torch.tensor([[0.1, 0.9, 0.5, 0.9], [0.5, 0.5, 0.0, 0.2]]).reshape(1, 1, 1, 2, 4)
    for count, expected in ((1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (8, list(range(8)))):
        region = (torch.arange(8) < count).float().reshape_as(saliency)
        assert top_p(saliency, region).flatten().nonzero().flatten().tolist() == expected
    equal = torch.full_like(saliency, 0.3)
    assert top_p(equal, (torch.arange(8) > 5).float().reshape_as(equal)).flatten().nonzero().flatten().tolist() == [
        0,
        1,
    ]


def test_highest_pixels_over_slices_and_images() -> None:
    saliency = torch.rand(4, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1)).round(decimals=1)  # many ties
    region = torch.zeros_like(saliency)
    for k in range(4):
        region[k, k % 3, 0, : 2 * k, :5] = 1  # the first is empty
    chosen = top_p(saliency, region)
    assert chosen.shape == region.shape
    assert chosen.dtype == torch.bool
    assert chosen.flatten(1).sum(1).tolist() == [0, 10, 20, 30]
    for k in range(1, 4):
        assert saliency[k][chosen[k]].min() >= saliency[k][~chosen[k]].max()
    assert not top_p(torch.zeros_like(saliency), region).any()


def test_overlap_by_hand() -> None:
    region = torch.zeros(1, 1, 1, 4, 4)
    region[..., 0, :4] = 1
    chosen = torch.zeros_like(region, dtype=torch.bool)
    chosen[..., 0, :3] = chosen[..., 1, 0] = True  # 3 of 4, and 1 beside
    assert dice(chosen, region).item() == pytest.approx(3 / 4)
    assert iou(chosen, region).item() == pytest.approx(3 / 5)
    assert class_averaged_dice(chosen, region).item() == pytest.approx((3 / 4 + 11 / 12) / 2)
    assert class_averaged_iou(chosen, region).item() == pytest.approx((3 / 5 + 11 / 13) / 2)
    everything = torch.ones_like(region)
    assert [figure(everything, everything).item() for figure in OVERLAPS] == [1, 1, 1, 1]  # no background at all
    assert [figure(region.flip(-2), region).item() for figure in OVERLAPS] == pytest.approx([0, 0, 1 / 3, 1 / 4])


def test_overlap_is_that_of_other_libraries() -> None:
    random = torch.Generator().manual_seed(2)
    region = (torch.rand(6, 2, 1, 9, 7, generator=random) > 0.7).float()
    saliency = torch.rand(6, 2, 1, 9, 7, generator=random) + 0.3 * region
    chosen = top_p(saliency, region)
    for k in range(6):
        truth, said = region[k].flatten().long(), chosen[k].flatten().long()
        assert dice(chosen, region)[k].item() == pytest.approx(float(f1_score(truth, said)))
        assert iou(chosen, region)[k].item() == pytest.approx(float(jaccard_score(truth, said)))
        for figure, macro, other in (
            (class_averaged_dice, f1_score, multiclass_f1_score),
            (class_averaged_iou, jaccard_score, multiclass_jaccard_index),
        ):
            figures = figure(chosen, region)
            assert figures[k].item() == pytest.approx(float(macro(truth, said, average="macro")))
            assert figures[k].item() == pytest.approx(other(said, truth, num_classes=2, average="macro").item())
    assert torch.allclose(dice(chosen, region), saliency_precision(chosen.float(), region))  # as many as the region has


def test_a_map_that_is_the_region_is_right_and_chance_is_the_share() -> None:
    random = torch.Generator().manual_seed(3)
    region = torch.zeros(200, 1, 1, 20, 20)
    region[..., 4:14, 6:10] = 1
    for figure in OVERLAPS:
        assert torch.equal(figure(top_p(region, region), region), torch.ones(200))
    chance = dice(top_p(torch.rand(region.shape, generator=random), region), region)
    assert chance.mean().item() == pytest.approx(0.1, abs=0.012)


@pytest.mark.parametrize("figure", OVERLAPS)
def test_nothing_to_overlap_is_undefined(figure, maps: tuple[Tensor, Tensor]) -> None:
    saliency, region = maps
    assert figure(top_p(saliency, region), region).isnan().tolist() == [False, False, True]  # a map of zeros
    empty = torch.zeros_like(region)
    assert figure(top_p(saliency, empty), empty).isnan().all()
    assert figure(saliency > 0, empty).isnan().all()


def test_another_size_or_count_is_refused(maps: tuple[Tensor, Tensor]) -> None:
    saliency, region = maps
    for figure in (top_p, *OVERLAPS):
        with pytest.raises(
            ConfigError, match=r"a map of shape \(3, 1, 1, 4, 4\) and a region of shape \(2, 1, 1, 4, 4\)"
        ):
            figure(saliency, region[:2])
        with pytest.raises(ConfigError, match="a region of shape"):
            figure(saliency, region[..., :1])


def test_pointing_at_a_whole_territory() -> None:
    territories = torch.zeros(3, 2, 1, 6, 6)  # one lesion's territory an image, over its slices
    territories[0, :, 0, :, :3] = territories[1, 1, 0, 3:] = territories[2, 0, 0, :3, 3:] = 1
    saliency = torch.full((3, 2, 1, 6, 6), 0.2)
    saliency[0, 1, 0, 5, 2] = saliency[1, 0, 0, 4, 4] = saliency[2, 0, 0, 0, 5] = 0.9
    assert pointing(saliency, territories).tolist() == [
        1,
        0,
        1,
    ]  # the second points at the right place of another slice
