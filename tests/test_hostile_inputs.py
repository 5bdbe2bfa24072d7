"""Files made to do harm: each gets one error that names it, within seconds and some megabytes, and nothing is run or left.

What is merely wrong is in test_wrong_inputs.py.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import pipeflow
from pipeflow.config import Config, load
from pipeflow.data import load_data
from pipeflow.data.images import MAX_PIXELS, measure_images
from pipeflow.errors import CheckpointError, ConfigError, DataError, PipeflowError
from pipeflow.evaluate import evaluate
from pipeflow.plan.machines import read_machines
from pipeflow.report import report
from pipeflow.sample import sample
from pipeflow.saved_flow import load_flow, read_config

SECONDS, MEGABYTES = 20, 700
"""More than any of these takes, on a busy machine; far less than what they ask for."""


def resident(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


@contextlib.contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Fails where the block takes long or much memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present from here on
    before, began = resident("VmRSS"), time.monotonic()
    yield
    assert time.monotonic() - began < seconds
    assert resident("VmHWM") - before < MEGABYTES * 1e6


def refusal(kind: type[PipeflowError], function: Callable, *arguments) -> str:
    """The one short error of a call."""
    with bounded(), pytest.raises(kind) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1500 and message.isprintable()
    return message


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ---------------------------------------------------------------------------------------------------------------- images


def png(width: int = 5, height: int = 4, seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def png_that_announces(width: int, height: int) -> bytes:
    """A header, and pixels for some bytes of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def as_format(name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(file, name)
    return file.getvalue()


def jpeg_of_scans(num: int) -> bytes:
    """A progressive JPEG of 4000 x 4000 whose last scan comes again and again."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((4000, 4000, 3), np.uint8)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
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
    """Members of a few kilobytes each, of 4000 x 4000 pixels: no one too large, and together 480 GB."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((4000, 4000), np.uint8)).convert("1").save(file, "PNG")
    content = file.getvalue()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    member = {"data": packed, "size": len(content), "crc": zlib.crc32(content), "method": 8}
    return raw_zip(
        path / "images.zip", [{**member, "name": f"{part}/{i}.png"} for part in ("train", "test") for i in range(5000)]
    )


ZIPS = {
    "parent folder": (zip_with(name="train/../../../x.png"), ["train/../../../x.png", "leads out of the zip"]),
    "absolute": (zip_with(name="/train/x.png"), ["/train/x.png", "leads out of the zip"]),
    "backslashes": (zip_with(name="train\\..\\x.png"), ["leads out of the zip"]),
    "drive": (zip_with(name="C:/train/x.png"), ["leads out of the zip"]),
    "symbolic link": (zip_with(data=b"/etc/passwd", mode=stat.S_IFLNK | 0o777), ["train/x.png", "cannot be decoded"]),
    "escape sequences": (zip_with(name="train/\x1b[2J.png", data=b"x"), [r"train/\x1b[2J.png", "cannot be decoded"]),
    "unpacks to 4 GB, says 100 bytes": (
        zip_with(data=decompressing_to(4096), method=8, size=100, crc=zlib.crc32(bytes(100))),
        ["train/x.png", "cannot be decoded"],
    ),
    "unpacks to 4 GB, says 60 MB": (
        zip_with(data=decompressing_to(4096), method=8, size=60_000_000), ["train/x.png", "cannot be decoded"]
    ),
    "unpacks to 4 GB, and says so": (
        zip_with(data=decompressing_to(4095), method=8, size=4095 << 20), ["train/x.png", "the limit is 64,000,000"]
    ),
    "another method": (zip_with(data=b"BZh9", method=12), ["train/x.png", "another method than deflate"]),
    "overlapping members": (overlapping, ["lie over each other", "pack the images anew"]),
    "list of 20 GB": (huge_listing, ["is not a zip that can be read", "list of members"]),
    "480 GB of images": (many_large, ["4000x4000", "480.0 GB", "the limit is"]),
    "a zip in a zip": (lambda path: nested_zip(path), ["no images in train/"]),
}  # fmt: skip


def nested_zip(path: Path) -> Path:
    with zipfile.ZipFile(path / "images.zip", "w") as archive:
        archive.write(raw_zip(path / "inner.zip", GOOD), "train/images.zip")
    return path / "images.zip"


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
    assert files_under(tmp_path) == before, "nothing was unpacked or cached"


FILES = {
    "100000 x 100000": (png_that_announces(100_000, 100_000), f"more than {MAX_PIXELS:,} pixels"),
    "2^31 x 2^31": (png_that_announces(2**31 - 1, 2**31 - 1), f"more than {MAX_PIXELS:,} pixels"),
    "says 4000 x 4000, has 100 bytes": (png_that_announces(4000, 4000), "cannot be decoded"),
    "truncated": (png(300, 300)[:5000], "cannot be decoded"),
    "GIF": (as_format("GIF"), "cannot be decoded"),
    "TIFF": (as_format("TIFF"), "cannot be decoded"),
    "EPS": (as_format("EPS"), "cannot be decoded"),
    "PDF": (as_format("PDF"), "cannot be decoded"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "cannot be decoded"),
    "JPEG of ten thousand scans": (jpeg_of_scans(10_000), "more than 100 scans"),
}


@pytest.mark.parametrize("read", [load_data, lambda options: measure_images(options.path)], ids=["load", "measure"])
@pytest.mark.parametrize("case", FILES)
def test_file(case, read, tmp_path, cache, monkeypatch):
    """Ghostscript, which Pillow would have draw an EPS, is there and leaves a trace."""
    content, words = FILES[case]
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/gs_was_run\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    for member in [*GOOD, {"name": "train/0.png", "data": content}]:
        (tmp_path / "images" / member["name"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / member["name"]).write_bytes(member["data"])
    message = refusal(DataError, read, options(tmp_path / "images"))
    assert "train/0.png" in message and words in message
    assert not (tmp_path / "gs_was_run").exists() and not cache.exists()


def link_to_itself(folder: Path) -> None:
    (folder / "train" / "loop").symlink_to(folder / "train")


def links_that_double(folder: Path) -> None:
    """2^30 folders, by way of 30 folders with two links each to the next."""
    for level in range(30):
        (folder / "levels" / str(level)).mkdir(parents=True)
        for name in "ab":
            (folder / "levels" / str(level) / name).symlink_to(folder / "levels" / str(level + 1))
    (folder / "levels" / "30").mkdir()
    (folder / "train" / "deep").symlink_to(folder / "levels" / "0")


FOLDERS = {
    "link to itself": (link_to_itself, ["loop", "by a symbolic link"]),
    "links that double": (links_that_double, ["by a symbolic link"]),
    "pipe": (lambda folder: os.mkfifo(folder / "train" / "x.png"), ["x.png", "pipe or a device"]),
    "device": (lambda folder: (folder / "train" / "x.png").symlink_to("/dev/zero"), ["x.png", "pipe or a device"]),
    "link to nothing": (lambda folder: (folder / "train" / "x.png").symlink_to("gone"), ["x.png", "cannot be read"]),
    "link in a circle": (lambda folder: (folder / "train" / "x.png").symlink_to("x.png"), ["x.png", "cannot be read"]),
    "file without end": (lambda folder: (folder / "train" / "x.png").symlink_to("/proc/kmsg"), ["x.png"]),
    "1 TB of nothing": (
        lambda folder: sparse(folder / "train" / "x.png", 10**12),
        ["x.png", "1,000,000,000,000 bytes"],
    ),
    "unprintable name": (lambda folder: (folder / "train" / "\x1b[2J.png").write_bytes(b""), [r"\x1b[2J.png"]),
}


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


@pytest.mark.parametrize("case", FOLDERS)
def test_folder(case, tmp_path, cache):
    for member in GOOD:
        (tmp_path / "images" / member["name"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / member["name"]).write_bytes(member["data"])
    harm, words = FOLDERS[case]
    harm(tmp_path / "images")
    message = refusal(DataError, load_data, options(tmp_path / "images"))
    assert "data.path" in message and all(word in message for word in words), message


class TestCache:
    """Whoever writes into the cache can make its checksums fit; what is in it must still be images."""

    @pytest.fixture
    def cached(self, tmp_path, cache):
        path = raw_zip(tmp_path / "images.zip", GOOD)
        images = load_data(options(path)).train
        (folder,) = (cache / "pipeflow").iterdir()
        yield path, folder
        with bounded():
            assert torch.equal(load_data(options(path)).train, images)

    def replace(self, folder: Path, content: bytes) -> None:
        (folder / "images.npy").write_bytes(content)
        about = json.loads((folder / "images.json").read_text())
        (folder / "images.json").write_text(json.dumps({**about, "sha256": hashlib.sha256(content).hexdigest()}))

    def test_pickled_objects(self, cached, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "was_run"),)

        file = io.BytesIO()
        np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
        self.replace(cached[1], file.getvalue())
        load_data(options(cached[0]))
        assert not (tmp_path / "was_run").exists()

    @pytest.mark.parametrize("shape", [(2**40, 3, 4, 5), (4, 3, 2**31, 2**31), (2**62, 2**62, 2**62, 2**62)])
    def test_more_than_there_is(self, cached, shape):
        head = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
        self.replace(cached[1], b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(240))

    @pytest.mark.parametrize("array", [np.zeros((4, 3, 4, 5)), np.zeros(4, np.uint8), np.zeros((2, 3, 4, 5), np.uint8)])
    def test_other_arrays(self, cached, array):
        file = io.BytesIO()
        np.save(file, array)
        self.replace(cached[1], file.getvalue())

    @pytest.mark.parametrize("name", ["images.npy", "images.json"])
    def test_pipes(self, cached, name):
        (cached[1] / name).unlink()
        os.mkfifo(cached[1] / name)

    def test_a_json_that_nests(self, cached):
        (cached[1] / "images.json").write_text("[" * 1_000_000)


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


# -------------------------------------------------------------------------------------------------------- configurations


def laughs(levels: int = 30) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)])


