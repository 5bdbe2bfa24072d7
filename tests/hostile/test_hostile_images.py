"""Images, zips and folders made to do harm: each gets one error that names it, and nothing is run or left."""

import hashlib
import io
import json
import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeflow.config import Config
from pipeflow.data import load_data
from pipeflow.data.image_folder import measure_images
from pipeflow.data.picture import MAX_PIXELS
from pipeflow.errors import DataError
from tests.hostile.harmful import sparse
from tests.hostile.refusals import bounded, files_under, refusal


def encoded(pixels: np.ndarray, kind: str, **how) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **how)
    return file.getvalue()


def png(seed: int = 0) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8), "PNG")


def png_that_announces(width: int, height: int) -> bytes:
    """Another size in the header of a PNG of 5 x 4."""
    content = png()
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def jpeg_of_scans(num: int) -> bytes:
    """A progressive JPEG of 4000 x 4000 whose last scan comes again and again."""
    content = encoded(np.zeros((4000, 4000, 3), np.uint8), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * num + content[-2:]


def decompressing_to(megabytes: int) -> bytes:
    """A deflate stream of zeros, a thousandth of what comes out of it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * megabytes + zlib.compressobj(9, zlib.DEFLATED, -15).flush()


def raw_zip(path: Path, members: list[dict]) -> Path:
    """A zip whose headers say what they are told to. `at`: the offset of another member's data, instead of its own."""
    body, listing = bytearray(), bytearray()
    for member in members:
        name, data = member["name"].encode(), member["data"]
        size, method = member.get("size", len(data)), member.get("method", 0)
        common = struct.pack(
            "<HHHHIIIHH", 0, method, 0, 33, member.get("crc", zlib.crc32(data)), len(data), size, len(name), 0
        )
        offset = member.get("at", len(body))
        if "at" not in member:
            body += b"PK\x03\x04" + struct.pack("<H", 20) + common + name + data
        listing += b"PK\x01\x02" + struct.pack("<HH", 20, 20) + common
        listing += struct.pack("<HHHII", 0, 0, 0, member.get("mode", 0o100644) << 16, offset) + name
    end = struct.pack("<HHHHIIH", 0, 0, len(members) % 65536, len(members) % 65536, len(listing), len(body), 0)
    path.write_bytes(bytes(body + listing) + b"PK\x05\x06" + end)
    return path


GOOD = [{"name": f"{part}/{i}.png", "data": png(seed=i)} for part in ("train", "test") for i in range(2)]


def zip_with(**member):
    return lambda path: raw_zip(path / "images.zip", [{"name": "train/x.png", "data": png(), **member}, *GOOD])


def overlapping(path: Path) -> Path:
    """Twenty thousand members that are one and the same."""
    return raw_zip(path / "images.zip", GOOD + [{**GOOD[0], "name": f"train/{i}.png", "at": 0} for i in range(20_000)])


def huge_listing(path: Path) -> Path:
    """A list of members of 20 GB, in a file that takes no room on the disk."""
    size = 20 * 10**9
    with (path / "images.zip").open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, size, 0))
        file.write(b"PK\x06\x07" + struct.pack("<IQI", 0, size, 1))
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    return path / "images.zip"


def many_large(path: Path) -> Path:
    """Members of a few kilobytes each, of 4000 x 4000 pixels: no one too large, and together 160 GB."""
    content = encoded(np.zeros((4000, 4000), bool), "PNG")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    member = {"data": packed, "size": len(content), "crc": zlib.crc32(content), "method": 8}
    names = [f"{part}/{i}.png" for part in ("train", "test") for i in range(5000)]
    return raw_zip(path / "images.zip", [{**member, "name": name} for name in names])


ZIPS = {
    "parent folder": (zip_with(name="train/../../../x.png"), ["train/../../../x.png", "leads out of the zip"]),
    "parent folder, by backslashes": (zip_with(name="train\\..\\..\\x.png"), ["leads out of the zip"]),
    "root, by a backslash": (zip_with(name="\\train\\x.png"), ["leads out of the zip"]),
    "drive": (zip_with(name="C:/train/x.png"), ["leads out of the zip"]),
    "drive, by backslashes": (zip_with(name="C:\\train\\x.png"), ["leads out of the zip"]),
    "symbolic link": (zip_with(data=b"/etc/passwd", mode=stat.S_IFLNK | 0o777), ["train/x.png", "cannot be decoded"]),
    "unpacks to 4 GB, says 100 bytes": (
        zip_with(data=decompressing_to(4096), method=8, size=100, crc=zlib.crc32(bytes(100))),
        ["train/x.png", "cannot be decoded"],
    ),
    "unpacks to 4 GB, and says so": (
        zip_with(data=decompressing_to(4095), method=8, size=4095 << 20), ["train/x.png", "the limit is 64,000,000"]
    ),
    "another method": (zip_with(data=b"BZh9", method=12), ["train/x.png", "another method than deflate"]),
    "overlapping members": (overlapping, ["they overlap", "pack the images anew"]),
    "list of 20 GB": (huge_listing, ["is not a zip that can be read", "list of members"]),
    "160 GB of images": (many_large, ["4000x4000", "160 GB", "the limit is"]),
}  # fmt: skip


