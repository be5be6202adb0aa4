"""Pictures and arrays: values without anatomy, and how far they may be used."""

from __future__ import annotations

import struct
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from diffcf.cards import Preparation
from diffcf.errors import ScanError
from diffcf.scans import describe, prepare, read_scan, write_nifti

GREY = np.arange(12 * 9, dtype=np.uint8).reshape(12, 9)


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.png", np.uint8), ("a.png", np.uint16), ("a.tif", np.uint16), ("a.bmp", np.uint8)]
)
def test_a_picture_keeps_its_grey_levels_and_is_never_ct(tmp_path, name, dtype):
    grey = GREY.astype(dtype) * (1 if dtype is np.uint8 else 300)
    Image.fromarray(grey).save(tmp_path / name)
    scan = read_scan(tmp_path / name, modality="other")
    np.testing.assert_array_equal(scan.volume, grey[None])
    assert dict(describe(scan))["spacing"] == "unknown"
    with pytest.raises(ScanError, match=r"grey levels, not HU.*--modality other"):
        read_scan(tmp_path / name)


def test_colour(tmp_path):
    equal = np.stack([GREY] * 3, -1)
    Image.fromarray(equal).save(tmp_path / "equal.png")
    np.testing.assert_array_equal(read_scan(tmp_path / "equal.png", modality="other").volume, GREY[None])
    Image.fromarray(equal + np.array([0, 1, 0], dtype=np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(ScanError, match=r"colour\.png: a colour"):
        read_scan(tmp_path / "colour.png", modality="other")


def test_half_of_16_bits_is_not_taken_for_all(tmp_path):
    """Pillow reads 8 bits of a PNG of several channels of 16."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.full((4, 4, 3), 32767, dtype=">u2")))
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(content)
    with pytest.raises(ScanError, match=r"16 bits in several channels.*one channel"):
        read_scan(tmp_path / "deep.png", modality="other")


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as packed:
        packed.writestr("a.dcm", b"0" * 128 + b"DICM")
    with pytest.raises(ScanError, match=r"a\.dcm in it.*Unpack it"):
        read_scan(tmp_path / "export.zip")


def test_a_damaged_npz(tmp_path):
    np.savez_compressed(tmp_path / "scan.npz", volume=np.arange(3000.0).reshape(3, 10, 100) - 1000)
    whole = (tmp_path / "scan.npz").read_bytes()
    for at in range(60, 400, 30):
        (tmp_path / "scan.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with pytest.raises(ScanError, match="not a plain numeric NumPy file"):
            read_scan(tmp_path / "scan.npz")


def test_pages_damage_and_strangers(tmp_path):
    page = Image.fromarray(GREY)
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    with pytest.raises(ScanError, match="2 pages"):
        read_scan(tmp_path / "pages.tif", modality="other")
    page.save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) - 30])
    (tmp_path / "scan.mha").write_bytes(b"ObjectType = Image" * 30)
    for name, message in (("cut.png", "damaged, truncated"), ("scan.mha", "not a file that can be read as a scan")):
        with pytest.raises(ScanError, match=message):
            read_scan(tmp_path / name, modality="other")


def test_an_array_in_hu(tmp_path, hounsfield):
    np.save(tmp_path / "volume.npy", hounsfield.astype(np.int16))
    np.save(tmp_path / "slice.npy", hounsfield[0])
    scan = read_scan(tmp_path / "volume.npy")
    np.testing.assert_array_equal(scan.volume, hounsfield)
    np.testing.assert_array_equal(read_scan(tmp_path / "slice.npy").volume, hounsfield[:1])
    assert prepare(scan, Preparation(size=4)).hu.shape == (1, 4, 4)
    for asked in ({"preparation": Preparation(size=4, spacing=1.0)}, {"centre_mm": (0, 0, 0)}):
        with pytest.raises(ScanError, match=r"needs millimetres.*\.npz"):
            prepare(scan, **{"preparation": Preparation(size=4), **asked})
    written = nib.load(write_nifti(scan.volume, scan, tmp_path / "back.nii"))
    assert int(written.header["sform_code"]) == int(written.header["qform_code"]) == 0


def test_a_mask_of_yes_and_no(tmp_path, hounsfield):
    np.savez(tmp_path / "mask.npz", volume=hounsfield > 0, spacing=[2.5, 0.8, 0.7])
    np.testing.assert_array_equal(read_scan(tmp_path / "mask.npz", modality="other").volume, hounsfield > 0)
    with pytest.raises(ScanError, match="a mask, give the original scan"):
        read_scan(tmp_path / "mask.npz")


def test_an_npz_with_spacing(tmp_path, hounsfield):
    np.savez(tmp_path / "scan.npz", volume=hounsfield, spacing=[2.5, 0.8, 0.7])
    scan = read_scan(tmp_path / "scan.npz")
    np.testing.assert_array_equal(scan.volume, hounsfield)
    assert scan.spacing == pytest.approx((2.5, 0.8, 0.7))
    again = read_scan(write_nifti(scan.volume, scan, tmp_path / "scan.nii"))
    np.testing.assert_array_equal(again.volume, hounsfield)
    assert again.spacing == pytest.approx(scan.spacing)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"hu": np.zeros((2, 3)), "mask": np.zeros((2, 3))}, r"holds the arrays \['hu', 'mask'\]"),
        ({"volume": np.zeros((2, 3, 4, 5))}, "4D"),
        ({"volume": np.full((2, 3), np.nan)}, "6 of 6 voxels are NaN"),
        ({"volume": np.full((2, 3), "a")}, "real numbers are expected"),
        ({"volume": np.zeros((0, 3))}, "no voxels"),
        ({"volume": np.linspace(-1, 1, 9).reshape(3, 3)}, "cannot be HU"),
        ({"volume": np.array([[-1000.0, 50]]), "spacing": [1, 0, 1]}, "three positive numbers"),
        ({"volume": np.array([None, 1])}, "Pickled objects are never read"),
    ],
)
def test_arrays_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "scan.npz", **arrays)
    with pytest.raises(ScanError, match=message):
        read_scan(tmp_path / "scan.npz")
