"""Methods by the names of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffcf.counterfactuals.attributes import Attributes
from diffcf.counterfactuals.exemplar import Exemplar
from diffcf.counterfactuals.joint import Joint
from diffcf.counterfactuals.methods import Latent, LatentShift, Method, Minimal, Pixels, Shift
from diffcf.errors import ConfigError

METHODS: dict[str, type[Method]] = {
    "agent": Shift,
    "attributes": Attributes,
    "exemplar": Exemplar,
    "joint": Joint,
    "latent": Latent,
    "latent-shift": LatentShift,
    "minimal": Minimal,
    "pixels": Pixels,
}


def method_named(
    name: str,
    agent: str | Path | None = None,
    attributes: str | Path | None = None,
    attribute_agent: str | Path | None = None,
    frozen: Sequence[str] = (),
) -> Method:
    """The method of that name with its defaults.

    agent: folder of the agent, which holds the exemplars. attributes: folder of named attributes; attribute_agent:
    of an agent that reads them; frozen: names of those that must not change.

    Errors: ConfigError for an unknown name, for exemplars without an agent, for attributes without their folder, and
    for folders or frozen attributes that the method does not use.
    """
    if name not in METHODS:
        raise ConfigError(f"method {name!r}: expected one of {', '.join(METHODS)}.")
    if name != "attributes" and (attributes is not None or attribute_agent is not None or frozen):
        raise ConfigError(f"named and frozen attributes, and their agent, are for --method attributes, not {name!r}.")
    if name == "attributes":
        if attributes is None:
            raise ConfigError(
                "the method 'attributes' needs to know what attributes do: give --attributes FOLDER, or learn it from "
                "rated scans with train/attribute_flow.py or train/attributes.py."
            )
        agent_of_them = None if attribute_agent is None else Path(attribute_agent)
        return Attributes(Path(attributes), tuple(frozen), agent_of_them)
    if name != "exemplar":
        return METHODS[name]()
    if agent is None:
        raise ConfigError("the method 'exemplar' needs an agent with exemplars; give --agent, or take 'latent'.")
    return Exemplar(Path(agent))
