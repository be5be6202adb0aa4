"""The one-step decoder: what it starts as, files, and who may use it."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny_generator import SIZE, tiny

from diffcf.cards import GeneratorCard, OneStepCard, Preparation, Sampling
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.generator import DiffusionGenerator, load_generator, save_generator
from diffcf.generators.onestep import WEIGHTS, OneStepDecoder, load_onestep, save_onestep
from diffcf.types import Code
from diffcf.weights import content_hash

CARD = GeneratorCard(Preparation(size=SIZE), Sampling(steps=5), None)


def noisy(model: torch.nn.Module, by: float = 0.1) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(by * torch.randn_like(weight))


@pytest.fixture
def set_folder(tmp_path):
    """A generator with a student that differs from its denoiser, side by side."""
    model = tiny("global", "v")
    save_generator(model, CARD, tmp_path / "set" / "generator")
    student = OneStepDecoder(model)
    noisy(student)
    card = OneStepCard(content_hash(tmp_path / "set" / "generator"), CARD.sampling)
    save_onestep(student, card, tmp_path / "set" / "onestep")
    return tmp_path / "set", student.eval()


@pytest.mark.parametrize("code", ["global", "spatial"])
def test_it_starts_as_the_denoiser_s_own_preview(code: str) -> None:
    model = tiny(code, "v")
    generator = DiffusionGenerator(model, CARD)
    encoded = generator.encode(torch.rand(2, 1, SIZE, SIZE) * 2 - 1)
    with torch.no_grad():
        made = OneStepDecoder(model)(encoded.stochastic[:, 0], encoded.semantic)
    torch.testing.assert_close(made, generator.preview(encoded), atol=1e-3, rtol=0)  # the latter divides by alpha_T


def test_its_weights_are_its_own_and_the_code_s_reader_is_not_among_them() -> None:
    model = tiny("spatial", "v")
    student = OneStepDecoder(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    noisy(student)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name.split(".")[1] for name, _ in student.named_parameters()} == {"unet"}
    assert all(weight.requires_grad for weight in student.parameters())


def test_previews_come_from_the_student_and_decodes_do_not(set_folder) -> None:
    folder, student = set_folder
    plain = DiffusionGenerator(load_generator(folder).model, CARD)
    generator = load_generator(folder)
    code = generator.encode(torch.rand(2, 1, SIZE, SIZE) * 2 - 1)
    torch.testing.assert_close(generator.decode(code), plain.decode(code), rtol=0, atol=0)
    before = generator.forwards
    semantic = code.semantic.clone().requires_grad_(True)
    seen = generator.preview(Code(semantic, code.stochastic))
    assert generator.forwards == before + 1
    torch.testing.assert_close(seen, student(code.stochastic[:, 0], code.semantic), rtol=0, atol=1e-6)
    assert float((seen - plain.preview(code)).detach().abs().mean()) > 1e-3
    (slope,) = torch.autograd.grad(seen.square().sum(), semantic)
    assert float(slope.abs().sum()) > 0


def test_a_network_that_predicts_epsilon_has_none() -> None:
    with pytest.raises(ConfigError, match="prediction: v"):
        OneStepDecoder(tiny("global", "epsilon"))


def test_the_one_beside_the_generator_is_found_and_another_can_be_named(set_folder, tmp_path) -> None:
    folder, _ = set_folder
    assert load_generator(folder / "generator").onestep is not None
    shutil.copytree(folder / "generator", tmp_path / "alone" / "generator")
    assert load_generator(tmp_path / "alone").onestep is None
    for named in (folder, folder / "onestep"):
        assert load_generator(tmp_path / "alone", onestep=named).onestep is not None
    with pytest.raises(CheckpointError, match="bundled"):
        load_generator(tmp_path / "alone", onestep=tmp_path / "nothing")
    # The generator is the same model with and without a student.
    assert content_hash(folder, "generator") == content_hash(tmp_path / "alone", "generator")


def test_the_student_of_another_generator_is_refused(set_folder, tmp_path) -> None:
    folder, _ = set_folder
    other = tiny("global", "v")
    noisy(other)
    save_generator(other, CARD, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"train/onestep\.py"):
        load_generator(tmp_path / "other", onestep=folder / "onestep")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_onestep(folder / "onestep", tiny("spatial", "v"), content_hash(folder / "generator"))


def test_half_precision_files_are_half_as_large_and_computed_in_single(set_folder, tmp_path) -> None:
    folder, student = set_folder
    card = OneStepCard(content_hash(folder / "generator"))
    save_onestep(student, card, tmp_path / "half", half=True)
    sizes = [(place / WEIGHTS).stat().st_size for place in (tmp_path / "half", folder / "onestep")]
    assert sizes[0] < 0.62 * sizes[1]
    loaded = load_onestep(tmp_path / "half", load_generator(folder).model, card.generator_hash)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in loaded.parameters())
