"""Decoded images kept between runs: one .npy and a JSON that says whether it can be trusted.

They lie in the user's cache folder, not beside the source, which may be read-only. A cache that is missing, damaged or
cannot be written is no error: the images are decoded again.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeflow.safe_files import open_file, read_json


def read_cache(fingerprint: str, num_train: int) -> np.ndarray | None:
    """The images stored under `fingerprint`, `num_train` for training before those for testing; None if not intact."""
    try:
        folder = _folder(fingerprint)
        about = read_json(folder / "images.json")
        with open_file(folder / "images.npy") as file:
            # The file as a whole is checked before it is parsed: a damaged header may ask for any amount of memory.
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if about != {"fingerprint": fingerprint, "num_train": num_train, "sha256": sha256}:
                return None
            file.seek(0)
            images = np.load(file, allow_pickle=False)
    except (OSError, RuntimeError, ValueError, MemoryError):  # a header may ask for more than there is
        return None
    return images if images.dtype == np.uint8 and images.ndim == 4 and len(images) > num_train else None


def write_cache(fingerprint: str, images: np.ndarray, num_train: int) -> None:
    """Store `images`, uint8, train before test, under `fingerprint`; where that is not possible, nothing happens."""
    try:
        folder = _folder(fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        sha256 = _replace(folder / "images.npy", lambda file: np.save(file, images, allow_pickle=False))
        about = {"fingerprint": fingerprint, "num_train": num_train, "sha256": sha256}
        _replace(folder / "images.json", lambda file: file.write(json.dumps(about).encode()))
    except (OSError, RuntimeError):
        return


def _folder(fingerprint: str) -> Path:
    """Raises RuntimeError where the user has no home."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "pipeflow" / fingerprint


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> str:
    """Write a file so that others see all of it or nothing; returns its sha256.

    Workers that start together may write the same file: each has its own temporary one.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            write(file)
            file.flush()
            with open(file.name, "rb") as written:
                sha256 = hashlib.file_digest(written, "sha256").hexdigest()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return sha256
