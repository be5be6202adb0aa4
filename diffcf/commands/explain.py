"""`diffcf explain`: from a scan and a black box to a folder with the explanation."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcf import __version__
from diffcf.commands.models import Models, find_models
from diffcf.errors import ConfigError
from diffcf.options import ExplainOptions

if TYPE_CHECKING:
    from diffcf.counterfactuals import Method
    from diffcf.explain import Explainer
    from diffcf.report import Case
    from diffcf.types import Scan

LARGEST_SEED = 2**31
SHOWN_ATTRIBUTES = 3  # of those that change most
VERSIONED = ("torch", "diffusers", "timm", "numpy")


def explain(options: ExplainOptions) -> int:
    """Explain a scan and write the report to `options.out`; returns the verdict's exit code.

    The cheap questions come first: is the results folder free, are the models there, can the scan be read. Errors:
    ConfigError, ScanError, CheckpointError; then nothing is written.
    """
    from diffcf.folders import whole_folder
    from diffcf.report import REPORT_FILES, write_report

    if options.probability is not None and not 0 < options.probability < 1:
        raise ConfigError(f"--probability {options.probability}: expected a number between 0 and 1.")
    check_seed(options.seed)
    with whole_folder(Path(options.out), REPORT_FILES, overwrite=options.overwrite) as folder:
        case = make_case(options)
        with _stage("writing the report"):
            written = write_report(case, folder)
    print(summary(case))
    print(f"written to {options.out}: " + ", ".join(path.name for path in written))
    return case.verdict.exit_code


def make_case(options: ExplainOptions) -> Case:
    """Read scan and models, explain, and return the case; writes nothing."""
    from diffcf.cards import GeneratorCard, read_card
    from diffcf.scans import parse_slices, prepare, read_scan

    models = find_models(options)
    card = read_card(GeneratorCard, models.generator)
    with _stage(f"reading {options.scan}"):
        scan = read_scan(
            options.scan,
            series_uid=options.series_uid,
            allow_tilt=options.allow_tilt,
            modality=card.preparation.modality,
        )
    slices = None if options.slices is None else parse_slices(_listed(options.slices))
    centre = None if options.centre_mm is None else parse_centre(_listed(options.centre_mm))
    with _stage("loading the models"):
        import torch

        from diffcf.explain import Explainer, ExplainSettings

        device = pick_device(options.device)
        torch.manual_seed(options.seed)
        explainer = Explainer.load(
            models.generator,
            models.classifier,
            models.agent,
            ExplainSettings(
                method=_method(options, models),
                residual_carry=True if options.residual_carry or options.roi else None,
                full_path=options.full_path,
            ),
            card=options.card,
            device=device,
            onestep=models.onestep,
            sampler=options.sampler,
            steps=options.steps,
        )
    patch = prepare(scan, explainer.preparation, slices=slices, centre_mm=centre)
    image = torch.from_numpy(patch.unit())[:, None].to(device)
    region = roi = None
    if options.roi is not None:
        from diffcf.data.masks import mask_of_patch

        region = read_scan(options.roi, allow_tilt=options.allow_tilt, modality="other")
        roi = torch.from_numpy(mask_of_patch(region, scan, patch))[:, None].to(image)
    with _stage("searching for the counterfactual"):
        explanation = explainer.explain(image, options.target, options.probability, options.seed, roi)
    from diffcf.report import Case

    asked = explainer.settings.search.probability if options.probability is None else options.probability
    return Case(
        explanation=explanation,
        scan=scan,
        patch=patch,
        classes=explainer.classes,
        probability=asked,
        provenance=provenance(options, models, explainer, scan, region, device),
    )


def _method(options: ExplainOptions, models: Models) -> Method | None:
    """The method that is asked for; None for the default one."""
    from diffcf.counterfactuals import method_named

    frozen = tuple(name.strip() for name in _listed(options.freeze).split(",")) if options.freeze else ()
    named = (options.attributes, options.attribute_agent)
    if options.method is None and (any(folder is not None for folder in named) or frozen):
        raise ConfigError("--attributes, --attribute-agent and --freeze go with --method attributes.")
    return None if options.method is None else method_named(options.method, models.agent, *named, frozen)


def provenance(
    options: ExplainOptions, models: Models, explainer: Explainer, scan: Scan, region: Scan | None, device: str
) -> dict[str, Any]:
    """What the explanation was made from: names and content hashes, settings, seed and versions; no time, no host."""
    from diffcf.weights import content_hash

    names = {
        "classifier": options.classifier,
        "generator": options.generator or options.classifier,
        "agent": options.agent or options.classifier,
        "onestep": options.onestep or options.generator or options.classifier,
        "attributes": options.attributes,
        "attribute_agent": options.attribute_agent,
    }
    folders = {**names, **dataclasses.asdict(models)}
    sampling = explainer.generator.generator.sampling
    return {
        "models": {
            part: {
                "name": names[part],
                "hash": content_hash(folders[part], card=options.card if part == "classifier" else None),
            }
            for part in names
            if folders[part] is not None
        },
        "method": {"name": type(explainer.method).__name__, **_settings(explainer.method)},
        "scan_hash": scan_hash(scan),
        "seed": options.seed,
        "roi_hash": None if region is None else scan_hash(region),
        "sampling": None if sampling is None else dataclasses.asdict(sampling),
        "device": device,
        "versions": {
            "diffcf": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONED},
        },
    }


def _settings(method: Method) -> dict[str, Any]:
    """A method's settings as plain data; where files lie is no setting: `models` has the hashes of what they hold."""
    settings = dataclasses.asdict(method)
    return {key: value for key, value in settings.items() if not isinstance(value, Path)}


