"""Samplers as pure functions: decode a stochastic code to an image, and invert an image to a stochastic code.

All are written in the variables y = x / alpha and s = sigma / alpha, in which the probability-flow ODE of a diffusion
model is dy/ds = eps(x, t) and DDIM is the explicit Euler method. A `Denoiser` maps (x, t) to the predicted noise eps,
whatever the network itself predicts. Nothing here clips: windowed CT sits at the limits of its range, and an inversion
that clips cannot return there.

A grid of n steps has n + 1 noise levels, from the clean image (sigma = 0, no timestep) to x_T; each step costs one
network evaluation, in both directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffcf.errors import ConfigError

Denoiser = Callable[[Tensor, Tensor], Tensor]
Spacing = Literal["uniform", "quadratic", "cubic", "logsnr"]
POWERS = {"uniform": 1, "quadratic": 2, "cubic": 3}


@dataclass(frozen=True)
class Schedule:
    """The noise schedule x_t = alpha_t x_0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1.

    kind: "linear" is the published one (Ho et al. 2020: betas from 1e-4 to 0.02 over 1000 steps), "cosine" is
    Nichol and Dhariwal 2021.
    """

    kind: Literal["linear", "cosine"] = "linear"
    timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "cosine"):
            raise ConfigError(f"schedule {self.kind!r}: expected linear or cosine.")

    def alphas_cumprod(self) -> Tensor:
        """alpha_t^2 for t = 0 ... timesteps - 1, float64."""
        if self.kind == "linear":
            scale = 1000 / self.timesteps
            betas = torch.linspace(1e-4 * scale, 0.02 * scale, self.timesteps, dtype=torch.float64)
        else:
            t = torch.arange(self.timesteps + 1, dtype=torch.float64) / self.timesteps
            bar = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
            betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        return torch.cumprod(1 - betas, dim=0)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps (integer tensor) -> (alpha, sigma), float64 on the device of `t`."""
        squared = self.alphas_cumprod().to(t.device)[t]
        return squared.sqrt(), (1 - squared).sqrt()


@dataclass(frozen=True)
class Grid:
    """The noise levels that a sampler visits, from clean to x_T: n steps, n + 1 levels.

    timesteps: int "n", that of level i + 1 (the clean level has none). alpha, sigma: float64 "n+1".
    """

    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def steps(self) -> int:
        """Number of steps, which is the number of network evaluations each way."""
        return len(self.timesteps)

    @property
    def ratio(self) -> Tensor:
        """s = sigma / alpha of every level, "n+1"; zero at the clean level."""
        return self.sigma / self.alpha


def make_grid(schedule: Schedule, steps: int, spacing: Spacing = "uniform") -> Grid:
    """Choose `steps` distinct timesteps of `schedule`, the last one always among them.

    spacing: "uniform" in t as published; "quadratic" or "cubic" in t, which spend more steps near the image; or
    "logsnr", uniform in log sigma/alpha. Errors: ConfigError for another spacing, and for fewer than 1 or more steps
    than the schedule has.
    """
    if spacing not in (*POWERS, "logsnr"):
        raise ConfigError(f"spacing {spacing!r}: expected {', '.join(POWERS)} or logsnr.")
    last = schedule.timesteps - 1
    if not 1 <= steps <= schedule.timesteps:
        raise ConfigError(f"{steps} sampling steps asked for; expected 1 to {schedule.timesteps}.")
    fraction = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    if spacing in POWERS:
        wanted = fraction ** POWERS[spacing] * last
    else:
        squared = schedule.alphas_cumprod()
        logs = 0.5 * torch.log((1 - squared) / squared)
        target = logs[0] + (logs[-1] - logs[0]) * (torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1))
        target[-1] = logs[-1]
        wanted = torch.searchsorted(logs, target).clamp(max=last).double()
    t = wanted.round().long()
    # Rounding may make neighbours equal; push them apart, which keeps n evaluations at n distinct levels.
    for i in range(1, steps):
        t[i] = torch.maximum(t[i], t[i - 1] + 1)
    overshoot = torch.arange(last - steps + 1, last + 1)
    t = torch.minimum(t, overshoot)
    alpha, sigma = schedule.levels(t)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return Grid(t, torch.cat([one, alpha]), torch.cat([zero, sigma]))


def _time(grid: Grid, level: int, x: Tensor) -> Tensor:
    """The timestep to show the network at `level`, one per sample; the clean level borrows its neighbour's."""
    t = int(grid.timesteps[max(level, 1) - 1])
    return torch.full((x.shape[0],), t, device=x.device, dtype=torch.long)


def _scalars(values: Tensor) -> list[float]:
    return [float(v) for v in values]


def ddim_decode(denoiser: Denoiser, noise: Tensor, grid: Grid) -> Tensor:
    """Deterministic DDIM from x_T to the image (Song et al. 2021; paper 004, Eq. 1). Not clamped.

    noise: "b c h w", x_T. Returns "b c h w". Differentiable in whatever the denoiser closes over.
    """
    x, alpha, ratio = noise, _scalars(grid.alpha), _scalars(grid.ratio)
    for i in range(grid.steps, 0, -1):
        eps = denoiser(x, _time(grid, i, x))
        x = alpha[i - 1] * (x / alpha[i] + (ratio[i - 1] - ratio[i]) * eps)
    return x


