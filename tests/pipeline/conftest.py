"""From a manifest to explanations and tables: every script in `train/` and `evaluation/` on `configs/tiny`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import run, workspace


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with tiny data and generator, black box and agent, trained by the scripts themselves; their figures."""
    with workspace(tmp_path_factory) as folder:
        return folder, {name: run("train", name) for name in ("diffae", "classifier", "agent")}


@pytest.fixture(scope="module")
def trained(models: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A copy of `models` for the tests of one file, in the current folder; as there, the folder and the figures."""
    with workspace(tmp_path_factory, like=models[0]) as folder:
        yield folder, models[1]


@pytest.fixture(scope="module")
def attributes(trained: Any) -> Any:
    """Attribute directions in the generator's code."""
    return run("train", "attributes")


@pytest.fixture(scope="module")
def attribute_agent(attributes: Any) -> Any:
    """What reads those attributes in place of the black box."""
    return run("train", "attribute_agent")
