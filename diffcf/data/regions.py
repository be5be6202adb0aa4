"""What the loaders of data sets with experts' regions share: cases that cannot be used, grey pictures, the summary."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from diffcf.data.manifest import SPLITS, Manifest
from diffcf.errors import ConfigError, DiffcfError, ScanError
from diffcf.scans import read_scan
from diffcf.scans.prepare import even_places
from diffcf.types import Scan

SKIPPED = "skipped.txt"
SHOWN = 20  # cases that one error message lists


class Cases:
    """The cases of a data set that cannot be used: all refused in one message or, with `skip`, left out and listed."""

    def __init__(self, source: Path, *, skip: bool) -> None:
        self.source, self.skip = source, skip
        self.tried = 0
        self.problems: list[str] = []

    @contextmanager
    def case(self) -> Iterator[None]:
        """One case; what makes it unusable is noted, and the block ends there. It writes nothing before it is whole."""
        self.tried += 1
        try:
            yield
        except ScanError as error:
            self.problems.append(str(error))

    def settle(self, folder: Path) -> None:
        """Refuse what was noted or, with `skip`, list it in `skipped.txt` of the folder.

        Errors: ScanError for cases that cannot be used, without `skip`, and where none is left.
        """
        if not self.problems:
            return
        shown = "".join(f"\n  {problem}" for problem in self.problems[:SHOWN])
        more = f"\n  ... and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
        found = f"{self.source}: {len(self.problems)} of {self.tried} cases cannot be used"
        if not self.skip:
            raise ScanError(f"{found}; --skip leaves them out and lists them in {SKIPPED}.{shown}{more}")
        if len(self.problems) == self.tried:
            raise ScanError(f"{found}, so nothing is left.{shown}{more}")
        (folder / SKIPPED).write_text("".join(f"{problem}\n" for problem in self.problems), encoding="utf-8")


def existing_folder(source: Path, what: str) -> Path:
    """The folder itself. Errors: ConfigError where there is none."""
    if not source.is_dir():
        raise ConfigError(f"{source} is not a folder; give the one of {what}.")
    return source


def even_slices(scan: Scan, count: int) -> str:
    """A manifest's `slices`: the middles of `count` equal parts of a scan. Errors: ScanError for fewer slices."""
    depth = len(scan.volume)
    if depth < count:
        raise ScanError(
            f"{scan.provenance.path}: {depth} slice(s), fewer than the {count} that are asked for; lower --slices."
        )
    return ",".join(map(str, even_places(depth, count)))


def read_region(path: Path, scan: Scan) -> np.ndarray:
    """A mask of 0 and 1 on the scan's grid, bool "z y x".

    Errors: ScanError for a mask on another grid, with other values, and an empty one.
    """
    mask = read_scan(path, modality="other")
    if mask.volume.shape != scan.volume.shape or not np.allclose(mask.affine, scan.affine, atol=1e-3):
        raise ScanError(f"{path}: the mask is not on the grid of {scan.provenance.path}. Fetch both again.")
    found = np.unique(mask.volume)
    if not np.array_equal(found, (0, 1)):
        shown = ", ".join(f"{value:g}" for value in found[:8])
        raise ScanError(f"{path}: values {shown}; expected a mask of 0 and 1, and a region in it. Fetch it again.")
    return mask.volume != 0


def write_picture(levels: np.ndarray, path: Path) -> Path:
    """Grey levels "h w" (bool, uint8 or uint16) as PNG of 8 or 16 bits, without loss; a region is 0 and 255."""
    from PIL import Image

    levels = levels.astype(np.uint8) * np.uint8(255) if levels.dtype == bool else levels
    assert levels.dtype in (np.uint8, np.uint16), levels.dtype
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.ascontiguousarray(levels)).save(path)
    return path


def add_common_options(parser: argparse.ArgumentParser, what: str) -> None:
    """The options that every such loader has."""
    parser.add_argument("--source", type=Path, required=True, help=f"folder of {what}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument("--seed", type=int, default=0, help="of the split by patient (default 0)")
    parser.add_argument(
        "--skip", action="store_true", help=f"leave out what cannot be used and list it in {SKIPPED}, not refuse all"
    )


def run_loader(write: Callable[[], Manifest | Path]) -> int:
    """Write a data set, or one scan of it, and print what is in it; returns the exit code."""
    try:
        written = write()
    except DiffcfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(written, Path):
        print(f"wrote {written}")
        return 0
    print(f"wrote {written.source}")
    for split in SPLITS:
        counts = written.class_counts(split)
        print(f"{split:>5}: " + ", ".join(f"{'unlabelled' if k is None else k}: {n}" for k, n in counts.items()))
    skipped = Path(written.source).with_name(SKIPPED)
    if skipped.is_file():
        count = len(skipped.read_text(encoding="utf-8").splitlines())
        print(f"left out {count} case(s); {skipped} says why")
    return 0
