"""How well does the generator return an image? (paper 004, sections 2.4 and 3.4)

    python evaluation/reconstruction.py --config configs/evaluation/reconstruction_lidc.yaml

Each row is a way to choose x_T, a sampler and a number of steps, on held-out scans: inverted (`encode`), forward-noised
as the paper states below its Eq. 1, or random, which shows what the semantic code alone holds. Nothing is clipped on
the way; images are clamped to the window at the end. `kl` is KL(black box on the image || on its reconstruction) in
nats, `accuracy` how often the black box decides the same. An exact sampler returns whatever network it is given, so
quality is judged by plain DDIM, with the same network untrained as a control that must fail. `code_*` describe the
stochastic code, which is white noise (0, 1, 0, 0) for a good inversion. An autoencoder without noise, plain or
trained with a discriminator, has one row: nothing is sampled, and its code is all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from common import RESULTS, first_of_each_class, mean_row, write_result
from einops import reduce
from torch import Tensor

from diffcf.classifiers.blackbox import load_blackbox
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.distillation import KL, Observation
from diffcf.generators.autoencoder import AutoencoderGenerator
from diffcf.generators.diffae import DiffusionAutoencoder
from diffcf.generators.generator import DiffusionGenerator, SliceWise, load_generator
from diffcf.generators.sampling import code_statistics
from diffcf.metrics.images import psnr, ssim
from diffcf.metrics.perceptual import Perceptual
from diffcf.training.command import run_script
from diffcf.types import Code


@dataclass(frozen=True)
class Config:
    """Which generator, judged on what.

    Args:
        name: the result is written to docs/results/reconstruction_NAME.json.
        manifest: CSV file; its rows of `split` are reconstructed.
        generator, classifier: folders or bundled names.
        split: test, or val while something is still being chosen.
        steps: numbers of steps each way, of the default sampler.
        scans: at most so many, the first of the split; 0 takes all. one_each: no more than one of a patient.
        data: what the data are, in words.
        lpips_backbone: local AlexNet weights (`Perceptual`); null leaves LPIPS out, "not computed".
        batch: scans at once.
        resamples: of the bootstrap over patients.
        seed: of the noise, the untrained network and the bootstrap.
        out: folder of the result.
    """

    name: str
    manifest: Path
    generator: str
    classifier: str
    split: str = "test"
    steps: list[int] | None = None
    scans: int = 0
    one_each: bool = False
    data: str = ""
    lpips_backbone: Path | None = None
    batch: int = 32
    resamples: int = 1000
    seed: int = 0
    out: Path = RESULTS


Codes = Callable[[SliceWise, Tensor, int], Code]


def inverted(generator: SliceWise, image: Tensor, seed: int) -> Code:
    """The code with its inverted x_T."""
    return generator.encode(image)


def noised(generator: SliceWise, image: Tensor, seed: int) -> Code:
    """x_T = alpha_T x_0 + sigma_T eps."""
    return Code(generator.encode_semantic(image), generator.noised_stochastic(image, seed))


def drawn(generator: SliceWise, image: Tensor, seed: int) -> Code:
    """A random x_T."""
    semantic = generator.encode_semantic(image)
    return Code(semantic, generator.fresh_stochastic(semantic, seed))


Way = tuple[dict[str, Any], DiffusionGenerator | AutoencoderGenerator, Codes]


def ways(trained: DiffusionGenerator | AutoencoderGenerator, config: Config) -> Iterator[Way]:
    """What to compare; the default comes first."""
    if isinstance(trained, AutoencoderGenerator):
        kind = "adversarial" if "adversarial" in trained.card.about else "plain"
        yield {"method": f"{kind} autoencoder", "default": True}, trained, inverted
        return
    for named, generator, codes in samplings(trained, config):
        own = generator.sampling
        yield (
            {
                "method": f"{own.sampler}, {own.steps} + {own.steps} steps, x_T {named['x_T']}, {named['network']}",
                "default": named["default"],
                "sampler": own.sampler,
                "steps": own.steps,
                "spacing": own.spacing,
                "x_T": named["x_T"],
                "network": named["network"],
            },
            generator,
            codes,
        )


def samplings(
    trained: DiffusionGenerator, config: Config
) -> Iterator[tuple[dict[str, Any], DiffusionGenerator, Codes]]:
    """How a row is named, the generator, and where its codes come from."""
    own = trained.sampling
    torch.manual_seed(config.seed)
    blank = cast(DiffusionAutoencoder, DiffusionAutoencoder.from_config(trained.model.config))

    def using(model: DiffusionAutoencoder = trained.model, **changes: Any) -> DiffusionGenerator:
        return DiffusionGenerator(model, trained.card, replace(own, **changes))

    plain = {"default": False, "network": "trained", "x_T": "inverted"}
    yield plain | {"default": own.sampler == "ddim"}, using(), inverted
    for steps in config.steps or (5, 10, 20, 50, 100):
        if steps != own.steps:
            yield plain, using(steps=steps), inverted
    yield plain, using(sampler="dpm"), inverted
    yield plain, using(sampler="obelm"), inverted
    yield plain | {"x_T": "forward-noised"}, using(), noised
    yield plain | {"x_T": "random"}, using(), drawn
    yield plain | {"x_T": "random"}, using(sampler="dpm"), drawn
    yield plain | {"network": "untrained"}, using(blank), inverted
    yield plain | {"network": "untrained", "x_T": "random"}, using(blank), drawn


@torch.no_grad()
def judge(
    generator: SliceWise,
    codes: Codes,
    images: Tensor,
    classify: Callable[[Tensor], Tensor],
    perceptual: Perceptual | None,
    config: Config,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Figures of each scan, "n" each (means over its slices), and the statistics of the stochastic codes."""
    figures: dict[str, list[Tensor]] = {}
    stochastic = []
    device = next(generator.parameters()).device
    for start, image in zip(range(0, len(images), config.batch), images.split(config.batch), strict=True):
        image = image.to(device)
        code = codes(generator, image, config.seed + start)
        made = generator.decode(code).clamp(-1, 1)
        before, after = classify(image), classify(made)
        of_slices = {"psnr": psnr(made, image), "ssim": ssim(made, image)}
        if perceptual is not None:
            of_slices["lpips"] = perceptual(made, image)
        seen = {key: reduce(value, "b s -> b", "mean") for key, value in of_slices.items()}
        seen["kl"] = torch.stack(
            [KL()(Observation(None, a[None]), Observation(None, b[None])) for a, b in zip(after, before, strict=True)]
        )
        seen["accuracy"] = (before.argmax(1) == after.argmax(1)).float()
        for key, value in seen.items():
            figures.setdefault(key, []).append(value.double().cpu())
        if code.stochastic is not None:
            stochastic.append(code.stochastic[:, :, -1].cpu())
    described = code_statistics(torch.cat(stochastic)) if stochastic else {}
    statistics = {f"code_{key}": value for key, value in described.items()}
    return {key: torch.cat(values).numpy() for key, values in figures.items()}, statistics


