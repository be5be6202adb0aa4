"""train/trust.py over a generator that came without statistics."""

from __future__ import annotations

import pytest
from tiny_data import write_tiny_data
from tiny_generator import SIZE, tiny

from diffcf.cards import GeneratorCard, Preparation, Sampling
from diffcf.errors import ConfigError
from diffcf.generators.generator import load_generator, save_generator
from diffcf.trust import TrustStatistics


def test_statistics_are_written_beside_the_generator_and_named_in_its_card(script, tmp_path):
    card = GeneratorCard(Preparation(size=SIZE, slices=2, field="resize"), Sampling(steps=4), None)
    save_generator(tiny(), card, tmp_path / "generator")
    manifest = write_tiny_data(tmp_path / "data", scans=100)
    script.main(script.Config(tmp_path / "generator", [manifest], steps=3))
    statistics = TrustStatistics.load(tmp_path / "generator")
    assert (statistics.about["train_scans"], statistics.about["held_out_scans"]) == (60, 20)
    assert statistics.about["steps"] == 3
    assert load_generator(tmp_path / "generator").card.trust == "trust.safetensors"


def test_too_few_held_out_scans_are_refused(script, tmp_path):
    card = GeneratorCard(Preparation(size=SIZE, slices=2, field="resize"), Sampling(steps=4), None)
    save_generator(tiny(), card, tmp_path / "generator")
    with pytest.raises(ConfigError, match="at least 20"):
        script.main(script.Config(tmp_path / "generator", [write_tiny_data(tmp_path / "data", scans=30)]))
    assert load_generator(tmp_path / "generator").card.trust is None