def folder_of(folder: Path, members: list[dict]) -> Path:
    for member in members:
        (folder / member["name"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / member["name"]).write_bytes(member["data"])
    return folder


def options(path: Path):
    return Config.from_dict({"data": {"name": "images", "path": str(path)}}).data


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("case", ZIPS)
def test_zip(case, tmp_path, cache):
    make, words = ZIPS[case]
    path = make(tmp_path)
    before = files_under(tmp_path)
    message = refusal(DataError, load_data, options(path))
    assert "data.path" in message and "images.zip" in message and all(word in message for word in words), message
    assert files_under(tmp_path) - {"cache", "cache/pipeflow"} == before, "nothing was unpacked or cached"


FILES = {
    "2^31 x 2^31": (png_that_announces(2**31 - 1, 2**31 - 1), f"more than {MAX_PIXELS:,} pixels"),
    "says 4000 x 4000, has some bytes": (png_that_announces(4000, 4000), "cannot be decoded"),
    "EPS": (encoded(np.zeros((4, 5, 3), np.uint8), "EPS"), "cannot be decoded"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "cannot be decoded"),
    "JPEG of ten thousand scans": (jpeg_of_scans(10_000), "more than 100 scans"),
}


@pytest.mark.parametrize("read", [load_data, measure_images], ids=["load", "measure"])
@pytest.mark.parametrize("case", FILES)
def test_file(case, read, tmp_path, cache, monkeypatch):
    """Ghostscript, which Pillow would have draw an EPS, is there and leaves a trace."""
    content, words = FILES[case]
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/gs_was_run\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    folder = folder_of(tmp_path / "images", [*GOOD, {"name": "train/0.png", "data": content}])
    message = refusal(DataError, read, options(folder))
    assert "train/0.png" in message and words in message
    assert not (tmp_path / "gs_was_run").exists() and not list(cache.rglob("*.npy"))


FOLDERS = {
    "link to itself": (lambda train: (train / "loop").symlink_to(train), ["loop", "by a symbolic link"]),
    "pipe": (lambda train: os.mkfifo(train / "x.png"), ["x.png", "pipe or a device"]),
    "device": (lambda train: (train / "x.png").symlink_to("/dev/zero"), ["x.png", "pipe or a device"]),
    "link to nothing": (lambda train: (train / "x.png").symlink_to("gone"), ["x.png", "cannot be read"]),
    "file without end": (lambda train: (train / "x.png").symlink_to("/proc/kmsg"), ["x.png"]),
    "1 TB of nothing": (lambda train: sparse(train / "x.png", 10**12), ["x.png", "1,000,000,000,000 bytes"]),
    "unprintable name": (lambda train: (train / "\x1b[2J.png").write_bytes(b""), [r"\x1b[2J.png"]),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder(case, tmp_path, cache):
    folder = folder_of(tmp_path / "images", GOOD)
    harm, words = FOLDERS[case]
    harm(folder / "train")
    message = refusal(DataError, load_data, options(tmp_path / "images"))
    assert "data.path" in message and all(word in message for word in words), message


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


HUGE = f"({2**40}, {2**40}, 4, 5), }}".encode().ljust(39)
CACHED = {
    "another type": as_npy(np.zeros((4, 3, 4, 5))),
    "fewer images": as_npy(np.zeros((2, 3, 4, 5), np.uint8)),
    "a pickle": as_npy(np.array([Evil()])),
    "a shape of 2^80": as_npy(np.zeros((4, 3, 4, 5), np.uint8)).replace(b"(4, 3, 4, 5), }" + b" " * 24, HUGE),
}


@pytest.mark.parametrize("case", CACHED)
def test_cache(case, tmp_path, cache, monkeypatch):
    """Whoever writes into the cache can make its checksums fit; what is in it must still be images."""
    monkeypatch.chdir(tmp_path)
    path = raw_zip(tmp_path / "images.zip", GOOD)
    images = load_data(options(path)).train
    (folder,) = (cache / "pipeflow").iterdir()
    (folder / "images.npy").write_bytes(CACHED[case])
    about = json.loads((folder / "images.json").read_text())
    (folder / "images.json").write_text(json.dumps({**about, "sha256": hashlib.sha256(CACHED[case]).hexdigest()}))
    with bounded():
        assert torch.equal(load_data(options(path)).train, images)
    assert not Path("was_run").exists()


def test_cifar10_whose_pickles_are_others(tmp_path, monkeypatch):
    """CIFAR-10 comes as pickles. torchvision opens them when their checksums are the official ones, and only then."""
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], "")]:
        (folder / name).write_bytes(f"cposix\nmkdir\n(V{tmp_path}/was_run\ntR.".encode())
    data = Config.from_dict({"data": {"name": "cifar10", "path": str(tmp_path / "root")}}).data
    with bounded(), pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz"):
        load_data(data)
    assert not (tmp_path / "was_run").exists()
