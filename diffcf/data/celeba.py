"""CelebA (Liu et al. 2015) as grey pictures and a manifest with its 40 attributes, from its own files.

    python -m diffcf.data.celeba --source CELEBA --label Young --out runs/data/celeba

CELEBA holds img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt as they are published, and
identity_CelebA.txt if one has it; without it every picture counts as a patient of its own. Scans have one grey value a
pixel: a picture's luminance is written, its central square, scaled to --size.

The published partitions share no identity. Should a file say otherwise, all pictures of such a person go where most of
them are (of equally many, to the later of train, val and test), and the command says for how many people that was so.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffcf.data.manifest import SPLITS, Manifest, ManifestRow, Split
from diffcf.errors import ConfigError, DiffcfError
from diffcf.folders import whole_folder

if TYPE_CHECKING:
    from PIL import Image

PARTITIONS: dict[str, Split] = {"0": "train", "1": "val", "2": "test"}


def read_attributes(path: Path) -> dict[str, dict[str, int]]:
    """Attributes by picture: a line with the number of pictures, one with the names, then name and -1 or 1 each.

    Returns 0 and 1. Errors: ConfigError, by line, for another number of pictures or values, for other values, and for a
    picture or a name that is there twice.
    """
    lines = _lines(path)
    names = lines[1].split() if len(lines) > 1 else []
    if not names or not lines[0].strip().isdecimal():
        raise ConfigError(f"{path}: starts with {lines[:2]}; expected the number of pictures, then attribute names.")
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: an attribute is there twice, {', '.join(names)}; fetch the file again.")
    found: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines[2:], start=3):
        picture, *values = line.split()
        if len(values) != len(names) or set(values) - {"-1", "1"}:
            raise ConfigError(
                f"{path}, line {number}: expected a picture and {len(names)} values of -1 or 1: {line!r}."
            )
        _refuse_twice(picture, found, path, number)
        found[picture] = {name: int(value == "1") for name, value in zip(names, values, strict=True)}
    if len(found) != int(lines[0]) or not found:
        raise ConfigError(f"{path}: says {int(lines[0])} pictures and lists {len(found)}; it is cut off or damaged.")
    return found


def read_pairs(path: Path) -> dict[str, str]:
    """A picture and a value on every line (partitions, identities).

    Errors: ConfigError, by line, for anything else and for a picture that is there twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        words = line.split()
        if len(words) != 2:
            raise ConfigError(f"{path}, line {number}: expected a picture and a value: {line!r}.")
        _refuse_twice(words[0], found, path, number)
        found[words[0]] = words[1]
    return found


def _refuse_twice(picture: str, found: Container[str], path: Path, number: int) -> None:
    if picture in found:
        raise ConfigError(f"{path}, line {number}: {picture} is there twice; fetch the file again.")


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; it comes with CelebA's annotations.")
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); fetch it again.") from error


def splits_of(partition: dict[str, str], identity: dict[str, str]) -> tuple[dict[str, Split], int]:
    """The split of every picture, and of how many people pictures were moved. Errors: ConfigError for a partition."""
    wrong = sorted(set(partition.values()) - set(PARTITIONS))
    if wrong:
        raise ConfigError(f"partition(s) {', '.join(wrong)}; expected 0 (train), 1 (val) or 2 (test).")
    places: dict[str, list[Split]] = defaultdict(list)
    for picture, part in partition.items():
        places[identity.get(picture, picture)].append(PARTITIONS[part])
    home: dict[str, Split] = {}
    for person, parts in places.items():
        counted = Counter(parts)
        home[person] = max(SPLITS, key=lambda split, counted=counted: (counted[split], SPLITS.index(split)))
    moved = sum(len(set(parts)) > 1 for parts in places.values())
    return {picture: home[identity.get(picture, picture)] for picture in partition}, moved


