"""Every kind of scene, small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from diffcf.data.phantom import Scene, fibrosis_scene, nodule_scene, territory_scene

MAKERS: dict[str, Callable[..., Scene]] = {
    "nodule": lambda seed, **more: nodule_scene(seed, 48, **more),
    "fibrosis": lambda seed, **more: fibrosis_scene(seed, 48, 3, **more),
    "territory": lambda seed, **more: territory_scene(seed, 48, **more),
}


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest) -> Any:
    """Each kind of scene by its name."""
    return request.param


@pytest.fixture
def make_scene(kind: str) -> Callable[..., Scene]:
    """Of a seed and options: a scene of this kind."""
    return MAKERS[kind]