def scan_hash(scan: Scan) -> str:
    """SHA-256 of a scan's voxels and geometry, however it was stored."""
    import hashlib

    import numpy as np

    digest = hashlib.sha256(str(scan.volume.shape).encode())
    digest.update(np.ascontiguousarray(scan.volume, dtype="<f4").tobytes())
    digest.update(np.ascontiguousarray(np.round(scan.affine, 6) + 0.0, dtype="<f8").tobytes())
    return digest.hexdigest()


def summary(case: Case) -> str:
    """What is printed: failed trust checks first, then the scores, the change and the cost."""
    explanation = case.explanation
    lines = [f"FAILED {check.name.replace('_', ' ')}: {check.message}" for check in case.failed]
    if sys.stdout.isatty():
        lines = [f"\033[31m{line}\033[0m" for line in lines]
    lines.append(f"{case.verdict.name.replace('_', ' ')}: {case.verdict.sentence}")
    width = max(len(name) for name in (*case.classes, "class"))
    lines.append(f"{'class':<{width}}  factual  reconstruction  counterfactual")
    scores = (
        explanation.factual_probability[0],
        explanation.reconstruction_probability[0],
        explanation.counterfactual_probability[0],
    )
    for index, name in enumerate(case.classes):
        factual, reconstruction, counterfactual = (float(score[index]) for score in scores)
        mark = "  <- target" if index == case.target else ""
        lines.append(f"{name:<{width}}  {factual:7.3f}  {reconstruction:14.3f}  {counterfactual:14.3f}{mark}")
    for changed in explanation.attributes[:SHOWN_ATTRIBUTES]:
        lines.append(
            f"{changed.name}: {changed.before:.2f} -> {changed.after:.2f} ({changed.spreads:+.2f} standard deviations)"
        )
    change, cost = case.difference_hu, explanation.cost
    lines.append(
        f"change against the {case.reference_name}: {change.min():+.0f} to {change.max():+.0f} {case.unit}, "
        f"{abs(change).mean():.1f} on average, slice(s) {', '.join(map(str, case.patch.slices))}"
    )
    lines.append(
        f"cost: {cost.generator_forwards} generator forwards, {cost.generator_backwards} backwards, "
        f"{cost.blackbox_forwards} black-box forwards a slice; {cost.seconds:.1f} s, {cost.peak_memory_mb:.0f} MB"
    )
    return "\n".join(lines)


def _listed(value: Any) -> str:
    """What a --config file gives as a number or list, as the command line has it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def parse_centre(text: str) -> tuple[float, float, float]:
    """Read "x,y,z" in mm. Errors: ConfigError."""
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--centre-mm {text!r}: expected three numbers in mm, as in '-61.5,12,-140'.") from error
    return x, y, z


def check_seed(seed: int) -> None:
    """Errors: ConfigError."""
    if not 0 <= seed < LARGEST_SEED:
        raise ConfigError(f"--seed {seed}: expected a whole number from 0 to {LARGEST_SEED - 1}.")


def pick_device(name: str) -> str:
    """The device that a name means; "auto" is cuda where there is one. Errors: ConfigError where cuda is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no CUDA device, or torch was installed without CUDA.")
    return name


@contextmanager
def _stage(words: str) -> Iterator[None]:
    """Say on a terminal what is going on; silent elsewhere, so that logs hold results only."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(words):
        yield
