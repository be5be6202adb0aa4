"""What tests of evaluation scripts share."""

from __future__ import annotations

from typing import Any

import pytest
from scripts import workspace


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    """A folder with tiny data, in which scripts run."""
    with workspace(tmp_path_factory) as made:
        yield made
