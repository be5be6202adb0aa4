"""Put a generator, a black box and an agent into the package as a named set, each with a model card.

    python train/bundle.py --name lidc --generator runs/diffae-lidc/generator \\
        --classifier runs/classifier-lidc/blackbox --agent runs/agent-lidc/agent --results '[reconstruction_lidc]'

Nothing is written by hand: a model card (README.md) repeats the card.yaml and the rows of docs/results that are marked
as the default's. Run it again after an evaluation to renew the cards; the weights' hashes stay what they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from diffcf.cards import AgentCard, ClassifierCard, GeneratorCard, read_card
from diffcf.errors import ConfigError
from diffcf.explain import check_agent
from diffcf.training.command import run_script
from diffcf.weights import ASSETS, content_hash

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MOST_MB = 24.0  # of all bundled sets together
KINDS = {"generator": GeneratorCard, "classifier": ClassifierCard, "agent": AgentCard}
WHAT = {
    "generator": "A diffusion autoencoder: semantic encoder and conditional denoiser (paper 004, section 2.1).",
    "classifier": "The black box that the explanations of this set are about.",
    "agent": "A small student of the black box over the generator's semantic codes (paper 004, section 2.2).",
}
USE = (
    "Research and demonstration. Not a medical device; no output may guide the care of a patient. Small images, one "
    "source of data: expect it to fail elsewhere, and read the trust checks."
)


@dataclass(frozen=True)
class Config:
    """What to bundle.

    Args:
        name: of the set.
        generator, classifier, agent: folders of the trained models. A classifier that lies in another set stays there.
        results: names of files in `results_folder` whose default rows the cards repeat.
        assets: where sets lie.
    """

    name: str
    generator: Path
    classifier: Path
    agent: Path
    results: list[str] = field(default_factory=list)
    results_folder: Path = RESULTS
    assets: Path = ASSETS


def figures(names: list[str], folder: Path) -> Iterator[str]:
    """The default rows of results as Markdown, an interval behind each figure that has one."""
    for name in names:
        written = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        device = written["device"]["gpu"] or written["device"]["cpu"]
        yield f"### {written['table']}\n`{written['command']}`, seed {written['seed']}, commit "
        yield f"{written['commit'][:12]}, on {device}; all rows in docs/results/{name}.json.\n\n"
        for row in written["rows"]:
            if row.get("default"):
                yield f"- {row['method']}, {row['split']} split, n = {row['n']}: {', '.join(_figures(row))}\n"
        yield "\n"


def _figures(row: dict[str, Any]) -> Iterator[str]:
    for key, value in row.items():
        if f"{key}_low" in row and value is not None:
            yield f"{key} {value:.3f} [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]"


def model_card(part: str, folder: Path, config: Config) -> str:
    """README.md of one model."""
    card = yaml.safe_load((folder / "card.yaml").read_text(encoding="utf-8"))
    about = card.pop("about", {})
    said = "".join(f"- **{key}**: {_in_words(value)}\n" for key, value in about.items() if value not in ("", None))
    shown = "".join(figures(config.results, config.results_folder))
    return (
        f"# {config.name}/{part}\n{WHAT[part]}\n\n## Made from\n{said or '- (nothing was noted)'}\n## Input\n```yaml\n"
        f"{yaml.safe_dump(card, sort_keys=False, allow_unicode=True)}```\nContent hash {content_hash(folder)}.\n\n"
        f"## Intended use and limits\n{USE}\n\n## Figures of the set\n{shown or 'None yet.'}"
    )


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(one)}" for key, one in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(config: Config) -> Path:
    """Copy, check and describe; returns the set's folder."""
    sources = {"generator": config.generator, "classifier": config.classifier, "agent": config.agent}
    cards: dict[str, Any] = {part: read_card(kind, sources[part]) for part, kind in KINDS.items()}
    hashes = {f"{model}_hash": content_hash(sources[part])
              for model, part in (("generator", "generator"), ("blackbox", "classifier"))}  # fmt: skip
    box = cards["classifier"]
    check_agent(cards["agent"], box.classes, box.preparation.slices, **hashes)
    target = config.assets / config.name
    for part, source in sources.items():
        elsewhere = config.assets.resolve() in source.resolve().parents and source.resolve().parent != target.resolve()
        if part == "classifier" and elsewhere:
            continue
        if source.resolve() != (target / part).resolve():
            shutil.rmtree(target / part, ignore_errors=True)
            shutil.copytree(source, target / part)
        (target / part / "README.md").write_text(model_card(part, target / part, config), encoding="utf-8")
    sizes = {path: path.stat().st_size / 1e6 for path in config.assets.rglob("*") if path.is_file()}
    own, total = sum(size for path, size in sizes.items() if target in path.parents), sum(sizes.values())
    Console().print(f"{config.name}: {own:.1f} MB, all sets {total:.1f} MB")
    if total > MOST_MB:
        raise ConfigError(f"the sets hold {total:.1f} MB, more than {MOST_MB:g}; store weights in half precision.")
    return target


if __name__ == "__main__":
    run_script(main, Config)
