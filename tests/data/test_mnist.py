"""MNIST in its own format, written by hand."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcf.data import mnist
from diffcf.errors import ConfigError


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def digits() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    made = {}
    for part, each in (("train", 6), ("t10k", 3)):
        made[f"{part}-labels-idx1-ubyte"] = np.repeat(np.arange(10, dtype=np.uint8), each)  # sorted, as in the .npz
        made[f"{part}-images-idx3-ubyte"] = random.integers(0, 256, (10 * each, 28, 28), dtype=np.uint8)
    return made


@pytest.fixture(params=["plain", "gzip"])
def folder(digits, request, tmp_path) -> Path:
    for name, array in digits.items():
        if request.param == "gzip":
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def test_the_original_files_become_pictures_and_a_manifest(digits, folder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert mnist.main(["--source", str(folder), "--out", str(out), "--train", "3", "--val", "2", "--test", "0"]) == 0
    assert "train 30, val 20, test 30" in capsys.readouterr().out
    manifest = mnist.Manifest.read(out / "manifest.csv")
    rows = manifest.split("train")
    assert [row.label for row in rows[:12]] == [*range(10), 0, 1]  # in turn, though the source is sorted
    seen = {row.path.name for name in ("train", "val") for row in manifest.split(name)}
    assert len(seen) == 50
    for row in (rows[0], manifest.split("test")[7]):
        part, number = row.path.stem.split("-")
        stem = "t10k" if part == "test" else "train"
        stored = np.asarray(Image.open(row.path))
        assert np.array_equal(stored, digits[f"{stem}-images-idx3-ubyte"][int(number)])
        assert row.label == digits[f"{stem}-labels-idx1-ubyte"][int(number)]


def test_the_npz_gives_the_same(digits, folder, tmp_path) -> None:
    named = {"x_train": "train-images-idx3-ubyte", "y_train": "train-labels-idx1-ubyte",
             "x_test": "t10k-images-idx3-ubyte", "y_test": "t10k-labels-idx1-ubyte"}  # fmt: skip
    np.savez(tmp_path / "mnist.npz", **{key: digits[name] for key, name in named.items()})
    one, other = mnist.read_mnist(folder), mnist.read_mnist(tmp_path / "mnist.npz")
    for part in ("train", "test"):
        assert all(np.array_equal(a, b) for a, b in zip(one[part], other[part], strict=True))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train-images-idx3-ubyte", b"\x00\x00\x0d\x03" + bytes(12), "starts with 00 00 0d 03"),
        ("train-images-idx3-ubyte", idx(np.zeros((60, 28, 28), np.uint8))[:-5], "cut off"),
        ("train-images-idx3-ubyte", idx(np.zeros((60, 28, 28), np.uint8)) + b"\x00", "cut off or damaged"),
        ("train-labels-idx1-ubyte", idx(np.zeros((60, 28, 28), np.uint8)), "train-labels-idx1-ubyte: starts with"),
        ("train-labels-idx1-ubyte", b"", "train-labels-idx1-ubyte: is empty"),
        ("train-labels-idx1-ubyte", idx(np.zeros(59, np.uint8)), "59"),
        ("train-labels-idx1-ubyte", idx(np.full(60, 11, np.uint8)), "digits from 0 to 9"),
        ("t10k-labels-idx1-ubyte", None, "has no t10k-labels-idx1-ubyte"),
    ],
)
def test_what_is_not_mnist_is_refused_and_nothing_is_written(digits, tmp_path, name, content, says, capsys) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file, array in digits.items():
        (source / file).write_bytes(idx(array))
    (source / name).unlink()
    if content is not None:
        (source / name).write_bytes(content)
    assert mnist.main(["--source", str(source), "--out", str(tmp_path / "out"), "--train", "1", "--val", "1"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_more_than_there_are_and_a_folder_in_use(folder, tmp_path) -> None:
    with pytest.raises(ConfigError, match="7 images of the digit 0 for train: there are 5 left"):
        mnist.write_mnist(folder, tmp_path / "out", {"train": 7, "val": 1, "test": 1})
    with pytest.raises(ConfigError, match="not an empty folder"):
        mnist.write_mnist(folder, folder, {"train": 1, "val": 1, "test": 1})
    with pytest.raises(ConfigError, match="expected no number below 0"):
        mnist.write_mnist(folder, tmp_path / "out", {"train": -1, "val": 1, "test": 1})
    with pytest.raises(ConfigError, match="seed -1"):
        mnist.write_mnist(folder, tmp_path / "out", {"train": 1, "val": 1, "test": 1}, seed=-1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x_train": np.zeros((20, 28, 28))}, r"images of shape \(20, 28, 28\) \(float64\)"),
        ({"y_train": np.repeat(np.arange(10.0), 2)}, r"labels of shape \(20,\) \(float64\)"),
        ({"y_test": np.repeat(np.arange(-1, 9), 2)}, "test holds .* n digits from 0 to 9"),
        ({"y_train": np.array([None] * 20)}, r"no \.npz with x_train"),  # pickled: never read
        ({"y_test": None}, r"no \.npz with x_train"),
    ],
)
def test_an_npz_of_other_arrays_is_refused(tmp_path, changed, says) -> None:
    images, labels = np.zeros((20, 28, 28), np.uint8), np.repeat(np.arange(10), 2)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | changed
    np.savez(tmp_path / "other.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ConfigError, match=says):
        mnist.read_mnist(tmp_path / "other.npz")


def test_an_array_that_is_called_npz_is_refused(tmp_path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(ConfigError, match=r"no \.npz with x_train"):
        mnist.read_mnist(tmp_path / "one.npz")


def test_the_real_digits_are_as_many_as_published(data_root) -> None:
    found = mnist.read_mnist(data_root / "mnist" / "mnist.npz")
    counts = {part: np.bincount(labels).tolist() for part, (_, labels) in found.items()}
    assert counts == {
        "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    }
