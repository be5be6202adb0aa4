"""The adversarial loss of an autoencoder, as latent diffusion's are trained (Esser et al. 2021; Rombach et al. 2022).

A discriminator tells patches of images from patches of reconstructions; the autoencoder learns to pass for the former.
Both papers add a perceptual loss (LPIPS), which needs a pretrained network; there is none here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from diffcf.errors import ConfigError

BETAS = (0.5, 0.9)  # of the discriminator's AdamW, as in the papers' code
LARGEST = 1e4  # adaptive weight


@dataclass(frozen=True)
class Adversarial:
    """How a discriminator takes part.

    Args:
        weight: of the adversarial loss, beside the adaptive weight.
        start: steps before it takes part; until then it does not learn either.
        channels: of the discriminator's first layer; doubled by each further one, up to eight times.
        layers: that halve the grid. The more, the larger a patch: 16, 34 and 70 pixels for 1, 2 and 3.

    Errors: ConfigError for numbers that cannot be meant.
    """

    weight: float = 0.5
    start: int = 200
    channels: int = 32
    layers: int = 3

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.start < 0:
            raise ConfigError(
                f"adversarial weight {self.weight}, start {self.start}: expected a weight above 0 and a start of 0 or "
                "more; leave out `adversarial` to train without it."
            )
        if self.channels < 8 or self.channels % 8 or self.layers < 1:
            raise ConfigError(
                f"adversarial channels {self.channels}, layers {self.layers}: expected channels in eights, for eight "
                "groups of a norm, and 1 layer or more."
            )


class PatchDiscriminator(nn.Module):
    """Image "b c h w" -> a score for each patch, "b 1 i j"; above 0 says: an image (Isola et al. 2017).

    Normalised within each sample (GroupNorm): a score depends on no other image of the batch.

    Errors: ConfigError where images are too small for so many layers.
    """

    def __init__(self, image_size: int, image_channels: int, channels: int, layers: int) -> None:
        super().__init__()
        if image_size // 2**layers < 3:  # the last two convolutions take a row each
            raise ConfigError(
                f"images of {image_size} pixels leave no patch to {layers} layers of a discriminator; give "
                "`adversarial` fewer layers."
            )
        widths = [channels * min(2**level, 8) for level in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(image_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level, (before, after) in enumerate(itertools.pairwise(widths), 1):
            stride = 2 if level < layers else 1
            parts += [nn.Conv2d(before, after, 4, stride, 1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)]
        self.parts = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for part in self.parts:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Scores."""
        return self.parts(image)


def hinge(of_images: Tensor, of_reconstructions: Tensor) -> Tensor:
    """The discriminator's loss of scores, a scalar: 0 where it is sure of all, 1 where it says 0 to everything."""
    return (F.relu(1 - of_images).mean() + F.relu(1 + of_reconstructions).mean()) / 2


def adaptive_weight(
    error: Tensor, adversarial: Tensor, last: Tensor, mean: Callable[[Tensor], Tensor] = lambda gradient: gradient
) -> Tensor:
    """|d error / d last| / (|d adversarial / d last| + 1e-4), at most `LARGEST`: Esser et al. 2021, Eq. 7.

    Scalars and the last layer's weights -> a scalar without a gradient: the adversarial loss then pulls at these
    weights as much as the error does. mean: over processes, so that the weight is that of the whole batch. Bounds are
    those of the paper's code.
    """
    slopes = [mean(torch.autograd.grad(loss, last, retain_graph=True)[0]) for loss in (error, adversarial)]
    return (slopes[0].norm() / (slopes[1].norm() + 1e-4)).clamp(max=LARGEST)


class Adversary(nn.Module):
    """A discriminator: what it adds to the loss of an autoencoder, and its own loss, in one scalar.

    One backward pass serves both. Each part holds the other's weights fixed, so that a step is the same as one of the
    autoencoder followed by one of the discriminator on the reconstructions made before. It is the `Memory` of a run.
    mean: over processes.
    """

    def __init__(
        self, settings: Adversarial, image_size: int, image_channels: int, mean: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.settings, self.mean = settings, mean
        self.discriminator = PatchDiscriminator(image_size, image_channels, settings.channels, settings.layers)
        self.seen: dict[str, Tensor] = {}

    def forward(self, image: Tensor, reconstruction: Tensor, error: Tensor, last: Tensor, step: int) -> Tensor:
        """Images and reconstructions "b c h w", the error between them, the weights that it was last made by, and the
        number of steps done -> a scalar."""
        if step < self.settings.start:
            # Processes that average gradients wait for one of every weight; at 0, AdamW only counts the step.
            return torch.stack([0 * weight.sum() for weight in self.discriminator.parameters()]).sum()
        fixed = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        adversarial = -functional_call(self.discriminator, fixed, (reconstruction,)).float().mean()
        weight = adaptive_weight(error, adversarial, last, self.mean)
        scores = self.discriminator(torch.cat([image, reconstruction.detach()])).float()
        own = hinge(*scores.chunk(2))
        self.seen = {"hinge": own.detach(), "adaptive_weight": weight}
        return self.settings.weight * weight * adversarial + own

    def group(self) -> dict[str, object]:
        """Its weights as a group of an AdamW: elementwise as it is, an AdamW of its own but for the learning rate."""
        return {"params": list(self.discriminator.parameters()), "betas": BETAS, "weight_decay": 0.0}

    def figures(self) -> dict[str, float]:
        """Hinge loss and adaptive weight of this process's last step; none before `start`."""
        return {name: float(value) for name, value in self.seen.items()}

    def tensors(self) -> dict[str, Tensor]:
        """See `Memory`."""
        return self.discriminator.state_dict()

    def restore(self, named: Mapping[str, Tensor]) -> None:
        """See `Memory`."""
        self.discriminator.load_state_dict(named)
