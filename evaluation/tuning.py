"""Which setting of every method its validation scans choose, by one rule for all.

    python evaluation/tuning.py --config configs/evaluation/tuning_lidc.yaml

Reads what `train/align.py` wrote on the cards of its black boxes: the figures of the validation scans, whose marks say
nothing, at the step that was kept. `chosen` is the setting with the highest `figure` of its method; the others of the
method are not trained any further. `balanced_accuracy` is the mean over the classes of their accuracies: 1 / the number
of classes where every scan is given the same class. Test scans are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import RESULTS, write_result

from diffcf.cards import ClassifierCard, read_card
from diffcf.errors import ConfigError
from diffcf.training.command import run_script

FIGURES = ("auc", "accuracy", "balanced_accuracy")
SAME = ("data", "train", "seed", "select")  # what runs that are compared have in common, beside the scans of validation


@dataclass(frozen=True)
class Config:
    """Which runs.

    Args:
        name: the result is written to docs/results/tuning_NAME.json.
        runs: method -> setting -> black box, all of the same data and seed.
        figure: what is compared, as `select` of train/align.py has it.
        default: which method is ours.
        data: what the data are, in words. seed: of the runs. out: folder of the result.
    """

    name: str
    runs: dict[str, dict[str, str]]
    default: str
    figure: Literal["auc", "accuracy"] = "auc"
    data: str = ""
    seed: int = 0
    out: Path = RESULTS


def figures_of(source: str) -> dict[str, Any]:
    """What the card of a run says. Errors: ConfigError for a card of another script."""
    about = read_card(ClassifierCard, Path(source)).about
    if "validation" not in about or "method" not in about:
        raise ConfigError(f"{source}: no black box of train/align.py, whose cards hold method and validation figures.")
    return about


def main(config: Config) -> list[dict[str, Any]]:
    """Compare; prints and writes the table, returns its rows."""
    if config.default not in config.runs:
        raise ConfigError(f"no method {config.default!r}; there are {', '.join(config.runs)}.")
    cards = {source: figures_of(source) for settings in config.runs.values() for source in settings.values()}
    first = next(iter(cards))
    for source, about in cards.items():
        if about.get("select", config.figure) != config.figure:
            raise ConfigError(f"{source} kept its weights by {about['select']}, and {config.figure} is compared.")
        for what in SAME:
            if about.get(what) != cards[first].get(what):
                raise ConfigError(f"{source} and {first} differ in {what}: they cannot be compared.")
        if about["validation"]["n"] != cards[first]["validation"]["n"] or about.get("seed") != config.seed:
            raise ConfigError(
                f"{source}: not validated on the scans of {first}, or of another seed than {config.seed}."
            )
    rows = []
    for method, settings in config.runs.items():
        best = max(settings, key=lambda setting: cards[settings[setting]]["validation"][config.figure])
        for setting, source in settings.items():
            about = cards[source]
            row = {"method": method, "setting": setting, "n": about["validation"]["n"], "split": "val"}
            row |= {key: about["validation"][key] for key in FIGURES} | {"step": about["step"]}
            rows.append(row | {"chosen": setting == best, "default": method == config.default})
    write_result(__file__, config, "Settings that validation scans choose", rows)
    return rows


if __name__ == "__main__":
    run_script(main, Config)
