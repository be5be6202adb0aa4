"""Train a plain autoencoder on the slices of scans: a generator without noise.

    accelerate launch train/autoencoder.py --config configs/autoencoder/lidc.yaml
    accelerate launch train/autoencoder.py --config configs/autoencoder/lidc_adversarial.yaml

The first is paper 003's. The second, latent diffusion's with a discriminator, stands for the GAN-based autoencoders
that paper 004 compares with (section 3.4); without a perceptual loss (LPIPS), which needs weights of another network.

Labels are not read. A run that was cut off goes on where its last checkpoint stands when it is started again. The
averaged weights are written to OUT/generator at every validation, and the trust statistics beside them at the end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from rich.console import Console

from diffcf.cards import GeneratorCard, Preparation
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.generators.autoencoder import Network
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.training.adversarial import Adversarial
from diffcf.training.autoencoder import AutoencoderStage, fit_autoencoder
from diffcf.training.command import command_line, run_script
from diffcf.training.run import settings
from diffcf.trust import FEWEST_HELD_OUT, fit_trust

# What a resumed run may change.
FREE = ("steps", "cooldown", "validate_every", "save_every", "val_images", "data", "terms", "out")


@dataclass(frozen=True, kw_only=True)
class Config(AutoencoderStage):
    """What to train on, which network, and how.

    Args:
        out: run folder.
        manifests: CSV files; "train" rows are learned from, "val" rows are watched.
        preparation: how slices are cut; its size is the network's.
        network: conv, paper 003's (ConvAutoencoder), or kl, latent diffusion's (KLAutoencoder).
        kl_weight: of kl's distance of codes from white noise, in nats.
        adversarial: a discriminator that the reconstructions must pass, with the same learning rate; null: none.
        precision: "bf16" computes passes in bfloat16; weights stay in single precision.
        data, terms: of what it was trained on, in words, for the card.
        seed: of initialisation, order and views.
    """

    out: Path
    manifests: list[Path]
    preparation: Preparation = field(default_factory=Preparation)
    network: Network = "conv"
    kl_weight: float = 1e-6
    adversarial: Adversarial | None = None
    steps: int = 1000
    warmup: int = 100
    cooldown: float = 0.4
    weight_decay: float = 0.0
    ema: float = 0.99
    precision: Literal["no", "bf16"] = "no"
    validate_every: int = 200
    save_every: int = 200
    data: str = ""
    terms: str = ""
    seed: int = 0


def main(config: Config) -> dict[str, float]:
    """Train to `config.steps`; returns the last validation's figures."""
    accelerator = Accelerator(mixed_precision=config.precision, log_with="tensorboard", project_dir=config.out)
    console = Console(quiet=not accelerator.is_main_process)
    manifest = Manifest.read_all(config.manifests)
    with accelerator.main_process_first():  # the others find the cut fields on disk
        scans = {split: ScanDataset(manifest, config.preparation, split=split) for split in ("train", "val")}
    judged = len(scans["val"]) >= FEWEST_HELD_OUT
    if not judged:
        console.print(f"{len(scans['val'])} validation scans are too few for trust statistics: none will be written.")
    command = command_line(__file__, "accelerate launch")
    about: dict[str, Any] = {"data": config.data, "terms": config.terms, "command": command, "seed": config.seed}
    if config.adversarial is not None:
        about |= {"adversarial": asdict(config.adversarial)}
    card = GeneratorCard(config.preparation, trust="trust.safetensors" if judged else None, about=about)
    figures = fit_autoencoder(
        accelerator,
        scans["train"],
        scans["val"],
        config,
        card,
        config.out,
        seed=config.seed,
        settings=settings(config, FREE),
        network=config.network,
        kl_weight=config.kl_weight,
        adversarial=config.adversarial,
    )
    if accelerator.is_main_process and judged:
        lifted = SliceWise(load_generator(config.out / "generator")).to(accelerator.device)
        fit_trust(lifted, scans["train"].images, scans["val"].images).save(config.out / "generator")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return figures


if __name__ == "__main__":
    run_script(main, Config)
