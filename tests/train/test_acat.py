"""configs/acat: every file is a run whose networks can be built, alone or over another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffcf.cards import ClassifierCard
from diffcf.classifiers.guided import GuidedClassifier
from diffcf.training.command import read_config

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "configs" / "acat").glob("*.yaml"))
METHODS = sorted((ROOT / "configs" / "acat" / "methods").glob("*.yaml"))
NORMS = sorted((ROOT / "configs" / "acat" / "norms").glob("*.yaml"))
BIG, SLOW = ("ist3", "mosmed"), [pytest.mark.slow]  # ResNet-50s
LIDC = ROOT / "configs" / "acat" / "lidc_background.yaml"


@pytest.mark.parametrize(
    "paths",
    [
        *(pytest.param([path], marks=SLOW * (path.stem in BIG)) for path in RUNS),
        *([LIDC, path] for path in METHODS + NORMS),
    ],
    ids=lambda paths: paths[-1].stem,
)
def test_configs_are_valid_and_their_networks_can_be_built(script, paths: list[Path]) -> None:
    given = [word for path in paths for word in ("--config", str(path))]
    config = read_config(script.Config, given)
    assert config.data
    assert (config.name == "acat") == (paths[-1] not in METHODS)
    card = ClassifierCard(**{name: getattr(config, name) for name in script.OF_CARD})
    model = GuidedClassifier(card, config.guidance).eval()
    size = config.preparation.size
    image = torch.zeros(1, config.preparation.slices, 1, size, size)
    if size <= 128:
        with torch.no_grad():
            assert model(image, image if config.guidance.reads_maps else None).shape == (1, len(config.classes))
