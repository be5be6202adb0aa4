"""What a one-step decoder learns from: the kinds of codes, the cache, the loss."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny_generator import SIZE, tiny

from diffcf.cards import GeneratorCard, Preparation, Sampling
from diffcf.generators.generator import DiffusionGenerator
from diffcf.generators.onestep import OneStepDecoder
from diffcf.metrics.images import psnr
from diffcf.training.onestep import (
    CHUNK,
    Decodes,
    OneStepLoss,
    cached_decodes,
    decode_codes,
    judge_onestep,
    read_decodes,
)
from diffcf.types import Code

CARD = GeneratorCard(Preparation(size=SIZE), Sampling(steps=3), None)
DRAWN = {"edits": 2, "longest": 0.8, "seed": 5}


def made(count: int = 4, sampler: str = "ddim") -> tuple[DiffusionGenerator, torch.Tensor, torch.Tensor]:
    teacher = DiffusionGenerator(tiny("spatial", "v"), CARD, Sampling(sampler, 3))
    images = torch.rand(count, 1, SIZE, SIZE) * 2 - 1
    return teacher, images, teacher.encode_semantic(torch.rand(7, 1, SIZE, SIZE) * 2 - 1).detach()


def test_codes_of_every_kind_beside_their_decodes() -> None:
    teacher, images, others = made()
    decodes = Decodes.join([decode_codes(teacher, images, others, chunk=0, **DRAWN)])
    assert [len(decodes.of(kind)) for kind in ("inverted", "edited", "fresh")] == [4, 8, 4]
    with torch.no_grad():
        encoded = teacher.encode(images)
        again = teacher.decode(Code(decodes.semantic, decodes.stochastic[:, None]))
    torch.testing.assert_close(decodes.image, again)
    torch.testing.assert_close(decodes.semantic[decodes.of("inverted")], encoded.semantic)
    torch.testing.assert_close(decodes.stochastic[decodes.of("edited")[:4]], encoded.stochastic[:, 0])
    fresh = decodes.stochastic[decodes.of("fresh")]
    assert float(fresh.std()) == pytest.approx(1, abs=0.05)
    # An edit is at most `longest` of the difference of two of the others.
    moved = decodes.semantic[decodes.of("edited")] - encoded.semantic.repeat(2, 1, 1, 1)
    differences = (others[:, None] - others[None]).flatten(0, 1).flatten(1)
    for one in moved.flatten(1):
        along = (differences @ one) / differences.square().sum(1).clamp(min=1e-12)
        left = (one - along[:, None] * differences).norm(dim=1)
        best = int(left.argmin())
        assert float(left[best]) < 1e-4
        assert 0 <= abs(float(along[best])) <= 0.8


def test_a_pair_of_states_teaches_with_its_second() -> None:
    teacher, images, others = made(sampler="obelm")
    decodes = Decodes.join([decode_codes(teacher, images, others, chunk=0, **DRAWN)])
    with torch.no_grad():
        encoded = teacher.encode(images)
    torch.testing.assert_close(decodes.stochastic[decodes.of("inverted")], encoded.stochastic[:, 1])


def test_decodes_are_computed_once_and_by_all_processes_the_same(tmp_path) -> None:
    teacher, images, others = made(CHUNK + 3)

    def files(place: str, **changes):
        return list(cached_decodes(teacher, "hash", images, others, tmp_path / place, **{**DRAWN, **changes}))

    one = files("one")
    before = teacher.forwards
    assert files("one") == one
    assert teacher.forwards == before
    for rank in (0, 1):
        files("two", rank=rank, world=2)
    for mine, theirs in zip(one, files("two"), strict=True):
        assert all(torch.equal(value, load_file(theirs)[name]) for name, value in load_file(mine).items())
    assert len(read_decodes(one)) == 4 * (CHUNK + 3)
    assert files("one", seed=6)[0] != one[0]
    assert next(cached_decodes(teacher, "other", images, others, tmp_path / "one", **DRAWN)) != one[0]


def test_loss_and_figures_are_those_of_the_difference() -> None:
    teacher, images, others = made()
    decodes = Decodes.join([decode_codes(teacher, images, others, chunk=0, **DRAWN)])
    student = OneStepDecoder(teacher.model)
    with torch.no_grad():
        seen = student(decodes.stochastic, decodes.semantic)
        loss = OneStepLoss(student)(decodes.stochastic, decodes.semantic, decodes.image)
    torch.testing.assert_close(loss, (seen - decodes.image).square().mean())
    figures = judge_onestep(student, decodes, batch=3)
    for kind in ("inverted", "edited", "fresh"):
        index = decodes.of(kind)
        expected = psnr(seen[index].clamp(-1, 1), decodes.image[index].clamp(-1, 1)).mean()
        assert figures[f"psnr_{kind}"] == pytest.approx(float(expected), rel=1e-4)
