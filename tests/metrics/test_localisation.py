"""Saliency against regions: values by hand and the degenerate cases."""

from __future__ import annotations

import pytest
import torch

from diffcf.metrics.localisation import pointing, region_share, relevance_mass, saliency_precision


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
