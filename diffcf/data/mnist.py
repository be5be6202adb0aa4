"""MNIST (LeCun, Cortes and Burges) as pictures and a manifest, from its own files or from mnist.npz.

    python -m diffcf.data.mnist --source $DIFFCF_DATA/mnist/mnist.npz --out runs/data/mnist
    python -m diffcf.data.mnist --source FOLDER --out runs/data/mnist --train 0 --val 0 --test 0

FOLDER holds the four IDX files as they are published, gzipped or not. The test split is the original one; val is drawn
from the training images. The files do not say who wrote a digit, so that every image counts as a patient of its own.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffcf.data.manifest import SPLITS, Manifest, ManifestRow, Split
from diffcf.errors import ConfigError, DiffcfError
from diffcf.folders import whole_folder

PARTS = {"train": "train", "t10k": "test"}
Digits = tuple[np.ndarray, np.ndarray]  # uint8 images "n h w", labels "n"


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes: magic 0 0 8 d, d sizes as big-endian int32, then the values; gzipped or not.

    Errors: ConfigError where the file is no such thing, has other dimensions (labels in place of images), or is shorter
    or longer than its header says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: not readable as gzip ({error}); fetch it again.") from error
    magic = bytes([0, 0, 8, dimensions])
    if data[:4] != magic:
        began = f"starts with {data[:4].hex(' ')}" if data else "is empty"
        raise ConfigError(f"{path}: {began}; an IDX file of bytes in {dimensions}D starts with {magic.hex(' ')}.")
    header = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(data[4:header], ">i4")) if len(data) >= header else ()
    if len(shape) != dimensions or len(data) - header != int(np.prod(shape)):
        raise ConfigError(f"{path}: {len(data)} bytes for a header of shape {shape}; it is cut off or damaged.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_mnist(source: Path) -> dict[str, Digits]:
    """The images and labels of "train" and "test", from a folder of IDX files or an .npz.

    Errors: ConfigError for a file that is missing, damaged, or does not hold as many labels as images.
    """
    found = _read_npz(source) if source.suffix == ".npz" else _read_folder(source)
    for part, (images, labels) in found.items():
        digits = labels.dtype.kind in "iu" and labels.size > 0 and labels.min() >= 0 and labels.max() <= 9
        if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1] or not digits:
            raise ConfigError(
                f"{source}: {part} holds images of shape {images.shape} ({images.dtype}) and labels of shape "
                f"{labels.shape} ({labels.dtype}); expected (n, rows, columns) as bytes and n digits from 0 to 9."
            )
    return found


def _read_folder(folder: Path) -> dict[str, Digits]:
    found = {}
    for stem, part in PARTS.items():
        arrays = []
        for kind, dimensions in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)):
            names = (f"{stem}-{kind}", f"{stem}-{kind}.gz", f"{stem}-{kind.replace('-idx', '.idx')}")
            path = next((folder / name for name in names if (folder / name).is_file()), None)
            if path is None:
                raise ConfigError(f"{folder} has no {names[0]} (nor {names[1]}); MNIST is four files of that kind.")
            arrays.append(read_idx(path, dimensions))
        found[part] = (arrays[0], arrays[1])
    return found


def _read_npz(path: Path) -> dict[str, Digits]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {part: (stored[f"x_{part}"], stored[f"y_{part}"]) for part in PARTS.values()}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: no .npz with x_train, y_train, x_test and y_test ({error}).") from error


def write_mnist(source: str | Path, out: str | Path, counts: dict[Split, int], seed: int = 0) -> Manifest:
    """Write images as PNG and `manifest.csv` into a new folder, whole or not at all.

    counts: images of each digit in each split, 0 for as many as there are; val takes its share of the training images
    first (a sixth of them for 0). Rows go through the digits in turn. Errors: ConfigError for a source that is not
    MNIST, more images than there are, and a folder that is not empty.
    """
    from PIL import Image

    source, out = Path(source), Path(out)
    if min(*counts.values(), seed) < 0:
        raise ConfigError(f"images a digit {counts}, seed {seed}: expected no number below 0; 0 images takes all.")
    with whole_folder(out, ()) as folder:
        digits = read_mnist(source)
        chosen = _choose({part: labels for part, (_, labels) in digits.items()}, counts, seed)
        (folder / "images").mkdir()
        rows = []
        for split, part, index in chosen:
            images, labels = digits[part]
            path = folder / "images" / f"{part}-{index:05d}.png"
            Image.fromarray(np.ascontiguousarray(images[index])).save(path)
            rows.append(ManifestRow(path=path, patient=path.stem, label=int(labels[index]), split=split))
        Manifest(rows, str(out)).write(folder / "manifest.csv")
    return Manifest.read(out / "manifest.csv")


def _choose(labels: dict[str, np.ndarray], counts: dict[Split, int], seed: int) -> list[tuple[Split, str, int]]:
    """(split, part, index) of the images to write, digit by digit in turn."""
    random = np.random.default_rng(seed)
    chosen: list[tuple[Split, str, int]] = []
    order: dict[tuple[str, int], list[int]] = {}
    for part, every in labels.items():
        for digit in range(10):
            order[part, digit] = random.permutation(np.flatnonzero(every == digit)).tolist()
    for split in ("val", "train", "test"):
        part = "test" if split == "test" else "train"
        taken = []
        for digit in range(10):
            left = order[part, digit]
            wanted = counts[split] or (len(left) // 6 if split == "val" else len(left))
            if wanted > len(left):
                raise ConfigError(f"{wanted} images of the digit {digit} for {split}: there are {len(left)} left.")
            taken.append([(split, part, index) for index in left[:wanted]])
            order[part, digit] = left[wanted:]
        longest = max(len(each) for each in taken)
        chosen += [each[turn] for turn in range(longest) for each in taken if turn < len(each)]
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.mnist", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="mnist.npz, or the folder of the IDX files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    for split, count in {"train": 1200, "val": 100, "test": 100}.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images a digit (default {count}; 0: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    options = parser.parse_args(arguments)
    try:
        counts: dict[Split, int] = {split: getattr(options, split) for split in SPLITS}
        manifest = write_mnist(options.source, options.out, counts, options.seed)
    except DiffcfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {manifest.source}: " + ", ".join(f"{split} {len(manifest.split(split))}" for split in SPLITS))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
