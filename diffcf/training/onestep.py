"""What a one-step decoder learns from: codes beside their full decodes, computed once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffcf.generators.generator import DiffusionGenerator
from diffcf.generators.onestep import OneStepDecoder
from diffcf.metrics.images import psnr
from diffcf.training.keyed import generator as keyed
from diffcf.types import Code
from diffcf.weights import write_tensors

CHUNK = 32  # images whose codes are decoded together and kept in one file
KINDS: tuple[str, ...] = ("inverted", "edited", "fresh")


@dataclass(frozen=True, eq=False)
class Decodes:
    """n codes, semantic "n ..." and x_T "n c h w", beside the teacher's images "n c h w", not clamped.

    kind: int "n", index into `KINDS`: the code of an image; that code edited; that code with a fresh x_T.
    """

    semantic: Tensor
    stochastic: Tensor
    image: Tensor
    kind: Tensor

    def __len__(self) -> int:
        return len(self.kind)

    def of(self, kind: str) -> Tensor:
        """The positions of a kind."""
        return (self.kind == KINDS.index(kind)).nonzero().squeeze(1)

    @classmethod
    def join(cls, parts: list[dict[str, Tensor]]) -> Decodes:
        """One after the other."""
        return cls(**{key: torch.cat([part[key] for part in parts]) for key in parts[0]})


@torch.no_grad()
def decode_codes(
    teacher: DiffusionGenerator, images: Tensor, others: Tensor, *, edits: int, longest: float, seed: int, chunk: int
) -> dict[str, Tensor]:
    """Codes of `images` "n c h w" and what the teacher makes of them, as `Decodes` has them.

    For every image its code with the inverted x_T; `edits` times the same, shifted by up to `longest` (drawn evenly) of
    the difference between the codes of two of `others` "m ...", which is where edits lead; and with a fresh x_T. chunk:
    which part of a larger set these images are, a key of what is drawn.
    """
    inverted, random = teacher.encode(images), keyed("onestep", seed, chunk)
    codes = [(0, inverted)]
    for _ in range(edits):
        one, two = (torch.randint(len(others), (len(images),), generator=random) for _ in range(2))
        step = longest * torch.rand(len(images), generator=random).to(images)
        change = others[one].to(images) - others[two].to(images)
        codes.append((1, Code(inverted.semantic + torch.einsum("b,b...->b...", step, change), inverted.stochastic)))
    fresh = teacher.fresh_stochastic(inverted.semantic, int(torch.randint(2**31, (1,), generator=random)))
    codes.append((2, Code(inverted.semantic, fresh)))
    parts = [
        {
            "semantic": code.semantic.float().cpu(),
            "stochastic": code.stochastic[:, -1].float().cpu(),
            "image": teacher.decode(code).float().cpu(),
            "kind": torch.full((len(images),), kind),
        }
        for kind, code in codes
        if code.stochastic is not None
    ]
    return {key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]}


def cached_decodes(
    teacher: DiffusionGenerator,
    model: str,
    images: Tensor,
    others: Tensor,
    folder: Path,
    *,
    edits: int,
    longest: float,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Path]:
    """The files of all chunks of `decode_codes`, in `folder`; this process computes its share of those not there yet.

    model: the teacher's content hash, which names the files with its sampling, the pixels and the settings.
    """
    device = next(teacher.parameters()).device
    drawn = {"edits": edits, "longest": longest, "seed": seed}
    key = hashlib.sha256(repr((model, teacher.sampling, drawn, tuple(images.shape), CHUNK)).encode())
    for tensor in (images, others):
        key.update(tensor.detach().cpu().contiguous().numpy().data)
    target = folder / f"onestep-{key.hexdigest()[:24]}"
    target.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(images.split(CHUNK)):
        file = target / f"{number:05d}.safetensors"
        if number % world == rank and not file.is_file():
            made = decode_codes(teacher, part.to(device), others, chunk=number, **drawn)
            write_tensors(made, file)
        yield file


def read_decodes(files: list[Path]) -> Decodes:
    """All chunks together."""
    return Decodes.join([load_file(file) for file in files])


class OneStepLoss(nn.Module):
    """Mean squared difference between the student's image and the teacher's, at the same code and x_T."""

    def __init__(self, student: OneStepDecoder) -> None:
        super().__init__()
        self.student = student

    def forward(self, stochastic: Tensor, semantic: Tensor, image: Tensor) -> Tensor:
        """Scalar over x_T "b c h w", semantic codes "b ..." and the teacher's images "b c h w"."""
        return F.mse_loss(self.student(stochastic, semantic).float(), image)


@torch.no_grad()
def judge_onestep(student: OneStepDecoder, decodes: Decodes, batch: int = 64) -> dict[str, float]:
    """PSNR in dB between student and teacher, both clamped, of each kind of codes: mean over the images."""
    device = next(student.parameters()).device
    figures = {}
    for kind in KINDS:
        parts = [
            psnr(
                student(decodes.stochastic[index].to(device), decodes.semantic[index].to(device)).clamp(-1, 1).cpu(),
                decodes.image[index].clamp(-1, 1),
            )
            for index in decodes.of(kind).split(batch)
        ]
        figures[f"psnr_{kind}"] = float(torch.cat(parts).mean()) if parts else float("nan")
    return figures
