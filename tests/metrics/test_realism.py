"""Distances between sets of features against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from diffcf.errors import ConfigError
from diffcf.metrics.realism import (
    KernelDistance,
    frechet_distance,
    kernel_distance,
    patches_at,
    split_distances,
)


def features(count: int, seed: int, shift: float = 0.0, width: int = 6) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return shift + torch.randn(count, width, generator=random, dtype=torch.float64)


def test_kid_is_the_unbiased_mmd_of_scikit_learns_kernel() -> None:
    x, y = features(11, 0).numpy(), features(14, 1, 0.5).numpy()
    k = [polynomial_kernel(a, b, degree=3, gamma=1 / 6, coef0=1) for a, b in ((x, x), (y, y), (x, y))]
    expected = (k[0].sum() - np.trace(k[0])) / (11 * 10) + (k[1].sum() - np.trace(k[1])) / (14 * 13) - 2 * k[2].mean()
    assert kernel_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)


def test_kid_is_zero_on_average_for_one_distribution_and_not_for_two() -> None:
    same = [kernel_distance(features(40, 2 * s), features(40, 2 * s + 1)) for s in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(60)
    assert kernel_distance(features(40, 0), features(40, 1, 1.0)) > 10 * np.std(same)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1])
def test_frechet_against_scipys_matrix_root(shrinkage: float) -> None:
    x, y = features(50, 0).numpy(), 1.3 * features(60, 1, 0.5).numpy()
    gaussians = []
    for values in (x, y):
        covariance = np.cov(values.T)
        covariance = (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance))
        gaussians.append((values.mean(0), covariance))
    (mu, s), (nu, t) = gaussians
    expected = np.sum((mu - nu) ** 2) + np.trace(s + t - 2 * np.real(sqrtm(s @ t)))
    assert frechet_distance(torch.from_numpy(x), torch.from_numpy(y), shrinkage) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(torch.from_numpy(x), torch.from_numpy(x), shrinkage) == pytest.approx(0, abs=1e-9)


def test_split_form_never_compares_an_image_with_itself() -> None:
    real = features(40, 0)
    half = torch.arange(40) < 20
    expected = (kernel_distance(real[:20], real[20:]) + kernel_distance(real[20:], real[:20])) / 2
    assert split_distances(real, real, half) == pytest.approx(expected)


def test_patches_lie_around_the_change_and_inside_the_image() -> None:
    image = torch.arange(2 * 100.0).reshape(1, 2, 1, 10, 10).expand(3, 2, 1, 10, 10)
    change = torch.zeros(3, 2, 1, 10, 10)
    change[0, 1, 0, 5, 5] = 1.0
    change[1, 0, 0, 0, 9] = 1.0
    found = patches_at(image, change, side=3)
    assert torch.equal(found[0, 0], image[0, 1, 0, 4:7, 4:7])
    assert torch.equal(found[1, 0], image[1, 0, 0, :3, 7:])  # moved into the image
    assert found[2].shape == (1, 3, 3)
    assert patches_at(image, change, side=32).shape == (3, 1, 10, 10)


def test_as_a_torchmetrics_metric() -> None:
    made, real = features(12, 0), features(15, 1, 0.3)
    metric = KernelDistance()
    for part in made.split(5):
        metric.update(part, real=False)
    metric.update(real, real=True)
    assert float(metric.compute()) == pytest.approx(kernel_distance(made, real), rel=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    for function in (kernel_distance, frechet_distance):
        with pytest.raises(ConfigError, match="expected"):
            function(features(1, 0), features(5, 0))
        with pytest.raises(ConfigError, match="expected"):
            function(features(5, 0), features(5, 0, width=7))
