"""Lung nodules of LIDC-IDRI from the download of TCIA: folders of DICOM slices and the radiologists' XML."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffcf.cards import Preparation
from diffcf.data.lidc_nodules import (
    RATED,
    Nodule,
    ScoreThree,
    crop_scan,
    equivalent_diameter,
    file_name,
    group_readings,
    label_of,
    voxels_of,
)
from diffcf.data.lidc_xml import Annotations, read_annotations
from diffcf.data.manifest import Manifest, ManifestRow, hash_split
from diffcf.errors import ConfigError, DiffcfError, ScanError
from diffcf.scans import Patch, prepare, read_scan, write_nifti
from diffcf.scans.grid import LPS_TO_RAS
from diffcf.types import Scan

DICOM_PREFIX = (128, b"DICM")


@dataclass(frozen=True)
class Series:
    """A CT series of the download: its folder, whose it is, and what the radiologists said (None: no XML)."""

    uid: str
    patient: str
    folder: Path
    annotations: Annotations | None


def write_tcia(
    source: str | Path,
    out: str | Path,
    *,
    size: int = 71,
    slices: int = 1,
    score_3: ScoreThree = "benign",
    seed: int = 0,
) -> Manifest:
    """Cut every rated nodule out of its series, as NIfTI with its consensus region beside it, and write `manifest.csv`.

    A crop has `size` x `size` pixels at the scan's own spacing around the middle of the consensus region, and `slices`
    slices around the central one (the slice of the region nearest to its middle); it stays where it was in the world.
    Which readings are one nodule: `group_readings`; its label: `label_of` the mean malignancy; attributes: mean
    ratings, number of raters, diameter in mm on the central slice. Patients are split by `hash_split`.

    A series that cannot be read, or whose XML is missing or does not fit, is left out; `skipped.txt` says which and
    why, and a warning is given. Errors: ConfigError where no series with readings is found, ScanError where none of
    them could be used.
    """
    from rich.console import Console
    from rich.progress import track

    out = Path(out)
    series, skipped = find_series(source)
    rows: list[ManifestRow] = []
    for one in track(series, description="series", console=Console(stderr=True), transient=True):
        if one.annotations is None:
            skipped.append(f"{one.folder}: no XML file names its series {one.uid}")
            continue
        try:
            rows += _write_series(one, out, size, slices, score_3, seed)
        except DiffcfError as error:
            skipped.append(f"{one.folder}: {error}")
    (out / "skipped.txt").unlink(missing_ok=True)
    if skipped:
        out.mkdir(parents=True, exist_ok=True)
        (out / "skipped.txt").write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")
        warnings.warn(
            f"{len(skipped)} series or XML files were left out; {out / 'skipped.txt'} says why.", stacklevel=2
        )
    if not rows:
        raise ScanError(f"{source}: none of {len(series)} series gave a rated nodule.{_listing(skipped)}")
    manifest = Manifest(rows, str(out / "manifest.csv"))
    manifest.write(out / "manifest.csv")
    return manifest


def find_series(source: str | Path) -> tuple[list[Series], list[str]]:
    """The CT series below a folder, by patient, each with the annotations that name it; and what could not be read.

    One series a folder, as TCIA lays them out; the XML may lie beside the slices or anywhere below `source`. Errors:
    ConfigError where there is no CT series or no XML at all.
    """
    source = Path(source)
    if not source.is_dir():
        raise ConfigError(f"{source} is not a folder; give the one that the TCIA download was written to.")
    skipped: list[str] = []
    annotations: dict[str, Annotations] = {}
    for path in sorted(source.rglob("*.xml")):
        try:
            found = read_annotations(path)
            if found and annotations.setdefault(found.series_uid, found) != found:
                raise ScanError(f"{path}: another file annotates the series {found.series_uid} differently.")
        except ScanError as error:
            skipped.append(str(error))
    series = []
    for folder in (source, *sorted(path for path in source.rglob("*") if path.is_dir())):
        try:
            header = _first_header(folder)
        except ScanError as error:
            skipped.append(str(error))
            continue
        if header is not None and header["Modality"] == "CT":
            uid, patient = header["SeriesInstanceUID"], header["PatientID"]
            if patient:
                series.append(Series(uid, patient, folder, annotations.get(uid)))
            else:
                skipped.append(f"{folder}: (0010,0020) PatientID is missing, so the split cannot be by patient")
    if not series or not annotations:
        lacks = "CT series" if not series else "XML of the radiologists (LidcReadMessage)"
        raise ConfigError(
            f"{source}: no {lacks} below it that can be used. Expected the LIDC-IDRI download of TCIA, series folders "
            f"of DICOM files, and its annotation XML beside them or in a folder of their own.{_listing(skipped)}"
        )
    return sorted(series, key=lambda one: (one.patient, one.uid)), skipped


def _listing(skipped: list[str]) -> str:
    return "".join(f"\n  {line}" for line in skipped[:20])


def _first_header(folder: Path) -> dict[str, str] | None:
    """Modality, series and patient, by keyword, of the first DICOM file right in a folder; None where there is none.

    A file without a modality (the index of a medium, or cut off before it) is passed over. Errors: ScanError for a
    damaged header.
    """
    import pydicom

    keywords = ["Modality", "SeriesInstanceUID", "PatientID"]
    offset, magic = DICOM_PREFIX
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            if file.read(offset + len(magic))[offset:] != magic:
                continue
        try:
            header = pydicom.dcmread(path, specific_tags=list(keywords))
            found = {keyword: str(header.get(keyword) or "").strip() for keyword in keywords}
        except Exception as error:  # pydicom raises many kinds on damaged headers
            raise ScanError(f"{path}: the DICOM header is truncated or damaged ({error}). Fetch it again.") from error
        if found["Modality"]:
            return found
    return None


def _write_series(one: Series, out: Path, size: int, slices: int, score_3: ScoreThree, seed: int) -> list[ManifestRow]:
    """Write the nodules of one series; all of them are cut before the first is written."""
    assert one.annotations is not None
    readings = one.annotations.readings
    if not readings:
        return []
    scan = read_scan(one.folder, series_uid=one.uid)
    placement = _placement(scan)
    shape = scan.volume.shape
    voxels = [voxels_of(reading, placement, shape, str(one.folder)) for reading in readings]
    nodules = [(nodule, *_cut(nodule, scan, size, slices)) for nodule in group_readings(readings, voxels, scan)]
    rows = []
    for number, (nodule, crop, region, pixels) in enumerate(nodules):
        name = file_name(one.patient, one.uid.rpartition(".")[2][-8:], f"{number:02d}")
        attributes = {name: nodule.rating(name) for name in (*RATED, "malignancy")}
        attributes["raters"] = float(len(nodule.readings))
        attributes["diameter_mm"] = round(equivalent_diameter(pixels, scan.spacing[1:]), 3)
        malignancy = nodule.rating("malignancy")
        assert malignancy is not None  # a reading without it is no rated reading
        rows.append(
            ManifestRow(
                path=write_nifti(crop.volume, crop, out / "scans" / name),
                patient=one.patient,
                label=label_of(malignancy, score_3),
                split=hash_split(one.patient, seed),
                mask=write_nifti(region, crop, out / "masks" / name),
                attributes=attributes,
                notes={"nodule": " ".join(reading.name for reading in nodule.readings), "series": one.uid},
            )
        )
    return rows


def _cut(nodule: Nodule, scan: Scan, size: int, slices: int) -> tuple[Scan, np.ndarray, int]:
    """The crop around a nodule, the nodule's region on it, uint8 "z y x", and its pixels on the central slice."""
    index = np.stack(np.unravel_index(nodule.voxels, scan.volume.shape))  # z, y, x
    middle = index.mean(axis=1)
    central = int(index[0][np.abs(index[0] - middle[0]).argmin()])
    first = min(max(central - (slices - 1) // 2, 0), max(scan.volume.shape[0] - slices, 0))
    preparation = Preparation(size=size, slices=slices, field="crop", spacing=None)
    patch = prepare(
        scan,
        preparation,
        slices=range(first, first + slices),
        centre_index=(round(float(middle[1])), round(float(middle[2]))),
        any_pixels=True,
    )
    return _as_scan(patch, scan), _region(index, patch), int((index[0] == central).sum())


def _as_scan(patch: Patch, scan: Scan) -> Scan:
    """A patch of whole voxels as a scan, at its place in the world."""
    affine = scan.affine.copy()
    affine[:3, 3] = (scan.affine @ [patch.box[1], patch.box[0], patch.slices[0], 1.0])[:3]
    return crop_scan(patch.hu, scan.spacing, affine, scan.provenance.path)


def _region(index: np.ndarray, patch: Patch) -> np.ndarray:
    region = np.zeros(patch.hu.shape, dtype=np.uint8)
    origin = np.array([patch.slices[0], round(patch.box[0]), round(patch.box[1])])
    z, y, x = moved = index - origin[:, None]
    inside = ((moved >= 0) & (moved < np.array(region.shape)[:, None])).all(axis=0)
    region[z[inside], y[inside], x[inside]] = 1
    return region


def _placement(scan: Scan) -> dict[str, np.ndarray]:
    """SOP instance UID of each slice -> 4x4, pixel (column, row, 0, 1) -> voxel index (x, y, z, 1) of the scan.

    The XML counts pixels of the DICOM slice; the scan may have turned them into its canonical orientation.
    """
    import pydicom

    tags = ["SOPInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]
    to_index = np.linalg.inv(scan.affine) @ LPS_TO_RAS
    placement = {}
    for path in scan.provenance.files:
        header = pydicom.dcmread(path, specific_tags=tags)
        orientation = np.array(header.ImageOrientationPatient, dtype=float)
        pixel = np.eye(4)
        pixel[:3, 0] = orientation[:3] * float(header.PixelSpacing[1])
        pixel[:3, 1] = orientation[3:] * float(header.PixelSpacing[0])
        pixel[:3, 3] = header.ImagePositionPatient
        placement[str(header.SOPInstanceUID)] = to_index @ pixel
    return placement
