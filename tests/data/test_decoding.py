"""Decoding: in several processes as in one, into a cache that is never half there, with progress."""

import io
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from rich.console import Console

from pipeflow.data import decoder, decoding_progress, load_data
from pipeflow.data.cache import read_cache, write_cache
from pipeflow.data.decoder import DecoderProcess
from pipeflow.data.decoding import Decoding
from pipeflow.data.decoding_progress import DecodingProgress
from pipeflow.data.image_source import open_source
from pipeflow.data.picture import AS_IS, Conversion
from pipeflow.errors import DataError
from tests.data.test_images import encode, write_folder, write_zip

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 4, 5, 3), np.uint8)


@pytest.fixture
def small_chunks(monkeypatch):
    """Seven images a chunk."""
    monkeypatch.setattr("pipeflow.data.decoding.CHUNK_BYTES", 7 * len(encode(PIXELS[0])))


@pytest.fixture(params=[write_zip, write_folder], ids=["zip", "folder"])
def write(request):
    return request.param


def decoded(path, num_processes: int) -> np.ndarray:
    images = np.zeros((30, 3, 4, 5), np.uint8)

    def write(first: int, pixels: memoryview) -> None:
        images.data.cast("B")[60 * first : 60 * first + len(pixels)] = pixels

    with open_source(path) as source:
        members = sorted(source.members, key=lambda member: member.path)
        decoding = Decoding(source, members, AS_IS)
        assert decoding.run(decoding.first_shape(), write, num_processes) == 0
    return images


def files(**broken: bytes) -> dict[str, bytes]:
    good = {f"train/{i:02}.png": encode(pixels) for i, pixels in enumerate(PIXELS)}
    return good | {f"train/{name}": content for name, content in broken.items()}


def test_several_processes_decode_as_one_does(write, small_chunks, tmp_path):
    write(tmp_path / "source", files())
    for num in (1, 2):
        assert (decoded(tmp_path / "source", num) == PIXELS.transpose(0, 3, 1, 2)).all()


@pytest.mark.parametrize(
    "num_processes, broken, says",
    [
        (2, {"08.png": b"broken", "24.png": b"broken"}, "train/08.png in .* cannot be decoded"),
        (1, {"09.png": b"broken", "08.png": bytes(64_000_001)}, "train/08.png in .*64,000,001 bytes"),
        (1, {"08b.gif": b"", "08.png": b"broken"}, "train/08.png in .* cannot be decoded"),
        (1, {"07b.gif": b"", "08.png": b"broken"}, "train/07b.gif in .* is none of"),
        (1, {"29.png": encode(PIXELS[0, :3])}, "train/29.png in .* is 5x3"),
        (
            2,
            {"17.png": encode(np.zeros((4, 5, 4), np.uint8)), "20.png": b""},
            "train/17.png in .* has transparent pixels",
        ),
    ],
)
def test_the_first_bad_file_is_named(num_processes, broken, says, small_chunks, tmp_path):
    write_folder(tmp_path / "source", files(**broken))
    with pytest.raises(DataError, match=says):
        decoded(tmp_path / "source", num_processes)


def test_a_process_that_is_lost_is_an_error_and_imports_no_torch():
    process = DecoderProcess()
    try:
        ((pixels, is_converted),) = process.decode_all([encode(PIXELS[0])], Conversion(3))
        assert (pixels == PIXELS[0].transpose(2, 0, 1)).all() and not is_converted
        os.kill(process._process.pid, 9)
        with pytest.raises(DataError, match=r"was lost \(exit code -9\)"):
            process.decode_all([encode(PIXELS[0])], Conversion(3))
    finally:
        process.close()
    program = f"import {decoder.__name__}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_process_ends_with_its_worker(tmp_path):
    """The end of its input is all that tells it, when the worker was killed."""
    process = DecoderProcess()
    process._process.stdin.close()
    assert process._process.wait(timeout=60) == 0
    process._process.stdout.close()


def test_a_killed_process_leaves_nothing_half(cache):
    shape = (3, 1, 2, 2)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:

        def stand_still(write) -> int:
            write(0, memoryview(bytes(4)))
            os.write(writing, b"!")
            threading.Event().wait()
            return 0

        try:
            write_cache("killed", 2, shape, stand_still)
        finally:
            os._exit(1)
    os.read(reading, 1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert [path.name for path in cache.iterdir()] == [".killed.npy"] and read_cache("killed", 2, 3) is None
    images, num_converted = write_cache("other", 2, shape, lambda write: write(0, memoryview(b"0123456789ab")) or 5)
    assert bytes(images[:].flatten()) == b"0123456789ab" and num_converted == 5
    assert [path.name for path in cache.iterdir()] == ["other"]
    kept, num_converted = read_cache("other", 2, 3)
    assert bytes(kept[:].flatten()) == b"0123456789ab" and num_converted == 5


def test_an_error_leaves_nothing(cache):
    def fail(write) -> int:
        write(0, memoryview(bytes(4)))
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        write_cache("broken", 2, (3, 1, 2, 2), fail)
    assert not list(cache.iterdir())


def test_one_of_several_decodes_while_the_others_wait(monkeypatch, cache):
    began, goes_on = threading.Event(), threading.Event()

    class Stderr(io.StringIO):
        def write(self, text: str) -> int:
            goes_on.set()
            return super().write(text)

    def decode(write) -> int:
        began.set()
        assert goes_on.wait(60)
        write(0, memoryview(bytes(12)))
        return 0

    def fail(write) -> int:
        raise AssertionError("decoded twice")

    stderr = Stderr()
    monkeypatch.setattr(sys, "stderr", stderr)
    thread = threading.Thread(target=write_cache, args=("shared", 2, (3, 1, 2, 2), decode))
    thread.start()
    assert began.wait(60)
    images, _ = write_cache("shared", 2, (3, 1, 2, 2), fail)
    thread.join()
    assert not images[:].any() and "another process decodes the same images" in stderr.getvalue()
    assert [path.name for path in cache.iterdir()] == ["shared"]


def test_progress_is_a_line_a_tenth_or_one_that_is_refreshed(monkeypatch):
    monkeypatch.setattr(decoding_progress, "PATIENCE_S", 0.0)
    for is_terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
        with DecodingProgress(1000, "images.zip", console) as progress:
            for _ in range(1000):
                progress.add(1)
        lines = console.file.getvalue().splitlines()
        assert "decoded 1,000 of 1,000" not in lines[-1] and "decoded 1,000 images of images.zip in " in lines[-1]
        if is_terminal:
            assert "decoded 500 of 1,000 images of images.zip, " in console.file.getvalue()
        else:
            assert len(lines) == 11 and lines[0].startswith("decoded 1 of 1,000 images of images.zip, ")
            assert [line.split()[1] for line in lines[1:10]] == [f"{tenth}00" for tenth in range(1, 10)]


def test_a_short_decoding_says_nothing(options, tmp_path, capfd):
    load_data(options(path=write_folder(tmp_path / "source", files() | {"test/0.png": encode(PIXELS[0])})))
    assert capfd.readouterr() == ("", "")