YAMLS = {
    "call": ("run: !!python/object/apply:os.mkdir [was_run]", "python/object"),
    "new": ("run: !!python/object/new:os.mkdir [was_run]", "python/object"),
    "name": ("run: !!python/name:os.system ''", "python/name"),
    "module": ("run: !!python/module:antigravity ''", "python/module"),
    "tuple": ("run: !!python/tuple [1]", "python/tuple"),
    "billion laughs": (laughs(), "write out what it stands for"),
    "laughs by merging": ("a: &a {x: 1}\nb: &b\n  <<: [*a, *a]\nrun:\n  <<: [*b, *b]", "write out what it stands for"),
    "refers to itself": ("run: &a [*a]", "write out what it stands for"),
    "50 MB of nesting": ("[" * 50_000_000, "Larger than 256,000 bytes"),
    "nesting": ("[" * 250_000, "nested more than 50 deep"),
    "nesting of mappings": ("{a: " * 60_000, "nested more than 50 deep"),
    "nesting in blocks": ("- " * 120_000, "nested more than 50 deep"),
    "a key twice": ("optim:\n  lr: 1\n  lr: 2", "'lr' is written twice"),
    "a section twice": ("optim: {lr: 1}\noptim: {lr: 2}", "'optim' is written twice"),
    "sixty thousand keys": ("\n".join(f"{i:x}:" for i in range(35_000)), "unknown section"),
    "a long key": (f"? {'k' * 200_000}\n: 1", "unknown section"),
    "a long value": (f"optim: {{lr: {'v' * 200_000}}}", "optim.lr"),
    "a long number": (f"optim: {{batch_size: 0x{'f' * 200_000}}}", "optim.batch_size"),
    "a long decimal": (f"optim: {{batch_size: {'9' * 200_000}}}", "is not YAML"),
    "a number of base 60": (f"optim: {{lr: 1{':01' * 80_000}}}", ""),
    "a number beyond floats": (f"optim: {{lr: 0x{'f' * 1000}}}", "optim.lr"),
    "a date that is none": ("run: 2026-99-99", "is not YAML"),
    "an empty number": ("run: !!int ''", "is not YAML"),
    "no truth": ("run: !!bool x", "is not YAML"),
    "no date": ("run: !!timestamp x", "is not YAML"),
    "a set": ("run: !!set {a, b}", "run:"),
    "a text as mapping": ("run: !!map x", "is not YAML"),
    "a zero byte": ('run: {dir: "a\\0b"}', "run.dir"),
    "so many blocks": ("model: {num_blocks: 1000000000}", "model.num_blocks: must be 16 or less"),
    "so many steps": ("model: {num_steps: 1000000000}", "model.num_steps: must be 1,024 or less"),
    "so wide": ("model: {width: 1000000000}", "model.width: must be 16,384 or less"),
    "so many parts": ("parts: {split: balanced, num: 1000000000}", "parts.num: must be"),
    "so many epochs": ("schedule: {local_epochs: 1000000000}", "schedule.local_epochs: must be"),
    "so many images": ("data: {num_train: 1000000000000}", "data.num_train: must be"),
    "so long a turn": (f"schedule: {{alternate_every: '{'9' * 5000} steps'}}", "schedule.alternate_every"),
    "so many names": (f"parts: {{split: [{', '.join(['x'] * 60_000)}], num: 3}}", "parts.num"),
}  # fmt: skip


