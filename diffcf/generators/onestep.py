"""The one-step decoder: a student of the diffusion decoder that gives the image of a code in one evaluation.

The same network as the generator's denoiser, with weights of its own, asked at the noisiest level only. It serves
gradient searches and previews; the final image comes from the full decoder.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from diffcf.cards import OneStepCard, read_card, write_card
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.diffae import DiffusionAutoencoder
from diffcf.weights import part_of, read_tensors, write_tensors

WEIGHTS = "model.safetensors"


class OneStepDecoder(nn.Module):
    """x_0 = alpha_T x_T - sigma_T u(x_T, T, z), with u the network's output at the noisiest level T.

    It starts as a copy of the generator's denoiser, whose u = v makes this E[x_0 | x_T, z].

    Errors: ConfigError for a network that predicts epsilon: at the noisiest level it repeats x_T and knows no image.
    """

    def __init__(self, model: DiffusionAutoencoder) -> None:
        super().__init__()
        if model.config.prediction != "v":  # pyright: ignore[reportAttributeAccessIssue]
            raise ConfigError(
                "a one-step decoder starts from a generator that predicts v, and this one predicts epsilon; train the "
                "generator with `prediction: v`, or preview without one."
            )
        self.model = copy.deepcopy(model).requires_grad_(True)
        self.model.encoder = nn.Identity()  # codes come from the generator  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, stochastic: Tensor, semantic: Tensor) -> Tensor:
        """x_T "b c h w" and semantic codes "b ..." -> images "b c h w"; not clamped, differentiable in both."""
        t = torch.full((len(stochastic),), self.model.schedule.timesteps - 1, device=stochastic.device)
        alpha, sigma = self.model.levels(t, stochastic)
        return alpha * stochastic - sigma * self.model(stochastic, t, semantic)


def save_onestep(student: OneStepDecoder, card: OneStepCard, folder: Path, *, half: bool = False) -> None:
    """Write safetensors weights and card.yaml to `folder`; half: store the weights in half precision."""
    write_tensors(student.model.state_dict(), folder / WEIGHTS, half=half)
    write_card(card, folder)


def load_onestep(source: str | Path, model: DiffusionAutoencoder, generator_hash: str) -> OneStepDecoder:
    """Read what `save_onestep` wrote, for the generator of that network and content hash; frozen, single precision.

    source: folder or bundled name; a set ("lidc") stands for its one-step decoder. Errors: CheckpointError where there
    is none, or one of another generator.
    """
    folder = part_of(source, "onestep")
    card = read_card(OneStepCard, folder)
    if card.generator_hash != generator_hash:
        raise CheckpointError(
            f"the one-step decoder in {folder} was distilled from generator {card.generator_hash[:12]}, but this one "
            f"is {generator_hash[:12]}; give the one of this generator, or train one: train/onestep.py."
        )
    student = OneStepDecoder(model)
    try:
        student.model.load_state_dict({name: value.float() for name, value in read_tensors(folder / WEIGHTS).items()})
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {folder} do not fit the generator's config.json: {error}") from error
    return student.eval().requires_grad_(False)
