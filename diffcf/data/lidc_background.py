"""Lung nodules of LIDC-IDRI against lung without one: crops from `nodule_vs_background_32.npz`, the region known."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange, reduce

from diffcf.data.lidc_arrays import read_npz
from diffcf.data.lidc_nodules import crop_scan, equivalent_diameter, file_name
from diffcf.data.manifest import Manifest, ManifestRow, hash_split
from diffcf.errors import ConfigError
from diffcf.folders import whole_folder
from diffcf.scans.grid import LPS_TO_RAS
from diffcf.scans.write import write_nifti
from diffcf.types import Scan

ARRAYS = "nodule_vs_background_32.npz"
NAMES = ("hu", "mask", "label", "nodule_index", "y0x0", "patient", "manufacturer", "spacing")
CLASSES = ("background", "nodule")  # in the order of the labels
LIMITS = (5.0, 6.0, 8.0)  # mm, lowest diameters of grades 2, 3 and 4: those at which guidelines ask for follow-up
THICKNESS = 1.0  # mm, nominal: the arrays do not say how thick the slices were


@dataclass(frozen=True)
class BackgroundArrays:
    """The crops, "n", of nodules and of what lies beside them, several of one patient.

    hu: int16 "n h w" at native pixel spacing. mask: uint8 "n h w" of 0 and 1, a radiologist's outline; zeros for a
    background. label: 1 nodule, 0 background. nodule_index: the row of `nodules.csv` around which the crop was cut.
    y0x0: "n 2", its upper left pixel in that nodule's square of 71 x 71. spacing: mm a pixel.
    """

    hu: np.ndarray
    mask: np.ndarray
    label: np.ndarray
    nodule_index: np.ndarray
    y0x0: np.ndarray
    patient: np.ndarray
    manufacturer: np.ndarray
    spacing: np.ndarray

    @classmethod
    def read(cls, source: str | Path) -> BackgroundArrays:
        """Read the folder that holds them.

        Errors: ConfigError where the file or an array is missing, damaged, pickled or of another kind or length, a
        label is none, and where a mask contradicts the label.
        """
        path = Path(source) / ARRAYS
        if not path.is_file():
            raise ConfigError(f"{source} holds no {ARRAYS}; expected the folder of the nodule arrays.")
        made = cls(*read_npz(path, NAMES))
        made._check(path)
        return made

    def __len__(self) -> int:
        return len(self.hu)

    def _check(self, path: Path) -> None:
        count = len(self.hu) if self.hu.ndim == 3 and self.hu.size else 0
        wrong = []
        for name in NAMES:
            array = getattr(self, name)
            shape = {"hu": array.shape, "mask": self.hu.shape, "y0x0": (count, 2)}.get(name, (count,))
            kind = {"patient": "U", "manufacturer": "U", "spacing": "f"}.get(name, "iu")
            if not count or array.shape != shape or array.dtype.kind not in kind:
                wrong.append(f"{name} {array.dtype} {array.shape}")
        if wrong:
            raise ConfigError(
                f"{path}: {', '.join(wrong)}: not the arrays of the same crops (n, rows, columns). Fetch it again."
            )
        shows = reduce(self.mask > 0, "n h w -> n", "max")
        for what, good in (
            ("a label that is neither 0 nor 1", np.isin(self.label, (0, 1))),
            ("no patient, without whom the split cannot be by patient", self.patient != ""),
            ("a spacing that is no positive number", np.isfinite(self.spacing) & (self.spacing > 0)),
            ("a mask that contradicts its label", shows == (self.label == 1)),
        ):
            if not good.all():
                raise ConfigError(f"{path}: crop {int(np.argmin(good))} has {what}. Fetch the file again.")

    def scan(self, index: int) -> Scan:
        """One crop as a scan of one slice: its middle pixel at x = y = 0 and z = 0, since the arrays do not say where
        it lay; 1 mm thick, nominal."""
        pixel = round(float(self.spacing[index]), 6)
        height, width = self.hu.shape[1:]
        affine = LPS_TO_RAS @ np.diag([pixel, pixel, THICKNESS, 1.0])
        affine[:2, 3] = [pixel * (width // 2), pixel * (height // 2)]
        source = f"LIDC-IDRI crop {index} of {self.patient[index]}"
        return crop_scan(rearrange(self.hu[index], "h w -> 1 h w"), (THICKNESS, pixel, pixel), affine, source)


def grade_of(diameter: float) -> int:
    """Size grade 1 to 4 of a nodule by its diameter in mm: below 5, 6 and 8, and from 8 on; 0 for no nodule."""
    return 1 + bisect_right(LIMITS, diameter) if diameter > 0 else 0


def write_background(source: str | Path, out: str | Path, *, seed: int = 0) -> Manifest:
    """Write every crop as NIfTI, the region beside those of a nodule, and `manifest.csv`, whole or not at all.

    Label: 1 nodule, 0 background. Attributes: `diameter_mm` of the disc that covers as much as the region (0 for a
    background) and `grade` (`grade_of`). Patients are split by `hash_split` (0.70, 0.15, 0.15). Errors: ConfigError as
    in `BackgroundArrays.read`, and for a folder that is not empty.
    """
    from rich.console import Console
    from rich.progress import track

    crops, out = BackgroundArrays.read(source), Path(out)
    with whole_folder(out, ()) as folder:
        steps = track(range(len(crops)), description="crops", console=Console(stderr=True), transient=True)
        Manifest([_write(crops, index, folder, seed) for index in steps], str(out)).write(folder / "manifest.csv")
    return Manifest.read(out / "manifest.csv")


def _write(crops: BackgroundArrays, index: int, folder: Path, seed: int) -> ManifestRow:
    scan, patient, label = crops.scan(index), str(crops.patient[index]), int(crops.label[index])
    name = file_name(patient, f"{index:04d}")
    diameter = equivalent_diameter(int(np.count_nonzero(crops.mask[index])), (scan.spacing[1], scan.spacing[2]))
    region = rearrange(crops.mask[index], "h w -> 1 h w")
    return ManifestRow(
        path=write_nifti(scan.volume, scan, folder / "scans" / name),
        patient=patient,
        label=label,
        split=hash_split(patient, seed),
        mask=write_nifti(region, scan, folder / "masks" / name) if label else None,
        attributes={"diameter_mm": round(diameter, 3), "grade": float(grade_of(diameter))},
        notes={
            "class": CLASSES[label],
            "nodule": str(crops.nodule_index[index]),
            "corner": "{} {}".format(*crops.y0x0[index]),
            "manufacturer": str(crops.manufacturer[index]),
        },
    )
