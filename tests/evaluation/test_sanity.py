"""evaluation/sanity.py: what chance makes of the likeness of two maps."""

from __future__ import annotations

import pytest
import torch
from scripts import ROOT, load


def test_maps_are_compared_with_those_of_other_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evaluation"))
    up = torch.arange(6.0)
    maps = torch.stack([up, up.exp(), 5 - up, torch.ones(6)])
    by_chance = load("evaluation", "sanity").by_chance
    alike = by_chance(maps, ["a", "a", "b", "c"])
    # Neither its own patient's other map nor the constant one of c counts; -1 is as like as 1.
    assert alike[:3].tolist() == [1, 1, 1]
    assert alike[3].isnan()
    assert by_chance(maps[:2], ["a", "a"]).isnan().all()
