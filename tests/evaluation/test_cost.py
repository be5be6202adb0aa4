"""evaluation/cost.py on configs/tiny, and its estimate by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load, result, run

from diffcf.errors import ConfigError


@pytest.fixture
def script(folder: Path) -> ModuleType:
    return load("evaluation", "cost")


def test_one_device_is_measured_and_more_are_estimated(folder) -> None:
    run("evaluation", "cost")
    rows = result(folder, "cost")["rows"]
    assert [(row["method"], row["devices"]) for row in rows] == [
        (size, devices) for size in ("16 x 16", "32 x 32") for devices in (1, 2, 16)
    ]
    one, two, many = rows[:3]
    assert one["exchange_share"] == 0
    assert one["images_s"] == pytest.approx(min(one["throughput"], one["inputs"]), rel=1e-4)
    assert one["device_hours"] == pytest.approx(one["hours"]) == pytest.approx(1000 / one["images_s"] / 3600, rel=1e-4)
    assert two["throughput"] == one["throughput"]
    assert one["images_s"] < two["images_s"] < many["images_s"]
    assert one["device_hours"] <= two["device_hours"] <= many["device_hours"]


def test_the_estimate_by_hand(script) -> None:
    config = script.Config("x", Path("manifest.csv"), script.Way({}), within=100, between=10, images=3600)
    measured = script.Measured(throughput=100, inputs=400, memory_mb=1, parameters=50_000_000)
    # Half a second of arithmetic; 200 MB of gradients go around a ring of eight at 100 GB/s in 3.5 ms.
    eight = script.estimate(measured, 50, 256, 8, config)
    assert eight["images_s"] == pytest.approx(8 * 50 / 0.5035)
    assert eight["exchange_share"] == pytest.approx(0.0035 / 0.5035)
    assert eight["device_hours"] == pytest.approx(8 * eight["hours"])
    assert eight["read_mb_s"] == pytest.approx(eight["images_s"] * 2 * 256**2 / 1e6)
    assert eight["bottleneck"] == "arithmetic"
    # Over machines the slower link counts; a batch of one does not pay for it.
    slow = script.estimate(measured, 1, 256, 64, config)
    assert slow["exchange_share"] == pytest.approx(0.039375 / 0.049375)
    assert slow["bottleneck"] == "exchange"
    assert script.estimate(replace(measured, inputs=20), 50, 256, 8, config)["bottleneck"] == "inputs"


def test_what_cannot_be_meant_is_refused(script) -> None:
    config = script.Config("x", Path("manifest.csv"), script.Way({}))
    with pytest.raises(ConfigError, match="2 sizes and 3 batches"):
        script.main(replace(config, sizes=[1, 2]))
    with pytest.raises(ConfigError, match="expected positive numbers"):
        script.main(replace(config, within=0))
