"""Decoded images kept between runs, as a .npy file and a JSON file that tells whether the .npy file is intact.

Both lie in the user's cache folder, since the source may be read-only. A cache that is missing, damaged or not writable is
no error: the images are then decoded again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from pipeflow.safe_files import open_file, read_json


def read_cache(fingerprint: str, num_train: int) -> tuple[np.ndarray, int] | None:
    """What `write_cache` stored under `fingerprint`; None if it is not intact.

    num_train: number of training images, which come before the test images.
    """
    try:
        folder = _folder(fingerprint)
        about = read_json(folder / "images.json")
        with open_file(folder / "images.npy") as file:
            # The checksum comes before the parsing, because a damaged header may ask for any amount of memory.
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            num_converted = int(about["num_converted"])
            if about != _about(fingerprint, num_train, num_converted, sha256):
                return None
            file.seek(0)
            images = np.load(file, allow_pickle=False)
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, MemoryError):
        return None
    are_images = images.dtype == np.uint8 and images.ndim == 4 and len(images) > num_train
    return (images, num_converted) if are_images else None


def write_cache(fingerprint: str, images: np.ndarray, num_converted: int, num_train: int) -> None:
    """Stores images under `fingerprint`, or does nothing if that is impossible.

    Args:
        images: uint8, [images, channels, height, width], training before test images.
        num_converted: number of those that hold less or more than their files.
        num_train: number of training images.
    """
    try:
        folder = _folder(fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        sha256 = _replace(folder / "images.npy", lambda file: np.save(file, images, allow_pickle=False))
        about = _about(fingerprint, num_train, num_converted, sha256)
        _replace(folder / "images.json", lambda file: file.write(json.dumps(about).encode()))
    except (OSError, RuntimeError):
        return


def _about(fingerprint: str, num_train: int, num_converted: int, sha256: str) -> dict[str, object]:
    return {"fingerprint": fingerprint, "num_train": num_train, "num_converted": num_converted, "sha256": sha256}


def _folder(fingerprint: str) -> Path:
    """The cache folder of a source. Raises RuntimeError if the user has no home folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root).expanduser() if root else Path.home() / ".cache") / "pipeflow" / fingerprint


def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> str:
    """Writes a file so that others see all of it or nothing; returns its sha256.

    Workers that start together may write the same file, so each writes a temporary file of its own.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            write(file)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return sha256
