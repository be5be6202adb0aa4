"""Many scenes as a folder: scans, causes and a manifest over them, as any other data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from diffcf.cards import Preparation
from diffcf.data.manifest import Manifest, ManifestRow, hash_split
from diffcf.data.masks import mask_of_patch
from diffcf.data.phantom.brain import SIDES, TERRITORIES, side_of, territory_scene
from diffcf.data.phantom.fibrosis import fibrosis_scene
from diffcf.data.phantom.nodule import DRAWN, nodule_scene
from diffcf.data.phantom.scene import Scene
from diffcf.data.phantom.shortcut import Shortcut
from diffcf.errors import ConfigError
from diffcf.folders import whole_folder
from diffcf.scans import prepare, read_scan
from diffcf.scans.write import write_nifti

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["fibrosis", "nodule", "territory"]
SECOND = 0.25  # of the lesions of a set labelled by side are on both
SEEDS = 1_000_000  # scene i of the set with seed s has seed SEEDS * (s + 1) + i: sets share no scene, and none is small


@dataclass(frozen=True)
class PhantomSet:
    """What to make. size: pixels a side. slices: of a chest. scans_per_patient: nodules or follow-ups of one patient.

    shortcut: in train and val with its own correlation, in test with `test_correlation` (None: the same). label: what
    a scene is labelled by, and what its mask shows: the disease, or the mark, which with correlation 0 makes a set
    whose labels nothing but the mark can tell; of brains the side, as an index of `SIDES`, in a set that has lesions on
    both; or of nodules an attribute by its name: 1 where it is above its middle (`DRAWN`). cause: what a nodule's mask
    shows, where it is, or all that a nodule of the one class or the other covers there, as a mark's mask is the union
    of both marks (`nodule_scene`, twin).
    """

    kind: Kind
    count: int
    size: int = 64
    slices: int = 4
    seed: int = 0
    imbalance: float | None = None
    scans_per_patient: int = 1
    shortcut: Shortcut | None = None
    test_correlation: float | None = None
    label: str = "disease"
    cause: Literal["scene", "classes"] = "scene"

    def scene(self, index: int, shortcut: Shortcut | None) -> Scene:
        """Scene `index` of the set."""
        seed = SEEDS * (self.seed + 1) + index
        common = {"imbalance": self.imbalance, "shortcut": shortcut}
        if self.kind == "nodule":
            scene = nodule_scene(seed, self.size, **common)
            if self.cause == "scene":
                return scene
            return replace(scene, cause=scene.cause | nodule_scene(seed, self.size, **common, twin=True).cause)
        body = seed - index % self.scans_per_patient
        if self.kind == "fibrosis":
            return fibrosis_scene(seed, self.size, self.slices, anatomy_seed=body, **common)
        second = SECOND if self.label == "side" else 0.0
        return territory_scene(seed, self.size, anatomy_seed=body, second=second, **common)


def write_scenes(wanted: PhantomSet, out: str | Path) -> Manifest:
    """Write scans (int16 NIfTI), causes and `manifest.csv` into a new folder, whole or not at all.

    Below it: scans/, masks/ (the cause), shortcuts/ (where one is painted) and regions/ (territories, 1 to 6). The
    manifest's attributes are the scene's, its `probability` and, with a shortcut, the class it points to. Patients are
    split by `hash_split` (0.70 train, 0.15 val, 0.15 test) with the set's seed.

    Errors: ConfigError where `out` exists and is not an empty folder, and for what a scene refuses.
    """
    from rich.console import Console
    from rich.progress import track

    if not 1 <= wanted.count <= SEEDS or wanted.scans_per_patient < 1:
        raise ConfigError(
            f"{wanted.count} scene(s), {wanted.scans_per_patient} a patient: expected 1 to {SEEDS}, and at least 1."
        )
    if wanted.test_correlation is not None and wanted.shortcut is None:
        raise ConfigError("a correlation in the test split needs a shortcut; name its kind.")
    if wanted.label == "mark" and wanted.shortcut is None:
        raise ConfigError("labels by the mark need a shortcut; name its kind.")
    marked = wanted.shortcut is not None and (wanted.shortcut.correlation or wanted.test_correlation)
    if wanted.label in DRAWN and (marked or wanted.imbalance is not None or wanted.cause == "classes"):
        raise ConfigError(
            f"marks, imbalance and causes of both classes follow the disease, and the label is {wanted.label!r}: give "
            "a shortcut of correlation 0 or none, and leave out the others."
        )
    if wanted.cause == "classes" and wanted.kind != "nodule":
        raise ConfigError(f"a cause of both classes is known for nodules, not for {wanted.kind}; leave it out.")
    known = ("disease", "mark", *{"nodule": DRAWN, "territory": ("side",)}.get(wanted.kind, ()))
    if wanted.label not in known:
        raise ConfigError(f"label {wanted.label!r}: of the kind {wanted.kind} expected one of {', '.join(known)}.")
    with whole_folder(Path(out), ()) as folder:
        steps = track(range(wanted.count), description=wanted.kind, console=Console(stderr=True), transient=True)
        Manifest([_write(wanted, index, folder) for index in steps], str(out)).write(folder / "manifest.csv")
    return Manifest.read(Path(out) / "manifest.csv")


def territory_masks(rows: Sequence[ManifestRow], preparation: Preparation) -> Tensor:
    """Where the territory lies that has the lesion, on a model's grid: float "n s 1 h w" of 0 and 1.

    rows: of a set of the kind "territory"; the attributes `territory` and, with lesions on both sides, `second` say
    which, and regions/, beside scans/, where they are. Zeros for a scene without a lesion. Errors: ConfigError for a
    row of other data; ScanError as `prepare`.
    """
    import torch
    from einops import rearrange

    grid = (preparation.slices, preparation.size, preparation.size)
    masks = np.zeros((len(rows), *grid), np.float32)
    for mask, row in zip(masks, rows, strict=True):
        path = row.path.parents[1] / "regions" / row.path.name
        territory = row.attributes.get("territory")
        if territory is None or territory not in range(-1, len(TERRITORIES)) or not path.is_file():
            raise ConfigError(
                f"{row.path}: territory {territory}, regions at {path}; expected -1 to {len(TERRITORIES) - 1} and a "
                "file, as python -m diffcf.data.phantom --kind territory writes them."
            )
        if territory >= 0:
            scan, regions = read_scan(row.path), read_scan(path, modality="other")
            second = row.attributes.get("second")
            numbers = [one + 1 for one in (territory, second) if one is not None and one >= 0]
            region = replace(regions, volume=np.isin(regions.volume, numbers))
            mask[:] = mask_of_patch(region, scan, prepare(scan, preparation))
    return rearrange(torch.from_numpy(masks), "n s h w -> n s 1 h w")


def _write(wanted: PhantomSet, index: int, folder: Path) -> ManifestRow:
    patient = f"{wanted.kind}-{wanted.seed}-{index // wanted.scans_per_patient:05d}"
    split = hash_split(patient, wanted.seed)
    shortcut = wanted.shortcut
    if shortcut is not None and split == "test" and wanted.test_correlation is not None:
        shortcut = replace(shortcut, correlation=wanted.test_correlation)
    scene = wanted.scene(index, shortcut)
    name = f"{index:06d}.nii.gz"
    attributes = {**scene.attributes, "probability": round(scene.probability, 6)}
    if scene.shortcut is not None and scene.shortcut_class is not None:
        write_nifti(scene.shortcut, scene.scan, folder / "shortcuts" / name)
        attributes["shortcut"] = float(scene.shortcut_class)
    if scene.regions:
        regions = np.zeros(scene.cause.shape, np.uint8)
        for number, region in enumerate(scene.regions.values(), start=1):
            regions[region > 0] = number
        write_nifti(regions, scene.scan, folder / "regions" / name)
    label, cause = scene.label, scene.cause
    if wanted.label == "mark" and scene.shortcut is not None and scene.shortcut_class is not None:
        label, cause = scene.shortcut_class, scene.shortcut
    name_of_class = scene.classes[label]
    if wanted.label in DRAWN:
        label = int(scene.attributes[wanted.label] > DRAWN[wanted.label][0])
        name_of_class = f"{'high' if label else 'low'} {wanted.label}"
    if wanted.label == "side":
        label = side_of(scene.attributes)
        name_of_class = SIDES[label]
    return ManifestRow(
        path=write_nifti(scene.scan.volume, scene.scan, folder / "scans" / name),
        patient=patient,
        label=label,
        split=split,
        mask=write_nifti(cause, scene.scan, folder / "masks" / name),
        attributes=attributes,
        notes={"class": name_of_class},
    )
