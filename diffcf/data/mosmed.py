"""MosMedData (Morozov et al. 2020), chest CT with and without COVID-19 and experts' regions, as a manifest over it.

    python -m diffcf.data.mosmed --source COVID19_1110 --out runs/data/mosmed
    python -m diffcf.data.mosmed --source COVID19_1110 --label outlined --out runs/data/mosmed_outlined

The folder holds studies/CT-0 to studies/CT-4, the share of lung that is affected (none, up to a quarter, a half, three
quarters, more), with one NIfTI file a patient, study_0001.nii.gz, and masks/study_0255_mask.nii.gz for some of CT-1.
Labels (--label):

    moderate  CT-2, CT-3 and CT-4 against CT-0, and CT-1 left out: of the whole data 172 studies against 254, the shares
              that paper 003 states, which does not say which studies it took (default)
    any       CT-1 to CT-4 against CT-0
    outlined  only the studies that have a mask, label 1, all in the test split: for where a map lies, of a model that
              was trained with "moderate" and so saw none of them

The scans stay where they are, whole volumes in HU, and the manifest names them by their path. Its column `slices` says
which a model sees, --slices many (default 11, as in paper 003, which has them at 128 x 128 pixels), evenly spaced.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from diffcf.data.manifest import Manifest, ManifestRow, hash_split
from diffcf.data.regions import Cases, add_common_options, even_slices, existing_folder, read_region, run_loader
from diffcf.errors import ConfigError
from diffcf.folders import whole_folder
from diffcf.scans import read_scan

Label = Literal["moderate", "any", "outlined"]
SEVERITIES = (0, 1, 2, 3, 4)
STUDY = re.compile(r"(study_\d+)\.nii(\.gz)?")
MASK = re.compile(r"(study_\d+)_mask\.nii(\.gz)?")


@dataclass(frozen=True)
class Study:
    """One patient's scan. severity: k of its folder CT-k. mask: None where no expert outlined it."""

    name: str
    path: Path
    severity: int
    mask: Path | None


def find_studies(source: Path) -> list[Study]:
    """The studies of all five folders, by severity and name, each with its mask.

    Errors: ConfigError for a folder that is missing, a file of another name, a study that is there twice, no study, and
    a mask without its study.
    """
    existing_folder(source, "MosMedData, which holds studies/ and masks/")
    masks = _named(source / "masks", MASK, "study_0255_mask.nii.gz") if (source / "masks").is_dir() else {}
    studies: dict[str, Study] = {}
    for severity in SEVERITIES:
        folder = source / "studies" / f"CT-{severity}"
        if not folder.is_dir():
            raise ConfigError(f"{source} has no folder studies/CT-{severity}; give the folder that holds studies/.")
        for name, path in _named(folder, STUDY, "study_0001.nii.gz").items():
            if name in studies:
                raise ConfigError(f"{path}: {studies[name].path} is the same study; remove one of them.")
            studies[name] = Study(name, path, severity, masks.pop(name, None))
    if not studies:
        raise ConfigError(f"{source / 'studies'} holds no study, CT-0/study_0001.nii.gz; unpack MosMedData anew.")
    if masks:
        raise ConfigError(f"{next(iter(masks.values()))}: there is no study to this mask; unpack MosMedData anew.")
    return list(studies.values())


def _named(folder: Path, pattern: re.Pattern[str], example: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue  # what a file manager leaves behind
        named = pattern.fullmatch(path.name)
        if named is None or named[1] in found:
            raise ConfigError(f"{path}: expected files such as {example}, once each; remove it.")
        found[named[1]] = path
    return found


def label_of(study: Study, label: Label) -> int | None:
    """The class of a study; None where it is left out."""
    if label == "outlined":
        return 1 if study.mask is not None else None
    if label == "moderate" and study.severity == 1:
        return None
    return int(study.severity > 0)


def write_mosmed(
    source: str | Path,
    out: str | Path,
    *,
    label: Label = "moderate",
    slices: int = 11,
    seed: int = 0,
    skip: bool = False,
) -> Manifest:
    """Write `manifest.csv` into a new folder, whole or not at all, once every scan that it names was read.

    label, slices: as the module says. skip: leave out what cannot be used and list it in `skipped.txt`. Attribute:
    `severity`, 0 to 4. Patients are split by `hash_split`. Errors: ConfigError for what is not MosMedData, settings
    that cannot be meant and a folder that is not empty; ScanError that lists the studies that cannot be used.
    """
    from rich.console import Console
    from rich.progress import track

    source, out = Path(source).absolute(), Path(out)
    if label not in get_args(Label) or slices < 1:
        raise ConfigError(f"label {label!r}, {slices} slices: expected {', '.join(get_args(Label))}, and 1 or more.")
    chosen = [study for study in find_studies(source) if label_of(study, label) is not None]
    if not chosen:
        raise ConfigError(f"{source} holds no study for label {label!r}; give another one.")
    with whole_folder(out, ()) as folder:
        cases, rows = Cases(source, skip=skip), []
        for study in track(chosen, description="studies", console=Console(stderr=True), transient=True):
            with cases.case():
                scan = read_scan(study.path)
                if study.mask is not None:
                    read_region(study.mask, scan)
                rows.append(
                    ManifestRow(
                        path=study.path,
                        patient=study.name,
                        label=label_of(study, label),
                        split="test" if label == "outlined" else hash_split(study.name, seed),
                        mask=study.mask,
                        slices=even_slices(scan, slices),
                        attributes={"severity": float(study.severity)},
                    )
                )
        cases.settle(folder)
        Manifest(rows, str(out)).write(folder / "manifest.csv")
    return Manifest.read(out / "manifest.csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.mosmed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser, "MosMedData: studies/ and masks/")
    parser.add_argument("--label", choices=get_args(Label), default="moderate", help="the class (default moderate)")
    parser.add_argument("--slices", type=int, default=11, help="of a scan, evenly spaced (default 11)")
    options = parser.parse_args(arguments)
    return run_loader(
        lambda: write_mosmed(
            options.source,
            options.out,
            label=options.label,
            slices=options.slices,
            seed=options.seed,
            skip=options.skip,
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
