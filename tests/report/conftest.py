"""The case made by hand, as a fixture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_case import made_case

from diffcf.report import Case


@pytest.fixture
def make_case() -> Callable[..., Case]:
    return made_case