@pytest.mark.parametrize("case", YAMLS)
def test_config(case, tmp_path, monkeypatch):
    text, words = YAMLS[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    message = refusal(ConfigError, load, str(tmp_path / "run.yaml"))
    assert words in message
    assert files_under(tmp_path) == {"run.yaml"}


@pytest.mark.parametrize("read", [lambda path: load(str(path)), read_machines], ids=["config", "machines"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_yaml_that_is_no_file(make, read, tmp_path):
    make(tmp_path / "some.yaml")
    assert "some.yaml" in refusal(ConfigError, read, tmp_path / "some.yaml")


MACHINES = {
    "call": ("workers: !!python/object/apply:os.mkdir [was_run]", "python/object"),
    "billion laughs": (laughs(), "write out what it stands for"),
    "nesting": ("[" * 250_000, "nested more than 50 deep"),
    "so many workers": ("workers: 1000000000000", "1,000,000 or fewer"),
    "a number beyond floats": (f"flops: 0x{'f' * 1000}", "flops"),
    "a long text": (f"flops: {'9' * 200_000} x", "flops"),
    "a long name": (f"step_seconds: {{batch_size: 1, train: {{? {'k' * 200_000} : []}}}}", "step_seconds"),
    "a number of many digits": (f"latency: '1e{'9' * 100_000}'", "latency"),
}


@pytest.mark.parametrize("case", MACHINES)
def test_machines(case, tmp_path, monkeypatch):
    text, words = MACHINES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "machines.yaml").write_text(text)
    message = refusal(ConfigError, read_machines, tmp_path / "machines.yaml")
    assert words in message and files_under(tmp_path) == {"machines.yaml"}


@pytest.mark.parametrize(
    "name", ["../evil:f", "/tmp/evil:f", "..evil:f", ".evil:f", "evil/x:f", "http://x/evil:f", "evil :f"]
)
@pytest.mark.parametrize("option", ["data.name", "model.name"])
def test_a_function_is_named_by_module_and_not_by_path(option, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (tmp_path, tmp_path / "here"):
        (place / "evil.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")

    def run() -> None:
        section, _, key = option.partition(".")
        given = {"run": {"dir": str(tmp_path / "run")}, "data": {"num_train": 64, "num_test": 64}}
        given[section] = {**given.get(section, {}), key: name}
        pipeflow.train(Config.from_dict(given))

    assert option in refusal(ConfigError, run)
    assert not (tmp_path / "was_run").exists()


# ------------------------------------------------------------------------------------------------------------ run folders


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """The run once more, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "run")


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


TEXTS = {
    "nesting": "[" * 5_000_000,
    "nesting of objects": '{"a":' * 1_000_000,
    "nesting that closes": "[" * 400 + "]" * 400,
    "no object": "[]",
    "null": "null",
    "empty": "",
    "no text": "\udcff\udcfe",
    "a number": "9" * 100_000,
    "nothing in it": "{}",
}


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode(errors="surrogateescape"))


SUMMARIES = {
    "no parts": lambda summary: summary.pop("parts"),
    "epochs are a number": lambda summary: summary.update(epochs=10**18),
    "an epoch is null": lambda summary: summary.update(epochs=[None]),
    "bits/dim are a list": lambda summary: summary.update(test_bpd=[1]),
    "bits/dim are a text": lambda summary: summary.update(test_bpd="__import__('os')"),
    "bits/dim before are not finite": lambda summary: summary.update(initial_bpd="nan"),
    "bits/dim before are endless": lambda summary: summary.update(initial_bpd=1e308),
    "seconds are negative": lambda summary: summary["epochs"][0].update(seconds=-1),
    "seconds are not finite": lambda summary: summary["epochs"][0].update(seconds=float("inf")),
    "multiply-adds are endless": lambda summary: summary["epochs"][0].update(macs=10**400),
    "a phase of no kind": lambda summary: summary["epochs"][0].update(phase="\x1b[2J"),
    "parts of no kind": lambda summary: summary["epochs"][0].update(trained=["x"]),
    "a link of four": lambda summary: summary["epochs"][0]["bytes"].update(latents=[[0, 1, 2, 3]]),
    "bytes of no kind": lambda summary: summary["bytes"]["gather"].update(evil=1),
    "images of no kind": lambda summary: summary["epochs"][0]["bytes"].update(images=None),
    "bytes are a text": lambda summary: summary["bytes"].update(total="many"),
    "a name that clears the screen": lambda summary: summary.update(name="\x1b[2J"),
    "a name without end": lambda summary: summary.update(name="x" * 100_000),
}


class TestReport:
    @pytest.mark.parametrize("text", TEXTS)
    @pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
    def test_texts(self, name, text, run, tmp_path):
        if name == "metrics.jsonl":
            (run / "summary.json").unlink()
        write(run / name, TEXTS[text] + "\n")
        message = refusal(CheckpointError, report, [run], tmp_path / "figures")
        assert name in message or "no start of a run" in message
        assert not (tmp_path / "figures").exists()

    @pytest.mark.parametrize("change", SUMMARIES)
    def test_summaries(self, change, run, tmp_path):
        change_json(run / "summary.json", SUMMARIES[change])
        message = refusal(CheckpointError, report, [run], tmp_path / "figures")
        assert "summary.json" in message and "take it from a copy" in message
        assert not (tmp_path / "figures").exists()

    @pytest.mark.parametrize("kind", ["start", "epoch", "gather"])
    def test_events(self, kind, run, tmp_path):
        (run / "summary.json").unlink()
        with (run / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"event": kind, "epoch": {}}) + "\n")
        assert "metrics.jsonl, line" in refusal(CheckpointError, report, [run], tmp_path / "figures")

    @pytest.mark.parametrize(
        "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda p: sparse(p, 10**10)]
    )
    def test_a_log_that_is_no_file(self, make, run, tmp_path):
        for name in ("summary.json", "metrics.jsonl"):
            (run / name).unlink()
            make(run / name)
        with bounded(), pytest.raises(CheckpointError):
            report([run], tmp_path / "figures")


def header(tensors: dict, size: int | None = None, content: bytes = b"") -> bytes:
    """A safetensors file whose header says what it is told to."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + content


def tensor(shape: list, dtype: str = "F32", end: int = 0) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


SAFETENSORS = {
    "a header of 2^60 bytes": header({}, size=2**60),
    "a header of 2^64 - 1 bytes": header({}, size=2**64 - 1),
    "a header longer than the file": header({}, size=90_000_000),
    "a header that nests": struct.pack("<Q", 90_000) + b"[" * 90_000,
    "a shape of 2^80": header({"a": tensor([2**40, 2**40])}),
    "a shape of 2^62": header({"a": tensor([2**62])}),
    "a negative shape": header({"a": tensor([-1])}),
    "offsets beyond the file": header({"a": tensor([2**30], end=2**32)}),
    "offsets that run backwards": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, content=bytes(4)),
    "a hole between tensors": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, content=bytes(8)),
    "a dtype of no kind": header({"a": tensor([1], "PICKLE", 4)}, content=bytes(4)),
    "a dtype that torch has not": header({"a": tensor([2], "F4", 1)}, content=bytes(1)),
    "empty": b"",
    "a pickle": b"\x80\x04\x95cposix\nmkdir\n",
    "a torch file": b"PK\x03\x04",
}  # fmt: skip


STEP = "blocks.0.steps.0.actnorm.bias"
"""A parameter of the flow."""


class TestModel:
    @pytest.mark.parametrize("case", SAFETENSORS)
    def test_files(self, case, run):
        (run / "model.safetensors").write_bytes(SAFETENSORS[case])
        for function in (load_flow, lambda folder: sample(folder, 1, 1.0, 0), evaluate):
            assert "model.safetensors is damaged" in refusal(CheckpointError, function, run)

    def rewrite(self, run: Path, change: Callable[[dict], object], shape: str = "[3, 32, 32]") -> None:
        tensors = load_file(run / "model.safetensors")
        change(tensors)
        save_file(tensors, run / "model.safetensors", metadata={"shape": shape})

    @pytest.mark.parametrize(
        "change, words",
        [
            (lambda t: t.update({STEP: torch.zeros(1)}), "[1]"),
            (lambda t: t.update({STEP: t[STEP].long()}), "torch.int64"),
            (lambda t: t.update({STEP: t[STEP].double()}), "torch.float64"),
            (lambda t: t.pop(STEP), f"no {STEP}"),
            (lambda t: t.update({"more": torch.zeros(1)}), "Unexpected key"),
        ],
    )
    def test_other_tensors(self, change, words, run):
        self.rewrite(run, change)
        assert words in refusal(CheckpointError, load_flow, run)

    @pytest.mark.parametrize(
        "shape",
        ["[3, 1073741824, 1073741824]", "[1000000, 4, 4]", "[1000000000000, 4, 4]", "[]", "null", "[3]", "[-3, 32, 32]",
         "[true, 32, 32]", "[3.0, 32, 32]", '"3"', "[" * 1000, "[3, 32, 33]", "9" * 10_000, "[3, 0, 32]"],
    )  # fmt: skip
    def test_shapes(self, shape, run):
        self.rewrite(run, lambda tensors: None, shape)
        assert "model.safetensors" in refusal(CheckpointError, sample, run, 1, 1.0, 0)

    def test_without_a_shape(self, run):
        save_file(load_file(run / "model.safetensors"), run / "model.safetensors")
        assert "have the shape None" in refusal(CheckpointError, load_flow, run)

    def test_a_configuration_of_a_flow_that_is_larger_than_the_file(self, run):
        settings = yaml.safe_load((run / "config.yaml").read_text())
        settings["model"] |= {"num_steps": 1024, "width": 16384}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        assert "more flow steps than" in refusal(CheckpointError, load_flow, run)
        settings["model"] |= {"num_steps": 2}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        assert "16384" in refusal(CheckpointError, load_flow, run)


class TestConfigInARunFolder:
    @pytest.mark.parametrize("case", [case for case in YAMLS if case != "50 MB of nesting"])
    def test_config(self, case, run, monkeypatch):
        monkeypatch.chdir(run)
        before = files_under(run)
        write(run / "config.yaml", YAMLS[case][0])
        assert "config.yaml" in refusal(CheckpointError, read_config, run)
        assert files_under(run) == before

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
    def test_no_file(self, make, run, finished_run):
        config = read_config(finished_run)
        (run / "config.yaml").unlink()
        make(run / "config.yaml")
        assert "config.yaml" in refusal(CheckpointError, read_config, run)
        config = Config.from_dict({**config.to_dict(), "run": {"dir": str(run), "device": "cpu"}})
        assert "config.yaml" in refusal(CheckpointError, pipeflow.train, config)


@pytest.mark.parametrize("text", TEXTS)
def test_evaluate_of_texts(text, run):
    write(run / "summary.json", TEXTS[text])
    assert "summary.json is damaged" in refusal(CheckpointError, evaluate, run)


@pytest.mark.parametrize("layers", [[], ["x"], [5], None, "ab", ["blocks.0.squeeze"], [["a"]]])
def test_evaluate_of_parts(layers, run):
    change_json(run / "summary.json", lambda summary: summary["parts"][1].update(layers=layers))
    change_json(run / "summary.json", lambda summary: summary["epochs"][-1].update(phase="concurrent"))
    assert "summary.json is damaged" in refusal(CheckpointError, evaluate, run)


# ------------------------------------------------------------------------------------------------------------ checkpoints


def change_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes what a manifest says, with the checksum that goes with it: anybody can compute that."""
    document = json.loads((folder / "manifest.json").read_text())
    change(document["content"])
    document["sha256"] = hashlib.sha256(json.dumps(document["content"]).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(document))


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


MANIFESTS = {
    "nesting": lambda m: m.update(more=deep(400)),
    "no history": lambda m: m.pop("history"),
    "history of no kind": lambda m: m.update(history=[1, 2]),
    "history of another length": lambda m: m["history"].pop(),
    "epochs out of order": lambda m: m["history"].reverse(),
    "an epoch of 10^18": lambda m: m.update(epoch=10**18),
    "losses that are words": lambda m: m["history"][-1].update(train_loss={"flow": "nan"}),
    "losses that are lists": lambda m: m["history"][-1].update(train_loss={"flow": [1]}),
    "a stage of no kind": lambda m: m.update(stage="../x"),
    "counts of no kind": lambda m: m.update(counts={"blocks.0.squeeze": "x"}),
    "counts that are negative": lambda m: m["counts"].update({"blocks.0.steps.0": [-1, -1]}),
    "counts that are endless": lambda m: m["counts"].update({"blocks.0.steps.0": [1, 10**400]}),
    "a position of no kind": lambda m: m.update(log_position="x"),
    "a position beyond the log": lambda m: m.update(log_position=10**15),
    "a position within a line": lambda m: m.update(log_position=5),
    "seconds that are not numbers": lambda m: m["state"].update(seconds={"total": None}),
    "seconds that are NaN": lambda m: m["state"]["seconds"].update(total=float("nan")),
    "bytes that are lists": lambda m: m["state"]["bytes"].update(eval=[1]),
    "no state": lambda m: m.update(state=None),
    "cuts of no kind": lambda m: m.update(cuts=[{}]),
}


class TestCheckpoint:
    @pytest.fixture
    def resumed(self, run) -> Config:
        """A run whose end is to be made again, from its newest checkpoint."""
        (run / "summary.json").unlink()
        shutil.rmtree(run / "checkpoints" / "epoch-000001")
        settings = read_config(run).to_dict()
        return Config.from_dict({**settings, "run": {**settings["run"], "dir": str(run)}})

    @pytest.fixture
    def newest(self, run) -> Path:
        return run / "checkpoints" / "epoch-000002"

    def rewrite(self, newest: Path, change: Callable[[dict], object]) -> None:
        file = newest / "worker-0.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        self.fit(newest)

    def fit(self, newest: Path) -> None:
        sha256 = hashlib.sha256((newest / "worker-0.safetensors").read_bytes()).hexdigest()
        change_manifest(newest, lambda manifest: manifest["files"][0].update(sha256=sha256))

    def test_unchanged(self, resumed, newest):
        self.rewrite(newest, lambda tensors: None)
        assert pipeflow.train(resumed)["num_epochs"] == 2

    @pytest.mark.parametrize("change", MANIFESTS)
    def test_manifests(self, change, resumed, newest):
        change_manifest(newest, MANIFESTS[change])
        message = refusal(CheckpointError, pipeflow.train, resumed)
        assert "manifest.json" in message or "metrics.jsonl" in message

    @pytest.mark.parametrize("text", TEXTS)
    def test_texts(self, text, resumed, newest):
        write(newest / "manifest.json", TEXTS[text])
        assert "manifest.json is damaged" in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("name", ["manifest.json", "worker-0.safetensors"])
    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
    def test_no_files(self, make, name, resumed, newest):
        (newest / name).unlink()
        make(newest / name)
        assert name in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("name", ["\0", "a" * 100_000, "worker-0.safetensors\0"])
    def test_names(self, name, resumed, newest):
        change_manifest(newest, lambda manifest: manifest["files"][0].update(file=name))
        assert "is missing" in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("case", SAFETENSORS)
    def test_files(self, case, resumed, newest):
        (newest / "worker-0.safetensors").write_bytes(SAFETENSORS[case])
        self.fit(newest)
        assert "epoch-000002" in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("section", ["model", "ema", "optim.exp_avg", "optim.exp_avg_sq"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda value: torch.zeros(1),
            lambda value: value.double(),
            lambda value: value.long(),
            lambda value: value[None],
        ],
        ids=["one value", "float64", "int64", "one dimension more"],
    )
    def test_tensors(self, change, section, resumed, newest):
        key = f"{section}/{STEP}"
        self.rewrite(newest, lambda tensors: tensors.update({key: change(tensors[key])}))
        message = refusal(CheckpointError, pipeflow.train, resumed)
        assert "epoch-000002" in message and key in message

    @pytest.mark.parametrize("key", [f"model/{STEP}", f"optim.exp_avg/{STEP}"])
    def test_tensors_that_are_missing(self, key, resumed, newest):
        self.rewrite(newest, lambda tensors: tensors.pop(key))
        assert STEP in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("key", [f"optim.__class__/{STEP}", "model/blocks.0.steps.0.more", f"evil/{STEP}"])
    def test_tensors_that_nobody_knows(self, key, resumed, newest):
        self.rewrite(newest, lambda tensors: tensors.update({key: torch.zeros(1)}))
        assert key in refusal(CheckpointError, pipeflow.train, resumed)

    def test_names_without_a_section(self, resumed, newest):
        """They belong to no layer, so nobody reads them."""
        self.rewrite(newest, lambda tensors: tensors.update({"name": torch.zeros(1), "": torch.zeros(1)}))
        assert pipeflow.train(resumed)["num_epochs"] == 2

    @pytest.mark.parametrize("text", ["[" * 100_000, "{}", "null", '{"event": "epoch"}', "\udcff"])
    def test_logs(self, text, resumed, newest, run):
        write(run / "metrics.jsonl", text + "\n")
        change_manifest(newest, lambda m: m.update(log_position=(run / "metrics.jsonl").stat().st_size))
        assert "metrics.jsonl, line 1" in refusal(CheckpointError, pipeflow.train, resumed)

    @pytest.mark.parametrize("text", TEXTS)
    def test_summaries_of_a_run_that_has_ended(self, text, run, resumed):
        write(run / "summary.json", TEXTS[text])
        with bounded(60), contextlib.suppress(CheckpointError):  # written anew, or refused
            pipeflow.train(resumed)


# -------------------------------------------------------------------------------------------------------------- unpickling

UNPICKLES_NOTHING = """
import pickle, sys
import torch, torch.distributed
import torch.distributed.distributed_c10d as c10d
import torch.utils.tensorboard, matplotlib.figure

def refuse(event, arguments):
    if event == "pickle.find_class":
        print("UNPICKLED", *arguments, flush=True)

sys.addaudithook(refuse)
for name in ("_object_to_tensor", "_tensor_to_object"):
    def refused(*arguments, name=name, **options):
        print("OBJECTS", name, flush=True)
        raise AssertionError(name)
    setattr(c10d, name, refused)

import pipeflow
from pipeflow.config import load, parse_arguments
for epochs in ("1", "2"):
    arguments = [*sys.argv[1:], "--schedule.finetune_epochs", epochs]
    num_epochs = pipeflow.train(load(*parse_arguments(arguments)))["num_epochs"]
    sys.stdout.write(f"ENDED {num_epochs}\\n")  # in one piece: two workers write
"""


def test_workers_unpickle_nothing(tmp_path):
    """Neither from each other, through torch's collectives of objects, nor from the run folder when they resume."""
    (tmp_path / "program.py").write_text(UNPICKLES_NOTHING)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        tmp_path / "program.py",
    ]
    given = [f"--run.dir={tmp_path / 'run'}", "--data.num_train=96", "--data.num_test=32", "--model.width=8"]
    given += ["--parts.num=2", "--optim.batch_size=32", "--finetune.parallel=ddp", "--run.device=cpu"]
    done = subprocess.run(
        [*command, *given, "--schedule.local_epochs=1"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and done.stdout.count("ENDED 3") == 2, done.stdout + done.stderr
    assert "resuming" in done.stdout
    assert "UNPICKLED" not in done.stdout and "OBJECTS" not in done.stdout
