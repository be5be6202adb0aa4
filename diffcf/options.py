"""The options of each command, as plain dataclasses: the command line and a --config file are read into them."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any, Literal


def option(kind: Any, help: str, default: Any = MISSING, metavar: str | None = None) -> Any:
    """A field with what the parser needs: its type, its help and the name of its value; required without a default."""
    settings: dict[str, Any] = {"metadata": {"kind": kind, "help": help, "metavar": metavar}}
    return field(**settings) if default is MISSING else field(default=default, **settings)


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """How a scan is read."""

    scan: str = option(str, "DICOM folder or file, NIfTI, picture or .npy/.npz", metavar="PATH")
    series_uid: str | None = option(str | None, "which series, where a folder holds several", None, "UID")
    allow_tilt: bool = option(bool, "take slices of a tilted gantry as they are", False)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every command that computes something takes."""

    out: str = option(str, "results folder; new or empty", metavar="DIR")
    seed: int = option(int, "same seed, same files, the cost section aside (default 0)", 0, "N")
    device: str = option(Literal["auto", "cpu", "cuda"], "auto, cpu or cuda (default auto)", "auto", "D")
    overwrite: bool = option(bool, "replace an earlier result in --out", False)


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ScanOptions):
    """Options of `diffcf check`."""

    modality: str = option(str, "what the scan must be (default CT; 'other' takes anything)", "CT", "NAME")


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of `diffcf inspect`."""

    classifier: str = option(str, "folder, file or bundled name (lidc, phantom)", metavar="C")
    card: str | None = option(str | None, "card.yaml of a classifier that is a bare file", None, "CARD")


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(RunOptions, ScanOptions):
    """Options of `diffcf explain`."""

    classifier: str = option(str, "the black box: a folder, a file or a bundled name (lidc, phantom)", metavar="C")
    card: str | None = option(str | None, "card.yaml of a classifier that is a bare file", None, "CARD")
    generator: str | None = option(str | None, "generator (default: the one beside the classifier)", None, "G")
    agent: str | None = option(
        str | None, "agent of this pair (default: one beside classifier or generator, if trained for both)", None, "A"
    )
    onestep: str | None = option(
        str | None, "the generator's one-step decoder (default: the one beside it, if any)", None, "O"
    )
    method: (
        Literal["agent", "attributes", "exemplar", "joint", "latent", "latent-shift", "minimal", "pixels"] | None
    ) = option(
        Literal["agent", "attributes", "exemplar", "joint", "latent", "latent-shift", "minimal", "pixels"] | None,
        "agent, attributes, exemplar, joint, latent, latent-shift, minimal or pixels (default: for a spatial code "
        "exemplar where the agent has some, else latent; for a vector agent)",
        None,
        "M",
    )
    attributes: str | None = option(
        str | None,
        "named attributes, for --method attributes (train/attributes.py, train/attribute_flow.py)",
        None,
        "DIR",
    )
    attribute_agent: str | None = option(
        str | None, "asked together with the black box in --method attributes (train/attribute_agent.py)", None, "DIR"
    )
    freeze: str | tuple[str, ...] | None = option(
        str | tuple[str, ...] | None, "attributes that must not change: 'texture,diameter'", None, "NAMES"
    )
    target: str | int | None = option(
        str | int | None, "class to reach, by name or index (default: the other one, or the runner-up)", None, "K"
    )
    probability: float | None = option(
        float | None, "score the black box must give the target (default 0.75)", None, "P"
    )
    slices: str | int | tuple[int, ...] | None = option(  # numbers come from a --config file
        str | int | tuple[int, ...] | None, "slices: '10,20,30' or '12.5mm,30mm' (default: evenly spaced)", None, "LIST"
    )
    centre_mm: str | tuple[float, ...] | None = option(
        str | tuple[float, ...] | None,
        "centre of the field in RAS mm; where no slices are given, z chooses them (default: middle of the slice)",
        None,
        "X,Y,Z",
    )
    roi: str | None = option(
        str | None, "mask (NIfTI, or any scan format) of the only place that may change", None, "MASK"
    )
    residual_carry: bool = option(
        bool, "keep in the counterfactual what the decoder cannot reproduce, as most methods do anyway", False
    )
    full_path: bool = option(bool, "decode every frame of the path in full, where most would be previews", False)
    sampler: str | None = option(str | None, "ddim, dpm or obelm (default: the generator's)", None, "NAME")
    steps: int | None = option(
        int | None, "generator evaluations to encode, and to decode, an image (default: the generator's, 20)", None, "N"
    )


@dataclass(frozen=True, kw_only=True)
class DemoOptions(RunOptions):
    """Options of `diffcf demo`."""
