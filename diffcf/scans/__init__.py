"""Scans: reading, refusing, preparing and writing back."""

from diffcf.scans.prepare import Patch, SliceSelection, parse_slices, prepare, resample
from diffcf.scans.read import describe, read_scan
from diffcf.scans.write import write_nifti

__all__ = ["Patch", "SliceSelection", "describe", "parse_slices", "prepare", "read_scan", "resample", "write_nifti"]
