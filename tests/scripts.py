"""The scripts of `train/` and `evaluation/` run as a user runs them, on `configs/tiny`, in the current folder."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_data import write_tiny_data

from diffcf.cli import main
from diffcf.training.command import read_config

ROOT = Path(__file__).parents[1]


@contextmanager
def workspace(tmp_path_factory: pytest.TempPathFactory, like: Path | None = None) -> Iterator[Path]:
    """A folder in which scripts run, which is the current one for a while: with tiny data, or a copy of another."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(ROOT / "evaluation"))
        if like is None:
            write_tiny_data(folder / "runs" / "tiny" / "data", scans=100)
        else:
            shutil.copytree(like, folder, dirs_exist_ok=True)
        yield folder


def load(folder: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tiny_{folder}_{name}", ROOT / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(folder: str, name: str, *more: str, config: str = "") -> Any:
    """A script as `python FOLDER/NAME.py --config configs/tiny/NAME.yaml` runs it; config: another file's name."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    module = load(folder, name)
    path = ROOT / "configs" / "tiny" / f"{config or name}.yaml"
    return module.main(read_config(module.Config, ["--config", str(path), *more]))


def result(folder: Path, name: str, variant: str = "tiny") -> dict[str, Any]:
    written = json.loads((folder / "runs" / "tiny" / "results" / f"{name}_{variant}.json").read_text())
    assert {"table", "command", "commit", "device", "seed", "data", "rows"} == set(written)
    return written


def explain(out: str, *more: str, generator: str = "diffae") -> int:
    """The exit code of `diffcf explain` of one scan by the tiny black box, into `out`."""
    models = ("--classifier", "runs/tiny/classifier/blackbox", "--generator", f"runs/tiny/{generator}")
    return main(["explain", *models, "--scan", "runs/tiny/data/4.npz", *more, "--out", out])


def explained(out: str, *more: str, generator: str = "diffae") -> dict[str, Any]:
    """What explanation.json says after `explain`, which has written an explanation, trusted or not."""
    assert explain(out, *more, generator=generator) in (0, 10, 11, 12)
    return json.loads(Path(out, "explanation.json").read_text())
