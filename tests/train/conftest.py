"""A fresh Accelerator for every test: Accelerate keeps the first one's precision for the whole process."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
