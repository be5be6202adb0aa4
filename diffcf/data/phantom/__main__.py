"""Make a data set of phantoms: scans as NIfTI, the cause of each label as a mask, and a manifest.

    python -m diffcf.data.phantom --kind fibrosis --count 3000 --size 64 --out runs/data/phantom
    python -m diffcf.data.phantom --kind fibrosis --count 731 --imbalance 0.037 --out runs/data/rare
    python -m diffcf.data.phantom --kind nodule --count 3000 --shortcut symbol --test-correlation -1 --out runs/mark
    python -m diffcf.data.phantom --kind nodule --count 3000 --shortcut symbol --correlation 0 --label mark --out r/mark

A shortcut goes with the label in train and val (--correlation); in test it can be random (--test-correlation 0) or
reversed (-1), which shows what a classifier has learnt. --label mark makes the mark itself what is to be told.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from diffcf.data.manifest import SPLITS
from diffcf.data.phantom import Shortcut
from diffcf.data.phantom.folder import Kind, PhantomSet, write_scenes
from diffcf.data.phantom.shortcut import Kind as ShortcutKind
from diffcf.errors import DiffcfError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.phantom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=get_args(Kind), required=True, help="which scenes")
    parser.add_argument("--count", type=int, required=True, help="scenes to make")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    parser.add_argument("--slices", type=int, default=4, help="slices of a chest (default 4); the others have one")
    parser.add_argument("--seed", type=int, default=0, help="of the set (default 0)")
    parser.add_argument("--imbalance", type=float, help="share of the positive class (default: about half)")
    parser.add_argument("--scans-per-patient", type=int, default=1, help="scenes of one patient (default 1)")
    parser.add_argument("--shortcut", choices=get_args(ShortcutKind), help="paint a mark that goes with the label")
    parser.add_argument("--correlation", type=float, default=1.0, help="of mark and label (default 1)")
    parser.add_argument(
        "--test-correlation", type=float, help="of mark and label in the test split (default: the same)"
    )
    parser.add_argument(
        "--label", default="disease", help="by what: disease (default), mark, side (of brains) or an attribute's name"
    )
    parser.add_argument(
        "--cause", choices=("scene", "classes"), default="scene", help="masks: this nodule, or those of both classes"
    )
    options = parser.parse_args(arguments)
    try:
        shortcut = Shortcut(options.shortcut, options.correlation) if options.shortcut else None
        wanted = PhantomSet(
            kind=options.kind,
            count=options.count,
            size=options.size,
            slices=options.slices,
            seed=options.seed,
            imbalance=options.imbalance,
            scans_per_patient=options.scans_per_patient,
            shortcut=shortcut,
            test_correlation=options.test_correlation,
            label=options.label,
            cause=options.cause,
        )
        manifest = write_scenes(wanted, options.out)
    except DiffcfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {manifest.source}")
    for split in SPLITS:
        print(f"{split:>5}: " + ", ".join(f"{label}: {count}" for label, count in manifest.class_counts(split).items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
