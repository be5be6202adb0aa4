"""Samplers against the exact solution for Gaussian data, against diffusers, and back and forth."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

from diffcf.errors import ConfigError
from diffcf.generators.sampling import (
    Schedule,
    code_statistics,
    ddim_decode,
    ddim_encode,
    dpm_solver_decode,
    forward_noise,
    make_grid,
    obelm_decode,
    obelm_encode,
    obelm_start,
)

SCHEDULE = Schedule()
MEAN, SPREAD = 0.3, 0.5  # of the Gaussian data


def perfect(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[eps | x_t] where every pixel of x_0 is N(MEAN, SPREAD^2)."""
    alpha, sigma = (rearrange(value, "b -> b 1 1 1").to(x) for value in SCHEDULE.levels(t))
    return sigma * (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)


def exact(noise: torch.Tensor, grid) -> torch.Tensor:
    """The probability-flow ODE keeps (x_t - alpha_t MEAN) / std(x_t): its solution at t = 0."""
    alpha, sigma = float(grid.alpha[-1]), float(grid.sigma[-1])
    return MEAN + SPREAD * (noise - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2) ** 0.5


def curved(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A denoiser with nothing linear about it."""
    level = rearrange(t.double() / 1000, "b -> b 1 1 1")
    return torch.sin(3 * x + level) + 0.3 * x.roll(1, -1) * level


@pytest.mark.parametrize(
    ("decode", "order", "steps"), [(ddim_decode, 1, (50, 100, 200)), (dpm_solver_decode, 2, (25, 50, 100))]
)
def test_decoding_converges_to_the_exact_solution(decode, order, steps) -> None:
    noise = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    errors = []
    for count in steps:
        grid = make_grid(SCHEDULE, count, "logsnr")
        errors.append(float((decode(perfect, noise, grid) - exact(noise, grid)).abs().max()))
    assert errors[-1] < 0.02
    assert errors[0] / errors[2] > 0.8 * 4**order  # four times the steps


def test_second_order_needs_fewer_steps() -> None:
    noise = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    grid = make_grid(SCHEDULE, 20, "logsnr")
    first, second = (float((d(perfect, noise, grid) - exact(noise, grid)).abs().max())
                     for d in (ddim_decode, dpm_solver_decode))  # fmt: skip
    assert second < first / 3


def test_ddim_is_equation_1_of_the_paper() -> None:
    grid = make_grid(SCHEDULE, 7)
    x = noise = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    bar = torch.cat([torch.ones(1, dtype=torch.float64), SCHEDULE.alphas_cumprod()[grid.timesteps]])
    for i in range(7, 0, -1):
        eps = curved(x, grid.timesteps[i - 1].expand(2))
        x = bar[i - 1].sqrt() * (x - (1 - bar[i]).sqrt() * eps) / bar[i].sqrt() + (1 - bar[i - 1]).sqrt() * eps
    torch.testing.assert_close(ddim_decode(curved, noise, grid), x)


@pytest.mark.parametrize(("order", "decode"), [(1, ddim_decode), (2, dpm_solver_decode)])
def test_diffusers_gives_the_same_image(order, decode) -> None:
    grid = make_grid(SCHEDULE, 12, "quadratic")
    reference = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, solver_order=order, algorithm_type="dpmsolver++", final_sigmas_type="zero"
    )
    reference.set_timesteps(timesteps=grid.timesteps.flip(0).tolist())
    x = noise = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    for t in reference.timesteps:
        x = reference.step(curved(x, t.expand(2)), t, x).prev_sample
    torch.testing.assert_close(decode(curved, noise, grid), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("denoiser", [perfect, curved])
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_the_exact_sampler_returns(denoiser, steps: int) -> None:
    image = torch.rand(3, 1, 8, 8, dtype=torch.float64) * 2 - 1
    grid = make_grid(SCHEDULE, steps, "logsnr")
    pair = obelm_encode(denoiser, image, grid)
    assert pair.shape == (3, 2, 1, 8, 8)
    torch.testing.assert_close(obelm_decode(denoiser, pair, grid), image, rtol=0, atol=1e-8)


def test_ddim_inversion_returns_the_better_the_more_steps() -> None:
    image = torch.rand(2, 1, 4, 4, dtype=torch.float64) * 2 - 1
    errors = []
    for steps in (10, 40, 160):
        grid = make_grid(SCHEDULE, steps, "logsnr")
        back = ddim_decode(perfect, ddim_encode(perfect, image, grid), grid)
        errors.append(float((back - image).abs().max()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_values_at_the_window_s_limits_are_not_clipped() -> None:
    image = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    grid = make_grid(SCHEDULE, 400, "logsnr")
    assert float(ddim_encode(perfect, image, grid).mean()) > 1  # (1 - MEAN) / SPREAD standard deviations
    torch.testing.assert_close(ddim_decode(perfect, ddim_encode(perfect, image, grid), grid), image, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("run", "evaluations"),
    [(ddim_decode, 20), (ddim_encode, 20), (dpm_solver_decode, 20), (obelm_encode, 20)],
)
def test_one_evaluation_a_step(run, evaluations: int) -> None:
    asked = []

    def counting(x, t):
        asked.append(int(t[0]))
        return perfect(x, t)

    grid = make_grid(SCHEDULE, 20)
    made = run(counting, torch.randn(1, 1, 4, 4), grid)
    assert len(asked) == evaluations
    if run is obelm_encode:
        asked.clear()
        obelm_decode(counting, made, grid)
        assert len(asked) == 19


def test_a_fresh_pair_decodes_to_what_ddim_almost_gives() -> None:
    noise = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    grid = make_grid(SCHEDULE, 200, "logsnr")
    pair = obelm_start(perfect, noise, grid)
    torch.testing.assert_close(obelm_decode(perfect, pair, grid), exact(noise, grid), rtol=0, atol=0.02)


@given(st.integers(1, 1000), st.sampled_from(["uniform", "quadratic", "cubic", "logsnr"]))
def test_grids_are_distinct_rising_and_end_at_the_last_timestep(steps: int, spacing: str) -> None:
    grid = make_grid(SCHEDULE, steps, spacing)
    assert grid.steps == steps
    assert (grid.timesteps.diff() > 0).all()
    assert grid.timesteps[0] >= 0
    assert grid.timesteps[-1] == 999
    assert grid.sigma[0] == 0
    torch.testing.assert_close(grid.alpha**2 + grid.sigma**2, torch.ones(steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_grids_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="1 to 1000"):
        make_grid(SCHEDULE, steps)


def test_the_exact_sampler_needs_two_steps() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        obelm_encode(perfect, torch.zeros(1, 1, 4, 4), make_grid(SCHEDULE, 1))


def test_published_schedule() -> None:
    bar = SCHEDULE.alphas_cumprod()
    assert float(bar[0]) == pytest.approx(1 - 1e-4)
    assert float(bar[-1]) == pytest.approx(4.0358e-5, rel=1e-3)  # Ho et al. 2020
    cosine = Schedule("cosine").alphas_cumprod()
    assert (cosine.diff() < 0).all()


def test_forward_noise_has_the_last_level_s_moments() -> None:
    grid = make_grid(SCHEDULE, 10)
    noise = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    got = forward_noise(torch.ones_like(noise), noise, grid)
    bar = float(SCHEDULE.alphas_cumprod()[-1])
    torch.testing.assert_close(got, bar**0.5 + (1 - bar) ** 0.5 * noise)


def test_code_statistics_tell_noise_from_content() -> None:
    noise = torch.randn(4, 1, 64, 64)
    white = code_statistics(noise)
    assert white["mean"] == pytest.approx(0, abs=0.03)
    assert white["std"] == pytest.approx(1, abs=0.03)
    assert white["excess_kurtosis"] == pytest.approx(0, abs=0.1)
    assert white["neighbour_correlation"] == pytest.approx(0, abs=0.03)
    smooth = noise + 2 * torch.linspace(-1, 1, 64)
    assert code_statistics(smooth)["neighbour_correlation"] > 0.4
