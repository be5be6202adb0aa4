"""Which weights a command means: a name or path of a set holds `classifier`, `generator` and `agent` side by side."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from diffcf.cards import CARD_NAME, AgentCard, read_card
from diffcf.errors import CheckpointError, ConfigError
from diffcf.options import ExplainOptions
from diffcf.weights import content_hash, onestep_beside, part_of


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
    """The classifier that the options name, with the generator they name or that lies beside it.

    The agent is the one they name, or one beside the classifier or the generator that was trained for this pair; one of
    another pair is none. The one-step decoder is the one they name, or the one beside the generator.

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
    if options.agent:
        return Models(classifier, generator, part_of(options.agent, "agent"), onestep)
    places = [place / "agent" for place in dict.fromkeys((beside, generator.absolute().parent))]
    found = [place for place in places if (place / CARD_NAME).is_file()]
    agent = next((place for place in found if _belongs(place, classifier, options.card, generator)), None)
    if agent is None and _follows_agent(options.method, generator):
        others = (
            f"that of {' and '.join(map(str, found))} is of another pair" if found else f"{places[0]} does not exist"
        )
        raise ConfigError(
            f"no agent for this classifier and generator beside them ({others}): give --agent, or train one (no labels "
            "needed):\n"
            f"  accelerate launch train/agent.py --config configs/agent/lidc_l1.yaml --classifier {options.classifier} "
            f"--generator {options.generator or generator} --manifests '[MANIFEST.csv]' "
            "--data 'what they are' --terms 'whose they are' --out runs/agent\n"
            "and give --agent runs/agent/agent."
        )
    if places[0] in found and places[0] != agent:
        print(f"the agent {places[0]} is of another classifier or generator, and is not used", file=sys.stderr)
    return Models(classifier, generator, agent, onestep)


def _belongs(agent: Path, classifier: Path, card: str | None, generator: Path) -> bool:
    """Whether an agent was trained for this classifier, with `card` where it is a bare file, over this generator."""
    known = read_card(AgentCard, agent)
    return known.generator_hash == content_hash(generator) and known.blackbox_hash == content_hash(
        classifier, card=card
    )


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
