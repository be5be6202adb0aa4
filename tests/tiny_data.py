"""A manifest of tiny scans whose label can be seen: bright squares on noise, on the left or on the right."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_tiny_data(folder: Path, scans: int = 60, slices: int = 2, size: int = 16) -> Path:
    """`scans` NIfTI-like arrays in `folder`, split 60/20/20 by patient; returns the manifest.

    Attributes are the place of the square, of which its column decides the label; the square is the mask.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = ["path,patient,label,mask,split,attr_column,attr_row"]
    for i in range(scans):
        label = i % 2
        volume = -850 + 80 * rng.standard_normal((slices, size, size))
        column = size // 2 * label + rng.integers(0, size // 4)
        row = rng.integers(2, size // 2)
        square = np.zeros_like(volume)
        square[:, row : row + size // 4, column : column + size // 4] = 1
        for name, values in ((f"{i}", volume + 700 * square), (f"m{i}", square)):
            np.savez(folder / f"{name}.npz", volume=values.astype(np.float32), spacing=np.array([2.0, 1.0, 1.0]))
        split = "train" if i % 5 < 3 else "val" if i % 5 == 3 else "test"
        lines.append(f"{i}.npz,p{i},{label},m{i}.npz,{split},{column},{row}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
