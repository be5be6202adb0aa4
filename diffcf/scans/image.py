"""Pictures (PNG, TIFF, JPEG, ...) and NumPy arrays: files that carry values, but no anatomy."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from diffcf.errors import ScanError
from diffcf.scans.grid import LPS_TO_RAS, canonical_scan, unplaced_scan
from diffcf.scans.values import check_values
from diffcf.types import Provenance, Scan

if TYPE_CHECKING:
    from PIL import Image

NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK\x03\x04"
ONE_CHANNEL = ("L", "I", "F", "I;16", "I;16L", "I;16B")  # Pillow's modes of one grey value a pixel


def read_picture(path: Path, *, modality: str) -> Scan:
    """Read a picture as a scan of one slice, its grey levels as they are.

    Grey levels of a picture are not HU, and which window made them is not in the file: under modality "CT" a picture
    is refused. A colour picture is read where its channels are equal. Errors: ScanError.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            frames = getattr(picture, "n_frames", 1)
            kind, mode, halved = picture.format, picture.mode, _halved(picture)
            array = np.asarray(picture if mode in ONE_CHANNEL else picture.convert("RGBA"))
    except UnidentifiedImageError as error:
        raise ScanError(
            f"{path}: not a file that can be read as a scan. Expected a DICOM folder or file, NIfTI (.nii, .nii.gz), "
            "an array (.npy, .npz) or a picture (PNG, TIFF, ...). Convert other formats (.mha, .nrrd) to NIfTI."
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises them all
        raise ScanError(f"{path}: a damaged, truncated or oversized picture ({error}). Copy it again.") from error
    if modality == "CT":
        raise ScanError(
            f"{path}: a {kind} picture holds grey levels, not HU, and the window that made them is not in the file. "
            "Give the DICOM or NIfTI scan, or an .npy array in HU; a model that was trained on pictures says "
            "`modality: other` in its card, and `diffcf check` takes --modality other: grey levels as they are."
        )
    if frames > 1:
        raise ScanError(f"{path}: {frames} pages; save the one you mean as a file of its own.")
    if halved:
        raise ScanError(
            f"{path}: a {kind} of 16 bits in several channels, of which only 8 can be read. Save it with one channel."
        )
    if mode not in ONE_CHANNEL:
        colours, alpha = array[..., :3], array[..., 3]
        if (colours != colours[..., :1]).any() or (alpha != 255).any():
            raise ScanError(
                f"{path}: a colour or transparent picture (mode {mode}); one grey value a pixel is expected."
            )
        array = colours[..., 0]
    provenance = Provenance(
        path=str(path),
        format="image",
        modality=modality,
        files=(str(path),),
        notes=(f"{kind}, grey levels as they are",),
    )
    check_values(array, str(path), modality)
    return unplaced_scan(rearrange(array, "y x -> 1 y x"), provenance)


def read_array(path: Path, *, modality: str) -> Scan:
    """Read .npy or .npz as a scan: "y x" (one slice) or "z y x", in the orientation of `Scan`; for CT in HU.

    An .npz holds one array, or `volume` and, optionally, `spacing` (z, y, x in mm; the position is then taken as the
    origin). Without a spacing the scan can be used wherever no millimetres are needed. Errors: ScanError.
    """
    arrays = _load_arrays(path)
    spacing = arrays.pop("spacing", None)
    name = "volume" if "volume" in arrays else next(iter(arrays), None)
    if name is None or (name != "volume" and len(arrays) > 1):
        raise ScanError(f"{path}: holds the arrays {sorted(arrays)}; call the one that is the scan `volume`.")
    array = arrays[name]
    if array.ndim not in (2, 3):
        raise ScanError(f"{path}: {array.ndim}D, shape {array.shape}; expected 'y x' or 'z y x'.")
    if array.ndim == 2:
        array = rearrange(array, "y x -> 1 y x")
    if array.dtype == bool:  # a mask
        array = array.astype(np.uint8)
    check_values(array, str(path), modality)
    provenance = Provenance(
        path=str(path),
        format="array",
        modality="unknown" if modality == "CT" else modality,
        files=(str(path),),
        notes=("array: axes taken as (inferior to superior, anterior to posterior, right to left)",),
    )
    if spacing is None:
        return unplaced_scan(array, provenance)
    spacing = np.asarray(spacing)
    if spacing.shape != (3,) or spacing.dtype.kind not in "iuf" or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ScanError(f"{path}: `spacing` is {spacing!r}; expected three positive numbers, mm along (z, y, x).")
    affine = LPS_TO_RAS @ np.diag([*spacing[::-1].astype(float), 1.0])
    return canonical_scan(rearrange(array, "z y x -> x y z"), affine, provenance, keep_grid=False)


def _halved(picture: Image.Image) -> bool:
    """Whether Pillow, before it decodes a picture, means to keep 8 of its 16 bits: it does so of several channels."""
    return picture.mode not in ONE_CHANNEL and any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"volume": loaded}
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
            others = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
            if others:
                raise ScanError(f"{path}: a ZIP with {others[0]} in it, no .npz. Unpack it, and give the folder.")
            return arrays
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, tokenize.TokenError) as error:
        raise ScanError(
            f"{path}: not a plain numeric NumPy file ({error}). Pickled objects are never read; save numbers with "
            "numpy.save or numpy.savez."
        ) from error
