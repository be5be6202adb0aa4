"""Slices of a manifest as shards: plain tar files in WebDataset's form, for data that do not fit in memory.

    python -m diffcf.data.shards --manifest manifest.csv --preparation-of CONFIG.yaml --out runs/shards/NAME

A sample is KEY.npy, the prepared slice, and KEY.json, whose it is. The slice has two bytes a pixel: int16 HU where all
of it are whole numbers (slices that were not resampled, grey values), which lose nothing, and float16 window units
elsewhere, which are within 1/4000 of half a window's width whatever the values mean. KEY is what noise is keyed by when
the slice comes from memory. `index.json` says what there is. Patients stay in their splits; test is never written.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from diffcf.cards import Preparation, Window, parse_card, unlike
from diffcf.data.dataset import load_fields
from diffcf.data.manifest import Manifest, ManifestRow, Split
from diffcf.errors import ConfigError, DiffcfError, ScanError
from diffcf.folders import whole_folder

INDEX = "index.json"
WRITTEN: tuple[Split, ...] = ("train", "val")
CHUNK = 128  # scans in memory at once while shards are written
AGAIN = "Write the shards anew: python -m diffcf.data.shards."


@dataclass(frozen=True)
class Shard:
    """A tar file: how many samples it holds, and how many pixels a side of each has."""

    path: Path
    samples: int
    size: int


@dataclass(frozen=True)
class Shards:
    """A folder that `write_shards` wrote.

    splits: the shards of "train" and of "val"; scans lie in them whole, in an order drawn once, so that the first ones
    are some of all. digest: SHA-256 of the index, which has one of every shard.
    """

    folder: Path
    preparation: Preparation
    splits: Mapping[str, tuple[Shard, ...]]
    digest: str

    @classmethod
    def read(cls, folder: Path, preparation: Preparation) -> Shards:
        """What a folder holds for a model of this preparation.

        Errors: ConfigError for no such folder, a damaged index and slices of another preparation; ScanError for shards
        that are missing or were cut off.
        """
        path = folder / INDEX
        if not path.is_file():
            raise ConfigError(f"there is no {INDEX} in {folder}; python -m diffcf.data.shards writes such a folder.")
        text = path.read_bytes()
        try:
            index = json.loads(text)
            found = parse_card(Preparation, index["preparation"], str(path))
            listed = {split: index["splits"][split] for split in WRITTEN}
            splits = {
                split: tuple(Shard(folder / one["file"], int(one["samples"]), found.size) for one in listed[split])
                for split in WRITTEN
            }
            sizes = {folder / one["file"]: int(one["bytes"]) for one in chain(*listed.values())}
        except (ValueError, KeyError, TypeError, DiffcfError) as error:
            raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}). {AGAIN}") from error
        other = unlike(found, preparation)
        if other:
            raise ConfigError(
                f"{folder} holds slices of another preparation: {', '.join(other)}. Write shards for this one: python "
                "-m diffcf.data.shards --preparation-of CONFIG."
            )
        for shard, size in sizes.items():
            there = shard.stat().st_size if shard.is_file() else 0
            if there != size:
                raise ScanError(f"{shard} has {there} bytes, expected {size}: copy it again. {AGAIN}")
        return cls(folder, preparation, splits, hashlib.sha256(text).hexdigest())

    def scans(self, split: str, most: int) -> Tensor:
        """The first scans of a split, at most so many: "n s 1 h w" in [-1, 1]. Errors: those of `read_shard`."""
        slices = self.preparation.slices
        samples = chain.from_iterable(read_shard(shard) for shard in self.splits[split])
        images = [unpack(sample["pixels"], self.preparation.window) for sample in islice(samples, most * slices)]
        return rearrange(torch.from_numpy(np.stack(images)), "(n s) h w -> n s 1 h w", s=slices)


def pack(hu: np.ndarray, window: Window) -> np.ndarray:
    """A slice in HU, float "h w", as int16 HU where these are whole numbers, and as float16 in [-1, 1] elsewhere."""
    whole, fits = np.rint(hu), np.iinfo(np.int16)
    if (whole == hu).all() and fits.min <= whole.min() and whole.max() <= fits.max:
        return whole.astype(np.int16)
    return np.clip(window.to_unit(hu), -1.0, 1.0).astype(np.float16)


def unpack(pixels: np.ndarray, window: Window) -> np.ndarray:
    """What `pack` gave as window units, clipped to [-1, 1], float32 "h w"."""
    values = pixels.astype(np.float32)
    return values if pixels.dtype == np.float16 else np.clip(window.to_unit(values), -1.0, 1.0)


def read_shard(shard: Shard) -> Iterator[dict[str, Any]]:
    """The samples of a shard, read one after the other: `key`, and `pixels` as `unpack` takes them. Never unpickles.

    Errors: ScanError that names a shard that is damaged, or has not as many samples as its index says.
    """
    read = 0
    try:
        with tarfile.open(shard.path, "r|") as tar:
            members = _members(tar)
            for name, pixels in members:
                key = name.removesuffix(".npy")
                beside, about = next(members, ("nothing", b""))
                if (name, beside) != (f"{key}.npy", f"{key}.json"):
                    raise ValueError(f"{name} and {beside}; expected KEY.npy and KEY.json")
                yield {"key": int(key), "pixels": _checked(pixels, about, shard.size)}
                read += 1
        if read != shard.samples:
            raise ValueError(f"it ends after {read} of {shard.samples} samples")
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ScanError(f"{shard.path} is damaged at sample {read} ({error}): copy it again. {AGAIN}") from error


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of a tar that is read from front to end."""
    while (member := tar.next()) is not None:
        content = tar.extractfile(member)
        yield member.name, b"" if content is None else content.read()
        tar.members = []  # it would keep them all  # pyright: ignore[reportAttributeAccessIssue]


