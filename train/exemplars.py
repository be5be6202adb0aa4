"""Keep the codes of images that a black box is sure of beside an agent, for the method Exemplar.

    python train/exemplars.py --config configs/exemplars/lidc_spatial_phantom.yaml

Nothing is trained. The images need not be those of the agent: a counterfactual is put together from them, so that
exemplars of phantoms can be given away where those of patients cannot. Only "train" rows are taken. The file is written
to AGENT/exemplars.safetensors; the agent's content hash covers it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from diffcf.cards import AgentCard, read_card, write_card
from diffcf.classifiers.blackbox import load_blackbox
from diffcf.counterfactuals.exemplar import Exemplars
from diffcf.data.dataset import ScanDataset
from diffcf.data.manifest import Manifest
from diffcf.explain import check_agent
from diffcf.generators.generator import SliceWise, load_generator
from diffcf.training.command import command_line, run_script
from diffcf.weights import content_hash


@dataclass(frozen=True)
class Config:
    """Which images, for whom.

    Args:
        agent: folder of the agent.
        generator: folder or bundled name of its generator.
        classifier: folder or bundled name of its black box.
        manifests: CSV files; their "train" rows are looked at, labels are not read.
        most: exemplars a class, evenly chosen among those that the black box is sure of.
        least: the probability of one who is sure.
        batch: images encoded at once.
        data, terms: of the images, in words, for the card.
    """

    agent: Path
    generator: str
    classifier: str
    manifests: list[Path]
    most: int = 512
    least: float = 0.8
    batch: int = 64
    data: str = ""
    terms: str = ""


@torch.no_grad()
def main(config: Config) -> Exemplars:
    """Encode, ask, choose, write.

    Errors: CheckpointError for an agent of another generator or black box; ConfigError where the black box is sure of
    no image of some class.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = SliceWise(load_generator(config.generator)).to(device)
    blackbox = load_blackbox(config.classifier).to(device)
    card = read_card(AgentCard, config.agent)
    hashes = content_hash(config.generator, "generator"), content_hash(config.classifier, "classifier")
    check_agent(card, blackbox.card.classes, blackbox.card.preparation.slices, *hashes)
    preparation = replace(generator.card.preparation, slices=blackbox.card.preparation.slices)
    view = blackbox.view_of(preparation)
    images = ScanDataset(Manifest.read_all(config.manifests), preparation, split="train").images
    codes, scores = [], []
    for part in images.split(config.batch):
        codes.append(generator.encode_semantic(part.to(device)).cpu())
        scores.append(blackbox(view(part.to(device))).softmax(1).cpu())
    kept = Exemplars.sure(torch.cat(codes), torch.cat(scores), least=config.least, most=config.most)
    counts = kept.counts(blackbox.card.classes)
    kept.save(config.agent)
    command = command_line(__file__)
    card.about["exemplars"] = {"data": config.data, "terms": config.terms, "command": command, **counts}
    write_card(card, config.agent)
    Console().print(f"exemplars of {len(images)} images:", counts)
    return kept


if __name__ == "__main__":
    run_script(main, Config)
