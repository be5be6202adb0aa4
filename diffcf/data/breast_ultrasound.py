"""BUSI (Al-Dhabyani et al. 2020), breast ultrasound with experts' outlines, as grey pictures, masks and a manifest.

    python -m diffcf.data.breast_ultrasound --source Dataset_BUSI_with_GT --out runs/data/busi

The folder holds benign/, malignant/ and normal/ as they are published: "benign (1).png", "benign (1)_mask.png" and,
where a picture shows several lesions, "benign (1)_mask_1.png" and so on; the masks of a picture are joined. Labels:
malignant 1, benign 0. Pictures without a lesion are left out, or with --normal a class of their own (2) or
unlabelled; they have no mask.

Pictures keep their size, in pixels (BUSI says no spacing), and their grey levels from 0 to 255: a model takes them with
field "resize" and a window of centre 127.5 and width 255. A coloured picture becomes its luminance.

BUSI does not say who the patients are (600 women, 780 pictures), so that every picture counts as a patient of its own,
and two pictures of one woman may lie in two splits: figures on this test split are optimistic. Only pictures whose grey
levels are the same in every pixel are known to belong together, and count as one patient.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from diffcf.data.manifest import Manifest, ManifestRow, hash_split
from diffcf.data.regions import Cases, add_common_options, existing_folder, run_loader, write_picture
from diffcf.errors import ConfigError, ScanError
from diffcf.folders import whole_folder

CLASSES = ("benign", "malignant", "normal")  # in the order of the labels
NAME = re.compile(r"(benign|malignant|normal) \((\d+)\)(_mask(?:_\d+)?)?\.png")
GREY, COLOUR = ("1", "L"), ("LA", "P", "RGB", "RGBA")  # Pillow's modes of 8 bits or fewer
Normal = Literal["leave", "class", "unlabelled"]


@dataclass
class Picture:
    """A picture of the download and the masks that belong to it."""

    path: Path
    kind: str
    number: int
    masks: list[Path] = field(default_factory=list)


def find_pictures(source: Path) -> list[Picture]:
    """The pictures of all three folders, by class and number, each with its masks.

    Errors: ConfigError for a folder that is missing or empty, a PNG of another name, and a mask without its picture.
    """
    existing_folder(source, "BUSI, Dataset_BUSI_with_GT")
    pictures: list[Picture] = []
    for kind in CLASSES:
        if not (source / kind).is_dir():
            raise ConfigError(
                f"{source} has no folder {kind}/; expected {', '.join(CLASSES)} as in Dataset_BUSI_with_GT: give "
                "that folder itself."
            )
        found: dict[int, Picture] = {}
        masks: list[tuple[int, Path]] = []
        for path in sorted((source / kind).glob("*.png")):
            if path.name.startswith("."):
                continue  # what a file manager leaves behind
            named = NAME.fullmatch(path.name)
            if named is None or named[1] != kind:
                raise ConfigError(
                    f"{path}: expected '{kind} (1).png', '{kind} (1)_mask.png' or '{kind} (1)_mask_1.png'; remove it, "
                    "or unpack BUSI anew."
                )
            if named[3]:
                masks.append((int(named[2]), path))
            else:
                found[int(named[2])] = Picture(path, kind, int(named[2]))
        if not found:
            raise ConfigError(f"{source / kind} holds no picture '{kind} (1).png'; unpack BUSI anew.")
        for number, path in masks:
            if number not in found:
                raise ConfigError(f"{path}: there is no picture '{kind} ({number}).png' to this mask; unpack it again.")
            found[number].masks.append(path)
        pictures += [found[number] for number in sorted(found)]
    return pictures


def read_grey(path: Path) -> np.ndarray:
    """A picture of 8 bits as uint8 "h w": its grey levels, or the luminance (ITU-R 601) of its colours.

    Errors: ScanError where it is damaged or has more than 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mode = picture.mode
            levels = np.asarray(picture.convert("L")) if mode in (*GREY, *COLOUR) else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises them all
        raise ScanError(f"{path}: a damaged picture, or none ({error}); unpack it again.") from error
    if levels is None:
        raise ScanError(f"{path}: a picture of mode {mode}; BUSI has 8 bits, grey or colour. Unpack it again.")
    return levels


