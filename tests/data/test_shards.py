"""Shards hold what a ScanDataset holds, as plain tar files, and damaged ones are named."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import write_tiny_data

from diffcf.cards import Preparation, Window
from diffcf.data import Manifest
from diffcf.data.dataset import ScanDataset, SliceDataset
from diffcf.data.shards import Shards, main, pack, read_shard, unpack, write_shards
from diffcf.errors import ConfigError, ScanError

TINY = Preparation(size=16, slices=2, field="resize")
SMALL = dataclasses.replace(TINY, size=8)  # of resampled slices no HU is a whole number


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """30 scans whose HU are whole numbers."""
    path = write_tiny_data(tmp_path_factory.mktemp("data"), scans=30)
    for scan in path.parent.glob("[0-9]*.npz"):
        kept = dict(np.load(scan))
        np.savez(scan, **{**kept, "volume": np.rint(kept["volume"])})
    return path


@pytest.fixture
def shards(manifest: Path, tmp_path: Path) -> Shards:
    return write_shards([manifest], TINY, tmp_path / "shards", shards=4)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def rewrite(path: Path, files: dict[str, bytes]) -> None:
    """Other files in a tar of the same size, which the index cannot tell."""
    size = path.stat().st_size
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    whole = path.read_bytes()
    assert len(whole) <= size
    path.write_bytes(whole.ljust(size, b"\0"))


@pytest.mark.parametrize(("preparation", "kept", "within"), [(TINY, np.int16, 0), (SMALL, np.float16, 1 / 4000)])
def test_what_is_read_is_what_a_scan_dataset_holds(manifest, tmp_path, preparation, kept, within) -> None:
    written = write_shards([manifest], preparation, tmp_path / "shards", shards=4)
    for split, count in (("train", 4), ("val", 2)):
        expected = SliceDataset(ScanDataset(Manifest.read(manifest), preparation, split=split, cache=False))
        samples = [sample for shard in written.splits[split] for sample in read_shard(shard)]
        assert len(written.splits[split]) == count
        assert {sample["pixels"].dtype for sample in samples} == {np.dtype(kept)}
        order = [expected.indices.tolist().index(sample["key"]) for sample in samples]
        assert sorted(order) == list(range(len(expected)))
        assert order != sorted(order)
        found = torch.from_numpy(np.stack([unpack(sample["pixels"], preparation.window) for sample in samples]))
        torch.testing.assert_close(found[:, None], expected.images[order], rtol=0, atol=within)


def test_scans_are_whole(manifest, shards) -> None:
    every = ScanDataset(Manifest.read(manifest), TINY, split="val", cache=False).images
    found = shards.scans("val", 4)
    assert found.shape == (4, 2, 1, 16, 16)
    assert all(any(torch.equal(scan, other) for other in every) for scan in found)
    assert len(shards.scans("val", 1000)) == len(every) == 6


def test_patients_stay_in_their_split_and_test_is_not_written(manifest, shards) -> None:
    rows = {row.patient: row for row in Manifest.read(manifest).split("train") + Manifest.read(manifest).split("val")}
    found = set()
    for path in sorted(shards.folder.glob("*.tar")):
        for name, content in members(path).items():
            if name.endswith(".json"):
                about = json.loads(content)
                row = rows[about["patient"]]
                assert (row.split, row.index) == (path.name.partition("-")[0], about["index"])
                assert int(name.removesuffix(".json")) == 2 * about["index"] + about["slice"]
                found.add(about["patient"])
    assert found == set(rows)


def test_the_index_says_what_there_is_and_the_bytes_are_the_same_each_time(manifest, shards, tmp_path) -> None:
    index = json.loads((shards.folder / "index.json").read_text())
    assert [one["samples"] for one in index["splits"]["train"]] == [10, 10, 8, 8]
    assert index["preparation"]["size"] == 16
    assert index["manifests"][0]["name"] == "manifest.csv"
    again = write_shards([manifest], TINY, tmp_path / "again", shards=4)
    assert again.digest == shards.digest
    for path in shards.folder.iterdir():
        assert path.read_bytes() == (again.folder / path.name).read_bytes()


def test_whole_hu_are_kept_exactly_and_others_as_units_of_the_window() -> None:
    window = Window(50.0, 100.0)
    whole = np.array([[-32768.0, 32767.0], [0.0, 100.0]], dtype=np.float32)
    assert pack(whole, window).dtype == np.int16
    assert unpack(pack(whole, window), window).tolist() == [[-1, 1], [-1, 1]]
    for other in (whole + 0.5, whole * 2):
        assert pack(other, window).dtype == np.float16
        expected = np.clip((other - 50) / 50, -1, 1)
        np.testing.assert_allclose(unpack(pack(other, window), window), expected, rtol=0, atol=1 / 4000)


def test_the_command_line_takes_a_config_s_preparation(manifest, tmp_path, capsys) -> None:
    config = Path(__file__).parents[2] / "configs" / "tiny" / "diffae.yaml"
    given = ["--manifest", str(manifest), "--out", str(tmp_path / "out"), "--preparation-of"]
    assert main([*given, str(config), "--shards", "3"]) == 0
    assert "36 slices in 3 shards" in capsys.readouterr().out
    assert Shards.read(tmp_path / "out", TINY).preparation == TINY
    (tmp_path / "none.yaml").write_text("steps: 3\n")
    for bad, said in ((tmp_path / "none.yaml", "names no preparation"), (tmp_path / "absent.yaml", "cannot be read")):
        assert main([*given[:3], str(tmp_path / "other"), "--preparation-of", str(bad)]) == 2
        assert said in capsys.readouterr().err
    assert main([*given, str(config)]) == 2
    assert "64 shards of 18 scans; expected 1 to 18" in capsys.readouterr().err


def test_a_scan_that_cannot_be_read_leaves_nothing_behind(tmp_path) -> None:
    manifest = write_tiny_data(tmp_path / "data", scans=10)
    (tmp_path / "data" / "1.npz").write_bytes(b"no array")
    with pytest.raises(ScanError, match=r"1\.npz"):
        write_shards([manifest], TINY, tmp_path / "shards", shards=1)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_is_no_folder_of_shards_is_refused(shards, manifest, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no index\.json"):
        Shards.read(tmp_path, TINY)
    with pytest.raises(ConfigError, match="another preparation: size 16 in place of 8"):
        Shards.read(shards.folder, SMALL)
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_shards([manifest], TINY, shards.folder, shards=4)
    (shards.folder / "index.json").write_text('{"preparation": {}}')
    with pytest.raises(ConfigError, match="damaged"):
        Shards.read(shards.folder, TINY)


@pytest.mark.parametrize("left", [0, 3000])
def test_a_shard_that_was_cut_off_is_refused_before_it_is_read(shards, left: int) -> None:
    path = shards.splits["train"][1].path
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ScanError, match=rf"train-000001\.tar has {left} bytes, expected \d+"):
        Shards.read(shards.folder, TINY)


def pickled() -> bytes:
    data = io.BytesIO()
    np.save(data, np.array([{}], dtype=object), allow_pickle=True)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["flipped", "short", "cut", "no tar", "pickle", "shape", "order", "foreign", "json"])
def test_a_damaged_shard_is_named(shards, kind: str) -> None:
    shard = shards.splits["train"][0]
    files = members(shard.path)
    (first, pixels), (second, about) = list(files.items())[:2]
    other = {"pickle": pickled(), "shape": np.zeros(3, np.int16)}.get(kind)
    if kind == "flipped":
        files[first] = pixels[:-1] + bytes([pixels[-1] ^ 1])
    elif kind == "short":
        files = dict(list(files.items())[:4])
    elif kind == "cut":
        files = dict(list(files.items())[:3])
    elif kind == "order":
        files = {second: about, first: pixels}
    elif kind == "foreign":
        files = {"a.pkl": pickled(), "a.json": about}
    elif kind == "json":
        files[second] = b"[]"
    elif other is not None:
        if kind == "shape":
            data = io.BytesIO()
            np.save(data, other)
            other = data.getvalue()
        files = {first: other, second: json.dumps({**json.loads(about), "crc32": zlib.crc32(other)}).encode()}
    if kind == "no tar":
        shard.path.write_bytes(b"x" * shard.path.stat().st_size)
    else:
        rewrite(shard.path, files)
    with pytest.raises(ScanError, match=r"train-000000\.tar is damaged"):
        list(read_shard(shard))