def grey_square(file: Path, size: int) -> Image.Image:
    """A picture's luminance (ITU-R 601), its central square scaled to `size` pixels a side by averaging.

    Errors: ConfigError where the file is missing, damaged or no picture.
    """
    from PIL import Image

    if not file.is_file():
        raise ConfigError(f"{file} does not exist, though the list of attributes has it; unpack all pictures.")
    try:
        with Image.open(file) as colour:
            grey = colour.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises them all
        raise ConfigError(f"{file}: a damaged picture, or none ({error}); unpack it again.") from error
    side = min(grey.size)
    left, top = (grey.width - side) // 2, (grey.height - side) // 2
    return grey.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BOX)


def _refuse_unlisted(pictures: Iterable[str], listed: Mapping[str, str], path: Path) -> None:
    unlisted = [picture for picture in pictures if picture not in listed]
    if unlisted:
        raise ConfigError(f"{path} lacks {len(unlisted)} picture(s), {unlisted[0]} first; fetch it again.")


def write_celeba(
    source: str | Path, out: str | Path, *, label: str, size: int = 64, count: int = 0
) -> tuple[Manifest, int]:
    """Write grey PNGs and `manifest.csv` into a new folder, whole or not at all; also how many people were moved.

    label: the attribute that is the class. count: at most so many pictures of each split, the first ones; 0 is all.
    Errors: ConfigError for files that are not CelebA's, an unknown attribute, a picture that is missing, damaged, in no
    partition or nobody's where there are identities, and a folder that is not empty.
    """
    source, out = Path(source), Path(out)
    if size < 1 or count < 0:
        raise ConfigError(f"size {size}, count {count}: expected at least 1 pixel, and 0 (all) or more pictures.")
    with whole_folder(out, ()) as folder:
        attributes = read_attributes(source / "list_attr_celeba.txt")
        splits, identity, moved = _placed(source, attributes)
        names = next(iter(attributes.values()))
        if label not in names:
            raise ConfigError(f"there is no attribute {label!r}; there are {', '.join(names)}.")
        (folder / "images").mkdir()
        taken: Counter[str] = Counter()
        rows = []
        for picture, values in attributes.items():
            split = splits[picture]
            if count and taken[split] >= count:
                continue
            taken[split] += 1
            path = folder / "images" / f"{Path(picture).stem}.png"
            grey_square(source / "img_align_celeba" / picture, size).save(path)
            rows.append(
                ManifestRow(
                    path=path,
                    patient=identity.get(picture, Path(picture).stem),
                    label=values[label],
                    split=split,
                    attributes={name: float(value) for name, value in values.items()},
                )
            )
        Manifest(rows, str(out)).write(folder / "manifest.csv")
    return Manifest.read(out / "manifest.csv"), moved


def _placed(source: Path, pictures: Iterable[str]) -> tuple[dict[str, Split], dict[str, str], int]:
    """The split and the person of every picture (nobody where identities are not known), and how many were moved."""
    partition = read_pairs(source / "list_eval_partition.txt")
    _refuse_unlisted(pictures, partition, source / "list_eval_partition.txt")
    people, identity = source / "identity_CelebA.txt", {}
    if people.is_file():
        identity = read_pairs(people)
        _refuse_unlisted(pictures, identity, people)
    splits, moved = splits_of({picture: partition[picture] for picture in pictures}, identity)
    return splits, identity, moved


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.celeba", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="folder of CelebA")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument("--label", required=True, help="the attribute that is the class, such as Young")
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    parser.add_argument("--count", type=int, default=0, help="pictures of each split (default 0: all)")
    options = parser.parse_args(arguments)
    try:
        manifest, moved = write_celeba(
            options.source, options.out, label=options.label, size=options.size, count=options.count
        )
    except DiffcfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {manifest.source}: " + ", ".join(f"{split} {len(manifest.split(split))}" for split in SPLITS))
    if moved:
        print(f"{moved} people had pictures in several partitions, which were brought together")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
