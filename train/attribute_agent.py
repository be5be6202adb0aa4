"""Fit an agent of attributes: what rated scans are told by a black box, from their ratings alone.

    python train/attribute_agent.py --config configs/attributes/phantom_texture_agent.yaml

Ridge regression of the black box's logits on the attributes and their products, in closed form, over the "train" rows
that have all attributes rated; "val" rows choose the penalty and say how well it does. `diffcf explain --method
attributes --attributes DIR --attribute-agent OUT/agent` asks it together with the black box.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from diffcf.cards import AttributesCard, read_card
from diffcf.classifiers.attribute_agent import AttributeAgent
from diffcf.classifiers.blackbox import load_blackbox
from diffcf.data.manifest import Manifest
from diffcf.training.attributes import rated_scans
from diffcf.training.command import command_line, run_script
from diffcf.weights import content_hash


@dataclass(frozen=True)
class Config:
    """Which black box, on which scans.

    Args:
        out: run folder.
        manifests: CSV files with columns `attr_NAME`; labels are not read.
        classifier: folder or bundled name of the black box.
        attributes: folder of train/attributes.py or train/attribute_flow.py, whose attributes and units are taken.
        batch: scans scored at once.
        data, terms: of the scans, in words, for the card.
    """

    out: Path
    manifests: list[Path]
    classifier: str
    attributes: Path
    batch: int = 64
    data: str = ""
    terms: str = ""


@torch.no_grad()
def main(config: Config) -> AttributeAgent:
    """Score, fit, write. Errors: ConfigError for an attribute that no manifest has, or that is rated nowhere."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = read_card(AttributesCard, config.attributes)
    blackbox = load_blackbox(config.classifier).to(device)
    manifest = Manifest.read_all(config.manifests)

    def scored(split: str) -> tuple[Tensor, Tensor]:
        images, values = rated_scans(manifest, blackbox.card.preparation, card.names, split)
        return values, torch.cat([blackbox(part.to(device)).cpu() for part in images.split(config.batch)])

    train = scored("train")
    classes, belongs = list(blackbox.card.classes), content_hash(config.classifier, "classifier")
    found = AttributeAgent.fit(card, classes, belongs, train, scored("val"))
    found.card.about.update(
        {"data": config.data, "terms": config.terms, "command": command_line(__file__), "scans": len(train[0])}
    )
    found.save(config.out / "agent")
    Console().print(
        f"of the logits of validation scans {found.card.about['explained']} is explained (R^2), and of the decisions "
        f"{found.card.about['agrees']} are the black box's, from {len(train[0])} scans"
    )
    return found


if __name__ == "__main__":
    run_script(main, Config)
