"""Methods by the names of the command line."""

from __future__ import annotations

from pathlib import Path

from diffcf.counterfactuals.exemplar import Exemplar
from diffcf.counterfactuals.joint import Joint
from diffcf.counterfactuals.methods import Latent, LatentShift, Method, Minimal, Pixels, Shift
from diffcf.errors import ConfigError

METHODS: dict[str, type[Method]] = {
    "agent": Shift,
    "exemplar": Exemplar,
    "joint": Joint,
    "latent": Latent,
    "latent-shift": LatentShift,
    "minimal": Minimal,
    "pixels": Pixels,
}


def method_named(name: str, agent: str | Path | None = None) -> Method:
    """The method of that name with its defaults; agent: folder of the agent, which holds the exemplars.

    Errors: ConfigError for an unknown name, and for exemplars without an agent.
    """
    if name not in METHODS:
        raise ConfigError(f"method {name!r}: expected one of {', '.join(METHODS)}.")
    if name != "exemplar":
        return METHODS[name]()
    if agent is None:
        raise ConfigError("the method 'exemplar' needs an agent with exemplars; give --agent, or take 'latent'.")
    return Exemplar(Path(agent))
