"""A trained diffusion autoencoder as a `Generator`: which sampler, how many steps, and slice by slice over scans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from diffcf.cards import GeneratorCard, Sampling, read_card, write_card
from diffcf.errors import CheckpointError, ConfigError
from diffcf.generators.autoencoder import NETWORKS, Autoencoder, AutoencoderGenerator
from diffcf.generators.diffae import DiffusionAutoencoder
from diffcf.generators.onestep import OneStepDecoder, load_onestep
from diffcf.generators.sampling import (
    Grid,
    ddim_decode,
    ddim_encode,
    dpm_solver_decode,
    forward_noise,
    make_grid,
    obelm_decode,
    obelm_encode,
    obelm_start,
)
from diffcf.types import Code
from diffcf.weights import MODEL_WEIGHTS, content_hash, onestep_beside, part_of, read_tensors, write_tensors

SAMPLERS = ("ddim", "dpm", "obelm")


class DiffusionGenerator(nn.Module):
    """A `Generator` over single slices "b c h w": E(x) and D(z, x_T) of paper 004, section 2.1.

    `forwards` counts evaluations of the denoising network per image; reading a semantic code is none of them. The
    weights are frozen; `decode` is differentiable in the code's `semantic`. onestep: what makes the previews, if any.
    """

    def __init__(
        self,
        model: DiffusionAutoencoder,
        card: GeneratorCard,
        sampling: Sampling | None = None,
        onestep: OneStepDecoder | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.onestep = onestep
        self.card = card
        self.sampling = sampling or card.sampling
        if self.sampling.sampler not in SAMPLERS:
            raise ConfigError(f"sampler {self.sampling.sampler!r}: expected {', '.join(SAMPLERS)}.")
        self.grid: Grid = make_grid(model.schedule, self.sampling.steps, self.sampling.spacing)
        self.forwards = 0

    def encode_semantic(self, image: Tensor) -> Tensor:
        """Image "b c h w" in [-1, 1] -> semantic code "b d" or "b d h w", without a stochastic one."""
        return self.model.encode_semantic(image)

    def encode(self, image: Tensor) -> Code:
        """Image "b c h w" in [-1, 1] -> code; the stochastic part is the inverted x_T ("obelm": a pair of states)."""
        semantic = self.encode_semantic(image)
        invert = obelm_encode if self.sampling.sampler == "obelm" else ddim_encode
        stochastic = invert(self._denoiser(semantic), image, self.grid)
        return Code(semantic, self._with_states(stochastic))

    def decode(self, code: Code) -> Tensor:
        """Code -> image "b c h w"; not clamped.

        Errors: ConfigError for a code without x_T, and for one with another number of states than the sampler carries.
        """
        states = 0 if code.stochastic is None else code.stochastic.shape[1]
        if code.stochastic is None or states != self.states:
            raise ConfigError(
                f"a code with {states} noise state(s): the sampler {self.sampling.sampler!r} carries {self.states}; "
                "encode with the same sampler, or draw them with fresh_stochastic."
            )
        denoiser = self._denoiser(code.semantic)
        if self.sampling.sampler == "obelm":
            return obelm_decode(denoiser, code.stochastic, self.grid)
        decode = dpm_solver_decode if self.sampling.sampler == "dpm" else ddim_decode
        return decode(denoiser, rearrange(code.stochastic, "b 1 c h w -> b c h w"), self.grid)

    def preview(self, code: Code) -> Tensor:
        """The image of a code in one evaluation, "b c h w"; not clamped, differentiable in the semantic code.

        By the one-step decoder, which imitates `decode`. Without one it is the denoiser's own prediction at the
        noisiest level, E[x_0 | x_T, z]: x_0 = alpha x_T - sigma v. That comes the closer to `decode` the more of the
        image the semantic code holds. A network that predicts epsilon says nothing of the image there, and is decoded
        in full. A pair of states shows its second.
        """
        if not self.previews:
            return self.decode(code)
        if code.stochastic is None:
            raise ConfigError("a code without x_T cannot be previewed; draw one with fresh_stochastic.")
        noise = code.stochastic[:, -1]
        if self.onestep is not None:
            self.forwards += 1
            return self.onestep(noise, code.semantic)
        t = torch.full((len(noise),), int(self.grid.timesteps[-1]), device=noise.device)
        alpha, sigma = self.model.levels(t, noise)
        return (noise - sigma * self._denoiser(code.semantic)(noise, t)) / alpha

    @property
    def spatial(self) -> bool:
        """Whether the semantic code is a map."""
        return self.model.config.code == "spatial"  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def previews(self) -> bool:
        """Whether `preview` is something else than the full decode."""
        return self.onestep is not None or self.model.config.prediction != "epsilon"  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def states(self) -> int:
        """n of a stochastic code "b n c h w"."""
        return 2 if self.sampling.sampler == "obelm" else 1

    def purified(self, image: Tensor, seed: int, noise: float = 0.25) -> Tensor:
        """The image "b c h w" after noise and denoising, DiffPure (Nie et al. 2022) with the image's own code.

        noise: sigma / alpha where denoising starts, in units of the image. What is finer than the noise, as adversarial
        patterns are, is gone; what the generator takes for content comes back. Not clamped.
        """
        level = int((self.grid.ratio - noise).abs()[1:].argmin()) + 1
        part = Grid(self.grid.timesteps[:level], self.grid.alpha[: level + 1], self.grid.sigma[: level + 1])
        noisy = forward_noise(image, self._noise(len(image), seed).to(image), part)
        return ddim_decode(self._denoiser(self.encode_semantic(image)), noisy, part)

    def fresh_stochastic(self, semantic: Tensor, seed: int) -> Tensor:
        """A stochastic code "b n c h w" of white noise for semantic codes "b ...", the same on every device."""
        noise = self._noise(len(semantic), seed).to(semantic)
        if self.sampling.sampler == "obelm":
            return obelm_start(self._denoiser(semantic), noise, self.grid)
        return self._with_states(noise)

    def noised_stochastic(self, image: Tensor, seed: int) -> Tensor:
        """x_T = alpha_T x_0 + sigma_T eps, "b 1 c h w": what paper 004 states below its Eq. 1 (one-state samplers)."""
        if self.states != 1:
            raise ConfigError("the forward-noised x_T is one state; the exact sampler carries two. Use sampler 'ddim'.")
        noise = self._noise(len(image), seed).to(image)
        return self._with_states(forward_noise(image, noise, self.grid))

    def _noise(self, count: int, seed: int) -> Tensor:
        config: Any = self.model.config
        shape = (count, config.image_channels, config.image_size, config.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def _denoiser(self, semantic: Tensor) -> Any:
        inner = self.model.denoiser(semantic)

        def counted(x: Tensor, t: Tensor) -> Tensor:
            self.forwards += 1
            return inner(x, t)

        return counted

    @staticmethod
    def _with_states(stochastic: Tensor) -> Tensor:
        return stochastic if stochastic.ndim == 5 else rearrange(stochastic, "b c h w -> b 1 c h w")


class SliceWise(nn.Module):
    """Lifts a generator of slices to scans: "b s c h w" <-> Code(semantic "b s ...", stochastic "b s n c h w")."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    @property
    def card(self) -> GeneratorCard:
        """The generator's card."""
        return self.generator.card

    @property
    def spatial(self) -> bool:
        """Whether the semantic code is a map."""
        return self.generator.spatial

    @property
    def previews(self) -> bool:
        """Whether `preview` is something else than the full decode."""
        return getattr(self.generator, "previews", False)

    @property
    def forwards(self) -> int:
        """Network evaluations per slice so far."""
        return self.generator.forwards

    def encode_semantic(self, image: Tensor) -> Tensor:
        """Scan "b s c h w" -> semantic codes "b s ..."."""
        flat = self.generator.encode_semantic(rearrange(image, "b s c h w -> (b s) c h w"))
        return _lifted(flat, image.shape[1])

    def encode(self, image: Tensor) -> Code:
        """Scan "b s c h w" in [-1, 1] -> code."""
        slices = image.shape[1]
        code = self.generator.encode(rearrange(image, "b s c h w -> (b s) c h w"))
        return Code(
            _lifted(code.semantic, slices), None if code.stochastic is None else _lifted(code.stochastic, slices)
        )

    def decode(self, code: Code) -> Tensor:
        """Code -> scan "b s c h w"; not clamped."""
        slices = code.semantic.shape[1]
        stochastic = None if code.stochastic is None else code.stochastic.flatten(0, 1)
        return _lifted(self.generator.decode(Code(code.semantic.flatten(0, 1), stochastic)), slices)

    def preview(self, code: Code) -> Tensor:
        """Code -> what one evaluation a slice says of it, "b s c h w"."""
        slices = code.semantic.shape[1]
        stochastic = None if code.stochastic is None else code.stochastic.flatten(0, 1)
        return _lifted(self.generator.preview(Code(code.semantic.flatten(0, 1), stochastic)), slices)

    def purified(self, image: Tensor, seed: int, noise: float = 0.25) -> Tensor:
        """Scan "b s c h w" after noise and denoising of every slice."""
        flat = self.generator.purified(rearrange(image, "b s c h w -> (b s) c h w"), seed, noise)
        return _lifted(flat, image.shape[1])

    def fresh_stochastic(self, semantic: Tensor, seed: int) -> Tensor:
        """Stochastic codes "b s n c h w" of white noise for semantic codes "b s ..."; each slice has its own."""
        return _lifted(self.generator.fresh_stochastic(semantic.flatten(0, 1), seed), semantic.shape[1])

    def noised_stochastic(self, image: Tensor, seed: int) -> Tensor:
        """The forward-noised x_T of every slice, "b s 1 c h w"."""
        flat = self.generator.noised_stochastic(rearrange(image, "b s c h w -> (b s) c h w"), seed)
        return _lifted(flat, image.shape[1])


