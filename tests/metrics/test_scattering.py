"""The fixed encoder: its wavelets, what it keeps and what it is blind to."""

from __future__ import annotations

import math

import torch

from diffcf.metrics.scattering import Scattering, morlet_filters


def textured(count: int, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(count, 1, 48, 48, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1)  # 44 x 44
    return (2 * smooth).clamp(-1, 1)


def test_wavelets_have_no_mean_and_their_stated_place() -> None:
    filters = morlet_filters(2, 4, 64)
    assert filters.shape == (8, 64, 64)
    assert filters[:, 0, 0].abs().max() < 1e-6
    # The finest one at angle 0 is largest near its centre frequency along x.
    row = filters[0, 0].argmax()
    assert abs(float(row) * 2 * math.pi / 64 - 3 * math.pi / 4) < 0.2
    turned = filters[2, :, 0].argmax()  # a quarter turn: along y
    assert int(turned) == int(row)
    assert abs(int(filters[4, 0].argmax()) - int(row) / 2) <= 1  # the next scale: half the frequency


def test_a_wave_answers_to_its_own_wavelet() -> None:
    encoder = Scattering(scales=3, angles=4, grid=1)
    x = torch.arange(32) * 3 * math.pi / 8  # the centre frequency of the second scale
    wave = (0.5 * torch.sin(x)).expand(1, 1, 32, 32)
    first = encoder(wave)[0, 1:13].reshape(3, 4)
    assert int(first.argmax()) == 4  # scale 1, angle 0


def test_small_shifts_matter_little_and_fine_noise_much() -> None:
    encoder = Scattering()
    image = textured(8)
    base = encoder(image[..., 2:34, 2:34])
    shifted = (encoder(image[..., 3:35, 2:34]) - base).norm(dim=1)
    noisy = image[..., 2:34, 2:34] + 0.2 * torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    assert ((encoder(noisy) - base).norm(dim=1) > 1.5 * shifted).all()
    others = (encoder(textured(8, 5)[..., 2:34, 2:34]) - base).norm(dim=1)
    assert (others > 3 * shifted).all()


def test_it_is_the_same_every_time_and_says_which_it_is() -> None:
    assert Scattering().name == Scattering().name == "scattering-J3-L4-g2-32-" + Scattering().name[-8:]
    assert Scattering(angles=2).name != Scattering().name
    image = textured(2)
    torch.testing.assert_close(Scattering()(image), Scattering()(image))
    levels = 1 + 3 * 4 + 16 * 3
    assert Scattering()(image).shape == (2, 4 * levels)
    assert Scattering()(image.expand(2, 3, 44, 44)).shape == (2, 3 * 4 * levels)
