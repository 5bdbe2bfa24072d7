"""Images and tables in NumPy's files: an .npz, an .npy, or a folder of .npy files. Nothing in them is unpickled."""

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from pipeflow.config import DataConfig
from pipeflow.data.conversion import to_labels, to_tensor
from pipeflow.data.given import check_layout
from pipeflow.data.held_out import hold_out
from pipeflow.data.image_data import ImageData
from pipeflow.data.npy import MAX_HEADER_BYTES, read_header
from pipeflow.data.stored import Images, StoredImages
from pipeflow.errors import DataError
from pipeflow.safe_files import brief, open_file
from pipeflow.units import bytes_text

KEYS = {
    "train": ("train", "x_train"),
    "test": ("test", "x_test"),
    "train_labels": ("train_labels", "y_train"),
    "test_labels": ("test_labels", "y_test"),
}
"""Names of arrays, the second ones as Keras has them."""

Read = Callable[[], np.ndarray | StoredImages]


def holds_arrays(path: str | None) -> bool:
    """Whether a source is of arrays, and not of image files: where there is a folder train/, those in it are meant."""
    if path is None or path.lower().endswith((".npy", ".npz")):
        return path is not None
    return Path(path, "train.npy").is_file() and not Path(path, "train").is_dir()


def load_arrays(data: DataConfig) -> ImageData:
    """The arrays of `data.path`: of an .npz or a folder by the names in `KEYS`, of an .npy file the one for training.

    Values are taken as they are; grey images, uint8 of [images, height, width], get one channel, which a note says. Arrays
    of .npy files stay on the disk if they are uint8 or float32.

    Raises:
        DataError: the file is not there, damaged, larger than `data.memory` where it must be read at once, or without
            training or test images.
    """
    path = os.path.abspath(data.path or "")
    for option in ("channels", "resize", "crop"):
        if (value := getattr(data, option)) is not None:
            raise DataError(
                f"data.{option} is {value}, but {path} has arrays, which are taken as they are: set data.{option} to null."
            )
    notes: dict[str, None] = {}
    with _open(Path(path), data.memory_bytes) as arrays:
        found = {key: next((name for name in names if name in arrays), None) for key, names in KEYS.items()}
        given = {key: arrays[name]() for key, name in found.items() if name is not None}
        unread = [name for name in arrays if name not in found.values()]
    if "train" not in given:
        there = ", ".join(brief(name, str) for name in unread) or "nothing"
        raise DataError(f"data.path: {path} has no array train (or x_train), but {there}.")
    if unread:
        notes[f"{path}: these arrays are not read: {', '.join(brief(name, str) for name in unread)}."] = None
    images = {part: _images(given[part], path, part, notes) for part in ("train", "test") if part in given}
    labels = {
        part: to_labels(given[f"{part}_labels"][:], f"data.path: {path}: the {part} labels")
        for part in ("train", "test")
        if f"{part}_labels" in given
    }
    if "test" in images and data.test_fraction is not None:
        raise DataError(
            f"data.test_fraction is {data.test_fraction:g}, but {path} has test images of its own: set it to null."
        )
    if "test" not in images and data.test_fraction is None:
        raise DataError(
            f"data.path: {path} has no test images, as test or x_test: add some, or set data.test_fraction to hold some of "
            f"the others out."
        )
    if data.test_fraction is not None:
        return hold_out(images["train"], labels.get("train"), data.test_fraction, data.name, [*notes])
    return ImageData(images["train"], images["test"], data.name, tuple(notes), labels.get("train"), labels.get("test"))


def _images(array: np.ndarray | StoredImages, path: str, part: str, notes: dict[str, None]) -> Images:
    where = f"data.path: {path}: the {part} images"
    images = to_tensor(array, where, notes)
    if images.ndim == 3 and not images.is_floating_point():
        height, width = images.shape[1:]
        notes[f"{path}: images of {width}x{height} (width x height) get one channel: [1, {height}, {width}]."] = None
        images = images.with_channel() if isinstance(images, StoredImages) else images[:, None]
    check_layout(images, where)
    return images


@contextlib.contextmanager
def _open(path: Path, memory: float) -> Iterator[Mapping[str, Read]]:
    """The arrays of a source by name, which can be read while the context is open."""
    if path.is_dir():
        yield {file.stem: _reader(file, memory) for file in sorted(path.glob("*.npy"))}
    elif not path.exists():
        raise DataError(f"data.path: there is no {path}; name an .npz or .npy file, or a folder of .npy files.")
    elif path.suffix.lower() == ".npy":
        yield {"train": _reader(path, memory)}
    else:
        try:
            with open_file(path) as file, zipfile.ZipFile(file) as archive:
                yield {
                    info.filename.removesuffix(".npy"): _member_reader(archive, info, path, memory)
                    for info in archive.infolist()
                }
        except (OSError, zipfile.BadZipFile, NotImplementedError, MemoryError) as error:
            raise DataError(f"data.path: {path} is no .npz file that can be read ({error}).") from None


def _reader(path: Path, memory: float) -> Read:
    def read() -> np.ndarray | StoredImages:
        try:
            with open_file(path) as file:
                header = read_header(file.read(MAX_HEADER_BYTES))
                if header.dtype not in (np.uint8, np.float32) or len(header.shape) < 2 or header.is_fortran:
                    file.seek(0)
                    return _read(file, path.stat().st_size, str(path), memory)
        except OSError as error:
            raise DataError(f"data.path: {path} cannot be read ({error.strerror}).") from None
        except ValueError as error:
            raise DataError(f"data.path: {path} is damaged or no .npy file: {error}.") from None
        try:
            return StoredImages(path)
        except DataError as error:
            raise DataError(f"data.path: {error}") from None

    return read


def _member_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, memory: float) -> Read:
    where = f"{brief(info.filename, str)} in {path}"

    def read() -> np.ndarray:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"data.path: {where} is packed with another method than deflate: write it with numpy.savez."
            )
        try:
            with archive.open(info) as file:
                return _read(file, info.file_size, where, memory)
        except DataError:
            raise
        # A broken zip can make its reader raise anything.
        except Exception as error:
            raise DataError(f"data.path: {where} is damaged or no array: {error}.") from None

    return read


def _read(file: IO[bytes], size: int, where: str, memory: float) -> np.ndarray:
    """The array of an open file of `size` bytes, as its directory tells. Raises ValueError where it is damaged."""
    start = file.read(min(size, MAX_HEADER_BYTES))
    header = read_header(start)
    if header.dtype.kind not in "uif":
        raise ValueError(f"it has {header.dtype}, which are not numbers")
    if header.nbytes != size - header.size:
        raise ValueError("its size is not the one that its header gives")
    if header.nbytes > memory:
        raise DataError(
            f"data.path: {where} takes {bytes_text(header.nbytes)}, more than data.memory ({bytes_text(memory)}): raise "
            f"that, or write uint8 or float32 into train.npy and test.npy in a folder, which stay on the disk."
        )
    values = bytearray(start[header.size :])
    while len(values) < header.nbytes and (more := file.read(min(header.nbytes - len(values), 2**24))):
        values += more
    if len(values) != header.nbytes:
        raise ValueError("it ends before its array does")
    return header.array(values)
