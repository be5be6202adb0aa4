"""What a code holds and what it loses: null-intervention cycles, and what a linear reader finds in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffcf.errors import ConfigError
from diffcf.metrics.images import psnr


@torch.no_grad()
def composition(image: Tensor, cycle: Callable[[Tensor], Tensor], cycles: int) -> Tensor:
    """PSNR in dB of images "b s c h w" after 1 to `cycles` null interventions -> "cycles b", means over slices.

    Composition of Monteiro et al. 2023, "Measuring axiomatic soundness of counterfactual image models": an edit that
    asks for nothing must change nothing, however often. cycle: encode and decode, limited to [-1, 1].
    Errors: ConfigError for no cycle.
    """
    if cycles < 1:
        raise ConfigError(f"{cycles} cycles; expected at least one.")
    again, figures = image, []
    for _ in range(cycles):
        again = cycle(again)
        figures.append(psnr(again, image).mean(1))
    return torch.stack(figures)


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, ridge: float = 1.0) -> Tensor:
    """Scores "m" of a ridge logistic regression for test features "m f", higher = label 1.

        min over w, b  mean log(1 + exp(-y (w x + b))) + ridge / (2 f) |w|^2

    of training features "n f", standardised as the training features are; labels 0 or 1, "n". The penalty is divided by
    f: the same ridge means as much for a short code as for a long one. What it reads on held-out patients leaks.

    Errors: ConfigError for shapes that do not fit, labels of one class, and a ridge that is not positive.
    """
    sizes = train.ndim == test.ndim == 2 and train.shape[1] == test.shape[1] and labels.shape == train.shape[:1]
    if not sizes or not ridge > 0 or sorted(labels.unique().tolist()) != [0, 1]:
        raise ConfigError(
            f"features {tuple(train.shape)} and {tuple(test.shape)}, labels {tuple(labels.shape)} of "
            f"{labels.unique().tolist()}, ridge {ridge}: expected (n, f), (m, f), n labels of 0 and 1, and a ridge "
            "above 0."
        )
    train, test = train.double(), test.double()
    mean, spread = train.mean(0), train.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    known, asked = (train - mean) / spread, (test - mean) / spread
    sign = 2 * labels.to(known) - 1
    weight = torch.zeros(known.shape[1] + 1, dtype=known.dtype, device=known.device, requires_grad=True)
    limits = {"max_iter": 500, "tolerance_grad": 1e-7, "tolerance_change": 1e-12}
    solver = torch.optim.LBFGS([weight], line_search_fn="strong_wolfe", **limits)

    def loss() -> Tensor:
        solver.zero_grad()
        margin = sign * (known @ weight[1:] + weight[0])
        total = -torch.nn.functional.logsigmoid(margin).mean()
        total = total + ridge / (2 * known.shape[1]) * weight[1:].square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)  # pyright: ignore[reportArgumentType]  # the closure's type is that of a float
    return (asked @ weight[1:] + weight[0]).detach()