def ddim_encode(denoiser: Denoiser, image: Tensor, grid: Grid) -> Tensor:
    """DDIM run backwards in time: image -> x_T, without clipping, one evaluation a step.

    The noise of the step from level i to i + 1 is evaluated at x_i, so that encode and decode agree only to first order
    in the step size; `obelm_encode` is exact.
    """
    x, alpha, ratio = image, _scalars(grid.alpha), _scalars(grid.ratio)
    for i in range(grid.steps):
        eps = denoiser(x, _time(grid, i, x))
        x = alpha[i + 1] * (x / alpha[i] + (ratio[i + 1] - ratio[i]) * eps)
    return x


def dpm_solver_decode(denoiser: Denoiser, noise: Tensor, grid: Grid) -> Tensor:
    """DPM-Solver++(2M), data prediction (Lu et al. 2022): second order at one evaluation a step. Not clamped.

    The last step, to the clean level, is of first order, where the multistep formula is singular.
    """
    x, alpha, sigma = noise, _scalars(grid.alpha), _scalars(grid.sigma)
    log_snr = torch.log(grid.alpha[1:] / grid.sigma[1:]).tolist()  # lambda of levels 1 ... n
    previous: Tensor | None = None
    for i in range(grid.steps, 0, -1):
        data = (x - sigma[i] * denoiser(x, _time(grid, i, x))) / alpha[i]
        if i == 1:
            return data
        step = log_snr[i - 2] - log_snr[i - 1]
        blended = data
        if previous is not None:
            last_step = log_snr[i - 1] - log_snr[i]
            blended = data + step / (2 * last_step) * (data - previous)
        x = sigma[i - 1] / sigma[i] * x - alpha[i - 1] * torch.expm1(torch.tensor(-step)).item() * blended
        previous = data
    return x


def obelm_encode(denoiser: Denoiser, image: Tensor, grid: Grid) -> Tensor:
    """Exactly invertible O-BELM (Wang et al. 2024), image -> the pair (x_{T-1}, x_T), "b 2 c h w".

    A variable-step leapfrog in (y, s) that carries two consecutive states; with h_i = s_i - s_{i-1},
    y_{i-1} = (h_i/h_{i+1})^2 y_{i+1} + (1 - (h_i/h_{i+1})^2) y_i - h_i (h_i + h_{i+1})/h_{i+1} eps_i,
    which `obelm_decode` runs downwards and this function solves for y_{i+1}. The first step is DDIM's. One evaluation
    a step. Needs at least two steps.
    """
    y, ratio, alpha = image, _scalars(grid.ratio), _scalars(grid.alpha)
    _need_two(grid)
    below, here = y, y + (ratio[1] - ratio[0]) * denoiser(image, _time(grid, 0, image))
    for i in range(1, grid.steps):
        h, up = ratio[i] - ratio[i - 1], ratio[i + 1] - ratio[i]
        r = (h / up) ** 2
        eps = denoiser(alpha[i] * here, _time(grid, i, image))
        above = (below - (1 - r) * here + h * (h + up) / up * eps) / r
        below, here = here, above
    return torch.stack([alpha[-2] * below, alpha[-1] * here], dim=1)


def obelm_decode(denoiser: Denoiser, pair: Tensor, grid: Grid) -> Tensor:
    """The inverse of `obelm_encode`: pair "b 2 c h w" -> image "b c h w". Not clamped.

    The last state needs no evaluation, since the pair already fixes it: n - 1 evaluations.
    """
    _need_two(grid)
    ratio, alpha = _scalars(grid.ratio), _scalars(grid.alpha)
    here, above = pair[:, 0] / alpha[-2], pair[:, 1] / alpha[-1]
    for i in range(grid.steps - 1, 0, -1):
        h, up = ratio[i] - ratio[i - 1], ratio[i + 1] - ratio[i]
        r = (h / up) ** 2
        eps = denoiser(alpha[i] * here, _time(grid, i, here))
        below = r * above + (1 - r) * here - h * (h + up) / up * eps
        here, above = below, here
    return here


def obelm_start(denoiser: Denoiser, noise: Tensor, grid: Grid) -> Tensor:
    """A pair for a fresh x_T: "b c h w" -> "b 2 c h w", the second state by one DDIM step."""
    _need_two(grid)
    alpha, ratio = _scalars(grid.alpha), _scalars(grid.ratio)
    n = grid.steps
    eps = denoiser(noise, _time(grid, n, noise))
    below = alpha[n - 1] * (noise / alpha[n] + (ratio[n - 1] - ratio[n]) * eps)
    return torch.stack([below, noise], dim=1)


def _need_two(grid: Grid) -> None:
    if grid.steps < 2:
        raise ConfigError(f"the two-step exact sampler needs at least 2 steps, {grid.steps} came.")


def forward_noise(image: Tensor, noise: Tensor, grid: Grid) -> Tensor:
    """x_T = alpha_T x_0 + sigma_T eps, the stochastic code that paper 004 states below its Eq. 1."""
    return float(grid.alpha[-1]) * image + float(grid.sigma[-1]) * noise


def code_statistics(stochastic: Tensor) -> dict[str, float]:
    """How far a stochastic code is from the standard normal that a decoder expects.

    stochastic: any shape. Returns mean, std, excess kurtosis and the correlation of horizontal neighbours (all four are
    0, 1, 0, 0 for white Gaussian noise): an inverted code that carries image content shows in the last.
    """
    x = stochastic.double()
    mean, std = x.mean(), x.std()
    unit = (x - mean) / std
    return {
        "mean": float(mean),
        "std": float(std),
        "excess_kurtosis": float((unit**4).mean() - 3),
        "neighbour_correlation": float((unit[..., 1:] * unit[..., :-1]).mean()),
    }
