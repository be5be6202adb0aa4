"""Train an agent: a small student of a black box, over the codes of a generator (paper 004, sections 2.2 and 3.2).

    accelerate launch train/agent.py --config configs/agent/lidc_l1.yaml

No labels are needed: the black box labels every image itself, so manifests of unlabelled scans may be added. The
weights that agree best with it on the validation split (smallest KL, the start included) are written to OUT/agent.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from diffcf import distillation
from diffcf.cards import AgentCard
from diffcf.classifiers.agent import Agent, save_agent
from diffcf.classifiers.blackbox import load_blackbox
from diffcf.classifiers.conv_agent import ConvAgent
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.data.views import Views
from diffcf.distillation import KL, L1, AgentLoss, Distillation, DistillationSet, Observation, evaluate_loss, observe
from diffcf.errors import ConfigError
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.training.command import command_line, run_script
from diffcf.training.keyed import Order
from diffcf.training.loop import check_launcher
from diffcf.weights import content_hash


@dataclass(frozen=True)
class Config:
    """What to distil, from what, and how.

    Args:
        out: run folder.
        manifests: CSV files; their "train" rows are learned from, their "val" rows select. Labels are not read.
        generator: folder or bundled name of the generator whose semantic encoder the agent reads.
        classifier: folder or bundled name of the black box.
        loss: L1 (the paper's default), MSE or KL.
        init: "ridge" starts from the closed-form solution of the MSE loss, its penalty chosen on the validation split;
            "random" is the paper's.
        views: every training image is learned from in all of them, each labelled anew by the black box: none, mirror
            (left-right) or square (all eight turns, for a crop without an upright).
        width: 0 is the paper's linear agent; otherwise a convolutional one of so many channels (`ConvAgent`), for a
            spatial code, with the KL loss and a start at random.
        pool: average pooling of a spatial code before it is flattened.
        epochs: passes over the training codes.
        batch: images a step, over all processes.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        patience: stop after so many epochs without better agreement; 0 never stops early.
        edits: decoded counterfactual edits an image, added after a first fit for a second one; 0 adds none.
        edit_steps: sampler steps for them, to encode and again to decode.
        residual_carry: label edits as explanations with residual carry show them.
        cache: where codes are kept; null keeps none.
        half: store the weights in half precision.
        data, terms: of what it was trained on, in words, for the card.
        seed: of initialisation, order and edits.
    """

    out: Path
    manifests: list[Path]
    generator: str
    classifier: str
    loss: AgentLoss = field(default_factory=L1)
    init: Literal["ridge", "random"] = "ridge"
    views: Views = "mirror"
    width: int = 0
    pool: int = 1
    epochs: int = 100
    batch: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    patience: int = 0
    edits: int = 0
    edit_steps: int = 20
    residual_carry: bool = False
    cache: Path | None = Path("runs/cache")
    half: bool = False
    data: str = ""
    terms: str = ""
    seed: int = 0


def fit(
    accelerator: Accelerator, agent: Agent | ConvAgent, train: DistillationSet, val: DistillationSet, config: Config
) -> int:
    """Minimise the loss; leaves the agent at its best epoch by validation KL and returns that (0 is the start)."""
    rank, world = accelerator.process_index, accelerator.num_processes
    module = Distillation(agent, config.loss)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    module, optimiser = accelerator.prepare(module, optimiser)
    tensors = {key: value.to(accelerator.device) for key, value in train.tensors().items()}
    order = Order(len(train), min(config.batch, len(train)), config.seed)
    best, best_epoch, best_state = evaluate_loss(agent, val, KL()), 0, copy.deepcopy(agent.state_dict())
    with Progress(disable=not accelerator.is_main_process, transient=True) as progress:
        task = progress.add_task("agent", total=config.epochs)
        for epoch in range(1, config.epochs + 1):
            agent.train()
            for step in range((epoch - 1) * order.steps_per_epoch, epoch * order.steps_per_epoch):
                index = order.at(step, rank, world)
                loss = module(**{key: value[index] for key, value in tensors.items()})
                accelerator.backward(loss)
                optimiser.step()
                optimiser.zero_grad()
            kl = evaluate_loss(agent.eval(), val, KL())
            if kl < best:
                best, best_epoch, best_state = kl, epoch, copy.deepcopy(agent.state_dict())
            progress.update(task, advance=1, description=f"agent: KL {kl:.4f}, best {best:.4f} at epoch {best_epoch}")
            if config.patience and epoch - best_epoch >= config.patience:
                break
    agent.load_state_dict(best_state)
    return best_epoch


def main(config: Config) -> dict[str, float]:
    """Compute codes, train, select, write; returns the agreement on the validation split.

    Errors: ConfigError for a convolutional agent with settings that only a linear one has; of `check_launcher`.
    """
    if config.width and (config.edits or config.pool > 1 or config.loss.needs_features or config.init == "ridge"):
        raise ConfigError("a convolutional agent (width > 0) needs init: random, loss: KL, pool: 1 and edits: 0.")
    accelerator = Accelerator()
    check_launcher(accelerator)
    set_seed(config.seed)
    generator = SliceWise(load_generator(config.generator, steps=config.edit_steps))
    generator.to(accelerator.device)
    blackbox = load_blackbox(config.classifier).to(accelerator.device)
    hashes = {"generator_hash": content_hash(config.generator, "generator")}
    hashes["blackbox_hash"] = content_hash(config.classifier, "classifier")
    preparation = replace(generator.card.preparation, slices=blackbox.card.preparation.slices)
    view = blackbox.view_of(preparation)

    def teacher(image: Tensor) -> Observation:
        return observe(blackbox, view(image.to(accelerator.device)))

    manifest = Manifest.read_all(config.manifests)
    images, sets = {}, {}
    for split in ("train", "val"):
        images[split] = ScanDataset(manifest, preparation, split=split).images
        with accelerator.main_process_first():  # the others find the cache filled
            sets[split] = distillation.cached_distillation_set(
                images[split],
                lambda image: generator.encode_semantic(image.to(accelerator.device)),
                teacher,
                models=list(hashes.values()),
                folder=config.cache,
                views=config.views if split == "train" else "none",
            )
    train, val = sets["train"], sets["val"]

    shape, penalty = train.semantic.shape[2:], None
    agent: Agent | ConvAgent
    if config.width:
        agent = ConvAgent.for_blackbox(blackbox, shape, width=config.width)
    else:
        agent = Agent.for_blackbox(blackbox, shape, pool=config.pool)
    agent.to(accelerator.device)  # pyright: ignore[reportArgumentType] - diffusers wraps it without a type
    agent.set_statistics(train.semantic)
    if isinstance(agent, Agent) and config.init == "ridge":
        penalty = distillation.fit_ridge(agent, train, val)
    epoch = fit(accelerator, agent, train, val, config)
    if isinstance(agent, Agent):
        agent.set_patterns(train.semantic.to(accelerator.device))
    if isinstance(agent, Agent) and config.edits:
        for split, whole in images.items():
            coded = ((part, generator.encode(part.to(accelerator.device))) for part in whole.split(config.batch))
            options = {"edits": config.edits, "residual_carry": config.residual_carry, "seed": config.seed}
            edited = distillation.augment_with_edits(agent, coded, generator.decode, teacher, **options)
            sets[split] = DistillationSet.join([sets[split], edited])
        epoch = fit(accelerator, agent, sets["train"], sets["val"], config)
        agent.set_patterns(train.semantic.to(accelerator.device))

    figures = distillation.agreement(distillation.predict(agent, val), val.teacher.logits)
    if accelerator.is_main_process:
        about = {
            "data": config.data,
            "terms": config.terms,
            "command": command_line(__file__, "accelerate launch"),
            "seed": config.seed,
            "loss": type(config.loss).__name__,
            "start": "random" if penalty is None else f"ridge, penalty {penalty:g}",
            "best_epoch": epoch,
            "train_codes": len(sets["train"]),
            "validation": {"n": len(val), **figures},
        }
        card = AgentCard(classes=blackbox.card.classes, slices=agent.slices, about=about, **hashes)
        save_agent(agent, card, config.out / "agent", half=config.half)
        Console().print(f"agreement on {len(val)} validation images:", {k: round(v, 3) for k, v in figures.items()})
    accelerator.end_training()
    return figures


if __name__ == "__main__":
    run_script(main, Config)