def read_masks(picture: Picture, shape: tuple[int, ...]) -> np.ndarray:
    """The masks of a picture joined, bool "h w": what is brighter than half of a mask's brightest pixel.

    Errors: ScanError for a picture without a mask, and for a mask of another size or without a region (of a normal
    picture: with one).
    """
    if not picture.masks:
        raise ScanError(f"{picture.path}: there is no '{picture.path.stem}_mask.png' beside it; unpack it again.")
    region = np.zeros(shape, dtype=bool)
    for path in picture.masks:
        levels = read_grey(path)
        if levels.shape != shape:
            raise ScanError(
                f"{path}: {levels.shape[0]} x {levels.shape[1]} pixels (rows x columns), and its picture has "
                f"{shape[0]} x {shape[1]}; expected a mask of the same size. Unpack both again."
            )
        if picture.kind != "normal" and not levels.any():
            raise ScanError(f"{path}: an empty mask, of a {picture.kind} picture; expected a lesion. Unpack it again.")
        region |= levels > levels.max() / 2
    if picture.kind == "normal" and region.any():
        raise ScanError(f"{picture.path}: a normal picture whose mask shows a lesion; expected an empty mask.")
    return region


def write_busi(
    source: str | Path, out: str | Path, *, normal: Normal = "leave", seed: int = 0, skip: bool = False
) -> Manifest:
    """Write pictures and joined masks as PNG and `manifest.csv` into a new folder, whole or not at all.

    normal: what pictures without a lesion are. skip: leave out what cannot be used and list it in `skipped.txt`.
    Patients are split by `hash_split`. Errors: ConfigError for what is not BUSI and a folder that is not empty;
    ScanError that lists the pictures that cannot be used.
    """
    source, out = Path(source), Path(out)
    if normal not in get_args(Normal):
        raise ConfigError(f"normal {normal!r}: expected {', '.join(get_args(Normal))}.")
    with whole_folder(out, ()) as folder:
        cases, rows = Cases(source, skip=skip), []
        patients: dict[str, str] = {}  # by what is in the picture
        for picture in find_pictures(source):
            if picture.kind == "normal" and normal == "leave":
                continue
            with cases.case():
                levels = read_grey(picture.path)
                region = read_masks(picture, levels.shape)
                name = f"{picture.kind}-{picture.number:04d}"
                content = hashlib.sha256(repr(levels.shape).encode() + levels.tobytes()).hexdigest()
                patient = patients.setdefault(content, name)
                unlabelled = picture.kind == "normal" and normal == "unlabelled"
                rows.append(
                    ManifestRow(
                        path=write_picture(levels, folder / "images" / f"{name}.png"),
                        patient=patient,
                        label=None if unlabelled else CLASSES.index(picture.kind),
                        split=hash_split(patient, seed),
                        mask=write_picture(region, folder / "masks" / f"{name}.png") if region.any() else None,
                        notes={"file": picture.path.name, "masks": str(len(picture.masks))},
                    )
                )
        cases.settle(folder)
        Manifest(rows, str(out)).write(folder / "manifest.csv")
    return Manifest.read(out / "manifest.csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.breast_ultrasound",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(parser, "BUSI: benign/, malignant/ and normal/")
    parser.add_argument(
        "--normal", choices=get_args(Normal), default="leave", help="pictures without a lesion (default: left out)"
    )
    options = parser.parse_args(arguments)
    return run_loader(
        lambda: write_busi(options.source, options.out, normal=options.normal, seed=options.seed, skip=options.skip)
    )


if __name__ == "__main__":
    raise SystemExit(main())
