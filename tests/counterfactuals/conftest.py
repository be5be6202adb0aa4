"""A world in which every answer is known: an orthogonal generator, a linear black box, a linear agent."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from diffcf.types import Code


class OrthogonalGenerator:
    """Code <-> image by an orthogonal matrix, exactly invertible; a lossy one forgets the last `lost` directions."""

    def __init__(self, slices: int, side: int, lost: int = 0, steps: int = 5) -> None:
        size = side * side
        random = torch.Generator().manual_seed(7)
        self.basis = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64)).Q
        self.kept = size - lost
        self.slices, self.side, self.steps = slices, side, steps
        self.forwards = 0

    def encode(self, image: Tensor) -> Code:
        self.forwards += self.steps
        flat = rearrange(image, "b s c h w -> b s (c h w)")
        return Code((flat @ self.basis.to(image))[..., : self.kept])

    def decode(self, code: Code) -> Tensor:
        self.forwards += self.steps
        flat = code.semantic @ self.basis.to(code.semantic)[:, : self.kept].T
        return rearrange(flat, "b s (c h w) -> b s c h w", c=1, h=self.side)


class LinearBlackBox(nn.Module):
    """Logits (-m, m) / 2 with m = weight . image + bias, summed over the slices: P(1) = sigmoid(m)."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += len(image)
        margin = (rearrange(image, "b s c h w -> b s (c h w)") @ self.weight.to(image)).sum(1) + self.bias
        return torch.stack([-margin, margin], 1) / 2


@dataclass
class World:
    """image: "b s c h w" well inside [-1, 1]; agent reads codes as the black box reads their images."""

    generator: OrthogonalGenerator
    blackbox: LinearBlackBox
    image: Tensor

    def agent(self, semantic: Tensor) -> Tensor:
        weight = self.blackbox.weight.to(semantic) @ self.generator.basis.to(semantic)
        margin = (semantic @ weight[: self.generator.kept]).sum(1) + self.blackbox.bias
        return torch.stack([-margin, margin], 1) / 2

    def margin(self, image: Tensor) -> Tensor:
        logits = self.blackbox(image)
        return logits[:, 1] - logits[:, 0]

    def slope(self) -> float:
        """Rise of the black box's margin along a unit step in code space: |weight| over all slices."""
        weight = self.blackbox.weight @ self.generator.basis
        return float(weight[: self.generator.kept].norm()) * self.generator.slices**0.5


@pytest.fixture
def make_world():
    def make(
        batch: int = 4, slices: int = 2, side: int = 4, lost: int = 0, gain: float = 8.0, dtype=torch.float64, seed=3
    ) -> World:
        random = torch.Generator().manual_seed(seed)
        image = 0.1 * torch.randn(batch, slices, 1, side, side, generator=random, dtype=dtype)
        weight = torch.randn(side * side, generator=random, dtype=dtype)
        return World(
            OrthogonalGenerator(slices, side, lost), LinearBlackBox(gain * weight / weight.norm(), -0.3), image
        )

    return make
