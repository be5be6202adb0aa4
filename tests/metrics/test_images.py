"""PSNR and SSIM against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffcf.errors import ConfigError
from diffcf.metrics.images import mean_absolute_difference, psnr, ssim


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.nn.functional.interpolate(torch.randn(6, 1, 8, 8), size=(40, 32), mode="bicubic").clamp(-1, 1)
    noise = torch.linspace(0.01, 0.6, 6)[:, None, None, None] * torch.randn(image.shape)
    return (image + noise).clamp(-1, 1), image


def test_psnr_equals_scikit_image(pair) -> None:
    image, reference = pair
    expected = [
        peak_signal_noise_ratio(r.numpy(), i.numpy(), data_range=2) for i, r in zip(image, reference, strict=True)
    ]
    np.testing.assert_allclose(psnr(image, reference).numpy(), expected, rtol=1e-5)


def test_ssim_equals_scikit_image(pair) -> None:
    image, reference = pair
    expected = [
        structural_similarity(
            r[0].numpy(), i[0].numpy(), data_range=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for i, r in zip(image, reference, strict=True)
    ]
    np.testing.assert_allclose(ssim(image, reference).numpy(), expected, rtol=1e-4)


def test_known_values() -> None:
    zero, tenth = torch.zeros(2, 1, 16, 16), torch.full((2, 1, 16, 16), 0.1)
    torch.testing.assert_close(psnr(tenth, zero), torch.full((2,), 10 * np.log10(4 / 0.01)).float())
    assert torch.isinf(psnr(zero, zero)).all()
    torch.testing.assert_close(ssim(zero, zero), torch.ones(2))
    torch.testing.assert_close(mean_absolute_difference(tenth, zero), torch.full((2,), 0.1))


@pytest.mark.parametrize("measure", [psnr, ssim, mean_absolute_difference])
def test_leading_dimensions_are_kept(measure, pair) -> None:
    image, reference = (x.reshape(2, 3, 1, 40, 32) for x in pair)
    each = measure(image, reference)
    assert each.shape == (2, 3)
    torch.testing.assert_close(each.flatten(), measure(*pair))
    torch.testing.assert_close(each[1, 2], measure(image[1, 2], reference[1, 2]))
    with pytest.raises(ConfigError, match="same shape"):
        measure(image, reference[:1])


def test_an_image_smaller_than_the_window_has_no_ssim() -> None:
    with pytest.raises(ConfigError, match="at least 11"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
