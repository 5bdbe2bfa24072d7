"""Decoded images kept between runs, as an .npy file and a JSON file that tells whether the .npy file is intact.

Both lie in the user's cache folder, since the source may be read-only. A cache that is missing or damaged is no error: the
images are then decoded again.
"""

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeflow.data.stored import StoredImages
from pipeflow.errors import DataError
from pipeflow.output import cleanups, say
from pipeflow.safe_files import read_json

Write = Callable[[int, memoryview], None]
"""Stores images: takes the index of the first, and the bytes of that one and of those after it."""


def read_cache(fingerprint: str, num_train: int, num_images: int) -> tuple[StoredImages, int] | None:
    """The images that `write_cache` stored under `fingerprint`, and how many were converted; None if they are not intact.

    Args:
        num_train: number of training images, which come before the test images.
        num_images: number of both.
    """
    try:
        folder = cache_folder() / fingerprint
        about = read_json(folder / "images.json")
        images = StoredImages(folder / "images.npy")
        num_converted = int(about["num_converted"])
        if about != _about(fingerprint, num_train, num_converted, images.sha256()):
            return None
    except (OSError, DataError, ValueError, TypeError, LookupError):
        return None
    are_images = not images.is_floating_point() and images.ndim == 4 and len(images) == num_images
    return (images, num_converted) if are_images else None


def write_cache(
    fingerprint: str, num_train: int, shape: tuple[int, ...], decode: Callable[[Write], int]
) -> tuple[StoredImages, int]:
    """Decodes images into the cache; what `read_cache` gives from then on.

    Of processes that start together one decodes, while the others wait for it. What one that was killed has left is removed
    by the next that decodes anything.

    Args:
        fingerprint: of the source.
        num_train: number of training images, which come before the test images.
        shape: of all images, [images, channels, height, width].
        decode: writes them all, in any order; returns the number of those that hold less or more than their files.

    Raises:
        OSError: the cache cannot be written, or has no room for them.
    """
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    with _new_file(root / f".{fingerprint}.npy") as (path, file):
        kept = read_cache(fingerprint, num_train, shape[0])  # another process may have written it meanwhile
        if kept is not None:
            return kept
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start, image_bytes = len(header.getvalue()), math.prod(shape[1:])
        size = start + shape[0] * image_bytes
        if shutil.disk_usage(root).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root))
        os.ftruncate(file, size)
        _write(file, header.getbuffer(), 0)
        num_converted = decode(lambda first, pixels: _write(file, pixels, start + first * image_bytes))
        images = StoredImages(path)
        about = _about(fingerprint, num_train, num_converted, images.sha256())
        folder = root / fingerprint
        folder.mkdir(exist_ok=True)
        new = folder / ".images.json"
        new.write_text(json.dumps(about))
        new.replace(folder / "images.json")
        path.replace(folder / "images.npy")  # from here on the cache is intact
    return images, num_converted


def cache_folder() -> Path:
    """Where caches of all sources lie. Raises OSError if the user has no home folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root).expanduser() if root else Path.home() / ".cache") / "pipeflow"
    except RuntimeError as error:
        raise OSError(errno.ENOENT, str(error)) from None


def _about(fingerprint: str, num_train: int, num_converted: int, sha256: str) -> dict[str, object]:
    return {"fingerprint": fingerprint, "num_train": num_train, "num_converted": num_converted, "sha256": sha256}


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[tuple[Path, int]]:
    """A file that one process at a time writes, by its path and descriptor; removed afterwards unless it was renamed.

    On a file system without locks each process has a file of its own.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process decodes the same images: waiting for it ({path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            os.close(file)
            path = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _is_at(path, file):
            break
        os.close(file)  # whoever held it has renamed or removed it

    def remove() -> None:
        if _is_at(path, file):
            path.unlink()

    cleanups.append(remove)
    try:
        yield path, file
    finally:
        cleanups.remove(remove)
        remove()
        os.close(file)


def _remove_leftovers(root: Path) -> None:
    """Removes unfinished files that nobody writes any more."""
    for path in root.glob(".*.npy*"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _write(file: int, content: memoryview, offset: int) -> None:
    while content:
        count = os.pwrite(file, content, offset)
        content, offset = content[count:], offset + count