def _lifted(flat: Tensor, slices: int) -> Tensor:
    return rearrange(flat, "(b s) ... -> b s ...", s=slices)


def save_generator(
    model: DiffusionAutoencoder | Autoencoder, card: GeneratorCard, folder: Path, *, half: bool = False
) -> None:
    """Write config.json, safetensors weights and card.yaml to `folder`; half: store the weights in half precision."""
    write_tensors(model.state_dict(), folder / MODEL_WEIGHTS, half=half)
    model.save_config(folder)
    write_card(card, folder)


def load_generator(
    source: str | Path, *, onestep: str | Path | None = None, **sampling: Any
) -> DiffusionGenerator | AutoencoderGenerator:
    """Read what `save_generator` (or diffusers' `save_pretrained`, and a card) wrote; frozen, in single precision.

    source: folder or bundled name; a set ("lidc") stands for its generator, a diffusion or a plain autoencoder as its
    config.json says. onestep: folder or bundled name of a one-step decoder for the previews; None takes the folder
    `onestep` beside the generator's, if there is one. sampling: fields of `Sampling` that replace the card's; None
    leaves them. A plain autoencoder samples nothing, whatever is asked.

    Errors: CheckpointError where the folder holds no generator, or one whose image size is not its card's, and for a
    one-step decoder of another generator; ConfigError for a sampling that cannot be meant.
    """
    folder = part_of(source, "generator")
    card = read_card(GeneratorCard, folder)
    model = _read_network(folder)
    if model.config.image_size != card.preparation.size:  # pyright: ignore[reportAttributeAccessIssue]
        raise CheckpointError(
            f"{folder}: the network takes images of {model.config.image_size} pixels, its card says "  # pyright: ignore[reportAttributeAccessIssue]
            f"{card.preparation.size}; correct the card."
        )
    asked = {key: value for key, value in sampling.items() if value is not None}
    try:
        sampled = replace(card.sampling, **asked)
    except TypeError as error:
        raise ConfigError(f"{asked}: expected sampler, steps and spacing ({error}).") from error
    found = onestep or onestep_beside(folder)
    if not isinstance(model, DiffusionAutoencoder):
        if found is not None:
            raise ConfigError(f"{folder} is a plain autoencoder, whose decode is one step already; leave out {found}.")
        return AutoencoderGenerator(model, card)
    student = None if found is None else load_onestep(found, model, content_hash(folder))
    return DiffusionGenerator(model, card, sampled, student)


def load_diffusion(source: str | Path, **options: Any) -> DiffusionGenerator:
    """`load_generator` where only a diffusion autoencoder will do. Errors: ConfigError for a plain one, too."""
    generator = load_generator(source, **options)
    if not isinstance(generator, DiffusionGenerator):
        raise ConfigError(f"{source} is a plain autoencoder, which has no noise; give a diffusion autoencoder.")
    return generator


def _read_network(folder: Path) -> DiffusionAutoencoder | Autoencoder:
    """The network in `folder`, of the class that its config.json names."""
    try:
        config = cast(dict[str, Any], DiffusionAutoencoder.load_config(folder, local_files_only=True))
        plain = {kind.__name__: kind for kind in NETWORKS.values()}
        kind = plain.get(config.get("_class_name", ""), DiffusionAutoencoder)
        model = cast(DiffusionAutoencoder | Autoencoder, kind.from_config(config))
    except (OSError, ValueError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder} holds no readable config.json of a generator: {error}") from error
    weights = {name: value.float() for name, value in read_tensors(folder / MODEL_WEIGHTS).items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json: {error}") from error
    return model