def _checked(data: bytes, about: bytes, size: int) -> np.ndarray:
    if zlib.crc32(data) != json.loads(about)["crc32"]:
        raise ValueError("its pixels are not those that were written")
    pixels = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if pixels.shape != (size, size) or pixels.dtype not in (np.int16, np.float16):
        raise ValueError(f"{pixels.dtype} {pixels.shape}; expected int16 or float16 ({size}, {size})")
    return pixels


def write_shards(manifests: Sequence[Path], preparation: Preparation, out: Path, *, shards: int = 64) -> Shards:
    """Write the slices of train and val into a new folder, whole or not at all.

    shards: tar files of train, over which its scans are spread evenly; val gets as many as make them as large. Scans
    are read a few at a time and not kept in `.cache`. The same scans give the same bytes.

    Errors: ConfigError for a folder that is not empty, an empty split and more shards than scans; those of
    `Manifest.read_all`; ScanError for scans that cannot be read or cut.
    """
    from rich.console import Console
    from rich.progress import track

    manifest = Manifest.read_all(manifests)
    rows = {split: manifest.split(split) for split in WRITTEN}
    train, val = (len(rows[split]) for split in WRITTEN)
    if not train or not val:
        raise ConfigError(f"{manifest!r}: expected scans to train on and scans to watch; check the column split.")
    if not 1 <= shards <= train:
        raise ConfigError(f"{shards} shards of {train} scans; expected 1 to {train}, a multiple of your processes.")
    with whole_folder(out, ()) as folder:
        listed: dict[str, list[dict[str, Any]]] = {}
        for split, count in {"train": shards, "val": -(-shards * val // train)}.items():
            order = np.random.default_rng(0).permutation(len(rows[split]))
            dealt = [[rows[split][i] for i in part] for part in np.array_split(order, count)]
            console = Console(stderr=True)
            listed[split] = [
                _write_shard(folder / f"{split}-{number:06d}.tar", part, preparation)
                for number, part in enumerate(track(dealt, f"shards of {split}", console=console, transient=True))
            ]
        index = {
            "manifests": [{"name": path.name, "sha256": _digest(path)} for path in manifests],
            "preparation": dataclasses.asdict(preparation),
            "splits": listed,
        }
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return Shards.read(out, preparation)


def _write_shard(path: Path, rows: Sequence[ManifestRow], preparation: Preparation) -> dict[str, Any]:
    """Write a tar file; returns what the index says of it."""
    samples = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for first in range(0, len(rows), CHUNK):
            part = rows[first : first + CHUNK]
            for row, (hu, _) in zip(part, load_fields(part, preparation, cache=False), strict=True):
                for number, plane in enumerate(hu):
                    key = f"{row.index * preparation.slices + number:09d}"
                    data = io.BytesIO()
                    np.save(data, pack(plane, preparation.window), allow_pickle=False)
                    crc = zlib.crc32(data.getvalue())
                    about = {"patient": row.patient, "index": row.index, "slice": number, "crc32": crc}
                    _add(tar, f"{key}.npy", data.getvalue())
                    _add(tar, f"{key}.json", json.dumps(about).encode())
                    samples += 1
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
    return {"file": path.name, "samples": samples, "bytes": path.stat().st_size, "sha256": _digest(path)}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without a time or an owner
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def preparation_of(path: Path) -> Preparation:
    """The `preparation` that a YAML file names: a config of train/diffae.py, or a generator's card.yaml.

    Errors: ConfigError for a file that names none; CheckpointError for one that is no Preparation.
    """
    import yaml

    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML ({error}); give a config of train/diffae.py.") from error
    if not isinstance(said, dict) or not isinstance(said.get("preparation"), dict):
        raise ConfigError(f"{path} names no preparation; give a config of train/diffae.py, or a generator's card.yaml.")
    return parse_card(Preparation, said["preparation"], f"preparation of {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m diffcf.data.shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, nargs="+", required=True, help="CSV files, as of train/diffae.py")
    parser.add_argument(
        "--preparation-of", type=Path, required=True, metavar="YAML", help="the config to train with, or a card.yaml"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument(
        "--shards", type=int, default=64, help="tar files of train, best a multiple of the processes (default 64)"
    )
    options = parser.parse_args(arguments)
    try:
        preparation = preparation_of(options.preparation_of)
        written = write_shards(options.manifest, preparation, options.out, shards=options.shards)
    except DiffcfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {written.folder}")
    for split, shards in written.splits.items():
        print(f"{split:>5}: {sum(shard.samples for shard in shards)} slices in {len(shards)} shards")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
