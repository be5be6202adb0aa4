"""Fixtures that every test shares."""

from __future__ import annotations

import gc
import os
from pathlib import Path

# One thread for each of the processes among which pytest-xdist shares the files; before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Nothing here makes many cycles, but the imported libraries have a million objects that each collection looks through.
gc.set_threshold(100_000, 50, 100)

LONG = ("pipeline", "test_adjoint", "test_align", "test_hierarchy", "test_loss", "test_configs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no process waits for another's last one."""
    items.sort(key=lambda item: item.path.parent.name not in LONG and item.path.stem not in LONG)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data that `DIFFCF_DATA` names; the test is skipped where it is not set."""
    root = os.environ.get("DIFFCF_DATA")
    if not root:
        pytest.skip("DIFFCF_DATA is not set: this test reads real data (see CONTRIBUTING.md)")
    path = Path(root)
    if not path.is_dir():
        pytest.fail(f"DIFFCF_DATA names {path}, which is not a folder")
    return path


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, so that an order of tests cannot decide a result."""
    import torch

    torch.default_generator.manual_seed(0)  # torch.manual_seed notes where it was called from, for CUDA: slowly
