"""Which weights a command means: a name or path of a set holds `classifier`, `generator` and `agent` side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffcf.errors import ConfigError
from diffcf.options import ExplainOptions
from diffcf.weights import part_of


@dataclass(frozen=True)
class Models:
    """Where the three models of an explanation lie."""

    classifier: Path
    generator: Path
    agent: Path


def find_models(options: ExplainOptions) -> Models:
    """The classifier that the options name, with the generator and agent they name or that lie beside it.

    Errors: CheckpointError for a name that is nothing; ConfigError, with the remedy, where no generator or agent lies
    beside the classifier.
    """
    classifier = part_of(options.classifier, "classifier")
    beside = (classifier if classifier.is_dir() else classifier.absolute()).parent
    generator = part_of(options.generator, "generator") if options.generator else beside / "generator"
    if not generator.is_dir():
        raise ConfigError(
            f"no generator beside the classifier ({generator} does not exist): give --generator, a folder or a bundled "
            "name such as lidc, or train one on your scans:\n"
            "  accelerate launch train/diffae.py --config configs/diffae/lidc.yaml "
            "--manifests '[MANIFEST.csv]' --out runs/generator\nand give --generator runs/generator."
        )
    agent = part_of(options.agent, "agent") if options.agent else beside / "agent"
    if not agent.is_dir():
        raise ConfigError(
            f"no agent beside the classifier ({agent} does not exist): give --agent, or train one for this classifier "
            "and generator (no labels needed):\n"
            f"  accelerate launch train/agent.py --config configs/agent/lidc_l1.yaml --classifier {options.classifier} "
            f"--generator {options.generator or generator} --manifests '[MANIFEST.csv]' --out runs/agent\n"
            "and give --agent runs/agent/agent."
        )
    return Models(classifier, generator, agent)
