"""LIDC-IDRI lung nodules as scans and a manifest, from ready-made arrays or from the download of TCIA.

    python -m diffcf.data.lidc --source $DIFFCF_DATA/lidc_nodules --out runs/lidc
    python -m diffcf.data.lidc --source $DIFFCF_DATA/lidc_nodules --index 17 --out nodule.nii.gz
    python -m diffcf.data.lidc --tcia LIDC-IDRI --out runs/lidc
    python -m diffcf.data.lidc --background $DIFFCF_DATA/lidc_nodules --out runs/data/lidc_background

A nodule is malignant where the mean of its radiologists' ratings (1 to 5) is above 3, benign below. At exactly 3 the
alignment papers call it benign ("3 or lower meaning benign"; "scores of 1-3 as benign"), which is the default;
`--score-3 malignant` calls it that, and `--score-3 blank` leaves it unlabelled, so that no classifier is trained or
judged by it. Scans and splits are the same each time. Ratings are opinions, not pathology.

With --background the question is another: whether a crop of 32 x 32 pixels shows a nodule (1) or lung without one (0).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from diffcf.data.lidc_arrays import NoduleArrays, write_arrays, write_nodule
from diffcf.data.lidc_background import BackgroundArrays, write_background
from diffcf.data.lidc_nodules import ScoreThree, label_of
from diffcf.data.lidc_tcia import write_tcia
from diffcf.data.manifest import Manifest
from diffcf.data.regions import run_loader

__all__ = [
    "BackgroundArrays",
    "NoduleArrays",
    "label_of",
    "write_arrays",
    "write_background",
    "write_nodule",
    "write_tcia",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.lidc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--source", type=Path, help="folder of the arrays: lidc_nodules.npz and nodules.csv")
    where.add_argument("--tcia", type=Path, help="folder of the TCIA download: series of DICOM files, and the XML")
    where.add_argument("--background", type=Path, help="folder of nodule_vs_background_32.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; with --index a NIfTI file")
    parser.add_argument("--index", type=int, help="with --source: write this one nodule (row, from 0) as NIfTI")
    parser.add_argument(
        "--score-3",
        choices=get_args(ScoreThree),
        default="benign",
        help="label at a mean of exactly 3 (default benign)",
    )
    parser.add_argument("--size", type=int, default=71, help="with --tcia: pixels a side of a crop (default 71)")
    parser.add_argument("--slices", type=int, default=1, help="with --tcia: slices, around the central one (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the split by patient")
    options = parser.parse_args(arguments)
    if options.index is not None and options.source is None:
        parser.error("--index goes with --source")
    common = {"score_3": options.score_3, "seed": options.seed}

    def write() -> Manifest | Path:
        if options.index is not None:
            return write_nodule(options.source, options.index, options.out)
        if options.source is not None:
            return write_arrays(options.source, options.out, **common)
        if options.background is not None:
            return write_background(options.background, options.out, seed=options.seed)
        return write_tcia(options.tcia, options.out, size=options.size, slices=options.slices, **common)

    return run_loader(write)


if __name__ == "__main__":
    raise SystemExit(main())