def main(config: Config) -> list[dict[str, Any]]:
    """Judge every way; prints and writes the table, returns its rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_generator(config.generator).to(device)
    blackbox = load_blackbox(config.classifier).to(device)
    view = blackbox.view_of(trained.card.preparation)
    # The black box decides how many slices a scan has; the generator takes them one by one.
    preparation = replace(trained.card.preparation, slices=blackbox.card.preparation.slices)
    scans = ScanDataset(Manifest.read(config.manifest), preparation, split=config.split)
    whose = scans.patients if config.one_each else None
    chosen = first_of_each_class(torch.zeros(len(scans)), range(len(scans)), config.scans, whose)
    images, patients = scans.images[chosen], [scans.patients[i] for i in chosen]
    perceptual = None if config.lpips_backbone is None else Perceptual(config.lpips_backbone).to(device)
    table = []
    for named, generator, codes in ways(trained, config):
        lifted = SliceWise(generator.to(device))
        figures, statistics = judge(lifted, codes, images, lambda x: blackbox(view(x)), perceptual, config)
        row = {
            "method": named["method"],
            "data": config.name,
            "split": config.split,
            "n": len(chosen),
            "patients": len(set(patients)),
            **named,
            **mean_row(figures, patients, resamples=config.resamples, seed=config.seed),
            **statistics,
        }
        table.append(row if perceptual is not None else row | {"lpips": "not computed"})
    write_result(__file__, config, "Reconstruction of held-out scans (paper 004, section 3.4)", table)
    return table


if __name__ == "__main__":
    run_script(main, Config)
