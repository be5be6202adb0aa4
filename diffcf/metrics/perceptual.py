"""LPIPS (Zhang et al. 2018) from local weights only: nothing is ever downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from diffcf.errors import CheckpointError, ConfigError


class Perceptual(nn.Module):
    """The learned perceptual distance over AlexNet, v0.1; the linear layers come with the package `lpips`.

    backbone: a state dict of torchvision's AlexNet on a local disk (`features.0.weight`, ...), which `lpips` would
    otherwise fetch; safetensors or one that loads with weights_only=True.

    Errors: CheckpointError where the file is no such state dict.
    """

    def __init__(self, backbone: Path) -> None:
        super().__init__()
        import warnings

        from lpips import LPIPS

        from diffcf.weights import read_tensors

        with warnings.catch_warnings():  # torchvision's notes on how it was asked for an untrained trunk
            warnings.simplefilter("ignore")
            self.distance = LPIPS(net="alex", pnet_rand=True, verbose=False)
        stored = read_tensors(Path(backbone))
        trunk: nn.Module = self.distance.net
        names = {name: f"features.{name.partition('.')[2]}" for name in trunk.state_dict()}  # "slice1.0.weight"
        missing = [name for name in names.values() if name not in stored]
        if missing:
            raise CheckpointError(f"{backbone} is no state dict of torchvision's AlexNet: it lacks {missing[0]}.")
        trunk.load_state_dict({ours: stored[theirs].float() for ours, theirs in names.items()})
        self.requires_grad_(False)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Images "... c h w" in [-1, 1] with one or three channels -> distance "...", 0 for equal images.

        Errors: ConfigError for different shapes or another number of channels.
        """
        if image.shape != reference.shape or image.ndim < 4 or image.shape[-3] not in (1, 3):
            raise ConfigError(
                f"images of shape {tuple(image.shape)} and {tuple(reference.shape)}: LPIPS takes two of the same "
                "shape, (..., channels, rows, columns) with 1 or 3 channels."
            )
        pair = [rearrange(x, "... c h w -> (...) c h w") for x in (image, reference)]
        if image.shape[-3] == 1:
            pair = [repeat(x, "b 1 h w -> b c h w", c=3) for x in pair]
        return torch.as_tensor(self.distance(*pair)).reshape(image.shape[:-3])
