"""Which weights a command means: a name or path of a set holds `classifier`, `generator` and `agent` side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from diffcf.errors import CheckpointError, ConfigError
from diffcf.options import ExplainOptions
from diffcf.weights import onestep_beside, part_of


@dataclass(frozen=True)
class Models:
    """Where the models of an explanation lie.

    agent: None where there is none and the method can do without. onestep: None where there is none.
    """

    classifier: Path
    generator: Path
    agent: Path | None
    onestep: Path | None


def find_models(options: ExplainOptions) -> Models:
    """The classifier that the options name, with the generator and agent they name or that lie beside it.

    The one-step decoder is the one they name, or the one beside the generator.

    Errors: CheckpointError for a name that is nothing; ConfigError, with the remedy, where no generator lies beside the
    classifier, or no agent and the method needs one.
    """
    classifier = part_of(options.classifier, "classifier")
    beside = (classifier if classifier.is_dir() else classifier.absolute()).parent
    generator = part_of(options.generator, "generator") if options.generator else beside / "generator"
    if options.generator and generator.is_file():
        raise ConfigError(f"--generator {options.generator} is a file; give the folder that it lies in.")
    if not generator.is_dir():
        raise ConfigError(
            f"no generator beside the classifier ({generator} does not exist): give --generator, a folder or a bundled "
            "name such as lidc, or train one on your scans:\n"
            "  accelerate launch train/diffae.py --config configs/diffae/lidc.yaml "
            "--manifests '[MANIFEST.csv]' --data 'what they are' --terms 'whose they are' --out runs/generator\n"
            "and give --generator runs/generator."
        )
    onestep = part_of(options.onestep, "onestep") if options.onestep else onestep_beside(generator)
    agent = part_of(options.agent, "agent") if options.agent else _agent_beside(beside, generator)
    if not agent.is_dir() and not options.agent and not _follows_agent(options.method, generator):
        return Models(classifier, generator, None, onestep)
    if not agent.is_dir():
        raise ConfigError(
            f"no agent beside the classifier ({agent} does not exist): give --agent, or train one for this classifier "
            "and generator (no labels needed):\n"
            f"  accelerate launch train/agent.py --config configs/agent/lidc_l1.yaml --classifier {options.classifier} "
            f"--generator {options.generator or generator} --manifests '[MANIFEST.csv]' "
            "--data 'what they are' --terms 'whose they are' --out runs/agent\n"
            "and give --agent runs/agent/agent."
        )
    return Models(classifier, generator, agent, onestep)


def _agent_beside(classifiers: Path, generator: Path) -> Path:
    """The agent beside the classifier or the generator, whichever was trained over this generator."""
    from diffcf.cards import AgentCard, read_card
    from diffcf.weights import content_hash

    places = [place / "agent" for place in dict.fromkeys((classifiers, generator.absolute().parent))]
    found = [place for place in places if (place / "card.yaml").is_file()]
    for place in found if len(found) > 1 else ():
        if read_card(AgentCard, place).generator_hash == content_hash(generator):
            return place
    return found[0] if found else places[0]


def _follows_agent(method: str | None, generator: Path) -> bool:
    """Whether the method, or the default one for this generator, cannot do without an agent."""
    if method is not None:
        return method in ("agent", "exemplar")
    config = generator / "config.json"
    if not config.is_file():
        return True
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{config} is not valid JSON: {error}. Copy the generator's folder again.") from error
    # A plain autoencoder, which does not say, has a map.
    return not isinstance(said, dict) or said.get("code", "spatial") != "spatial"
