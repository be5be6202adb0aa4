"""`diffcf check` and `diffcf inspect`: look at a scan or a classifier without explaining anything."""

from __future__ import annotations

from collections.abc import Iterable

from diffcf.options import CheckOptions, InspectOptions


def check(options: CheckOptions) -> int:
    """Read a scan and print what it is. Errors: ScanError, which says why it is refused."""
    from diffcf.scans import describe, read_scan

    scan = read_scan(
        options.scan, series_uid=options.series_uid, allow_tilt=options.allow_tilt, modality=options.modality
    )
    _print_pairs(describe(scan))
    return 0


def inspect(options: InspectOptions) -> int:
    """Print what a classifier is, what it reads and what it can give."""
    from diffcf.classifiers.blackbox import inspect_blackbox

    _print_pairs(inspect_blackbox(options.classifier, options.card))
    return 0


def _print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    for name, text in pairs:
        print(f"{name:<{width}}  {text}")
