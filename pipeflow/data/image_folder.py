"""A user's images: a folder or a zip with `train/<any depth>/<name>.png` and `test/...`, read in place.

The source may be hostile, since a few kilobytes can announce gigabytes. Every read has a bound, far above what a flow
trains on.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeflow.data import picture
from pipeflow.data.cache import read_cache, write_cache
from pipeflow.errors import DataError
from pipeflow.safe_files import in_full, open_file, printable, read_bytes
from pipeflow.units import bytes_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
OTHER_SUFFIXES = (".gif", ".tif", ".tiff", ".jfif", ".avif", ".heic", ".jp2", ".pgm", ".ppm", ".tga")
"""Of pictures that are not read: they are refused, for whoever put them there means them to be learned."""
LAYOUT = "a folder or a zip with images in train/ and test/ (train/<class>/<name>.png)"
MAX_FILE_BYTES = 64_000_000
"""Most bytes of an image file."""
MAX_BYTES = 32_000_000_000
"""Most bytes of all images in memory and in the cache, twice the size of ImageNet at 64 x 64."""
MAX_LISTING_BYTES = 128_000_000
"""Most bytes of a zip's directory, enough for more than a million files."""


@dataclass(frozen=True)
class Member:
    """An image file of a source."""

    path: str
    """Path inside the source, with forward slashes."""
    size: int
    """Size in bytes."""
    stamp: int
    """Number that changes with the file: its CRC in a zip, its modification time in nanoseconds in a folder."""
    read: Callable[[], bytes]
    """Returns the file's content."""


def load_images(path: str | None, channels: int | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The training and the test images of a folder or a zip, each uint8, [images, channels, height, width], sorted by path.

    They are decoded once. As long as the source does not change, they then come from the user's cache folder. The third
    value has a note for the user where images hold less or more than their files, or thrice the same.

    channels: `data.channels`; None takes those of the files, which must then all be grey or all be RGB.

    Raises:
        DataError: there is no such source, it has another layout, or a file in it is no usable image.
    """
    if path is None:
        raise DataError(f"data.path is not set: with data.name 'images' it is {LAYOUT}.")
    with _open(Path(path)) as members:
        path = os.path.abspath(path)  # as messages show it
        train, test = _split(members, path)
        listing = [[member.path, member.size, member.stamp] for member in train + test]
        about = json.dumps([picture.RULES, channels, listing])
        fingerprint = hashlib.sha256(about.encode()).hexdigest()
        cached = read_cache(fingerprint, len(train))
        if cached is None:
            cached = _decode(train + test, path, channels)
            write_cache(fingerprint, *cached, len(train))
    images, num_converted = cached
    return images[: len(train)], images[len(train) :], _notes(num_converted, images, channels)


def _notes(num_converted: int, images: np.ndarray, channels: int | None) -> list[str]:
    if not num_converted:
        if images.shape[1] == 3 and all(map(picture.is_grey, images)):  # which ends at the first in colour
            return [
                "All images are grey, stored as RGB: three times the same value, so that their bits/dim compare neither "
                "with those of grey nor of RGB images. --data.channels 1 keeps one."
            ]
        return []
    if channels == 3:
        how = "grey and become RGB by repetition: their bits/dim compare neither with those of grey nor of RGB images"
    else:
        how = "in colour and become grey: their colours are lost"
    return [f"data.channels {channels}: {num_converted:,} of {len(images):,} images are {how}."]


def measure_images(path: str, channels: int | None) -> tuple[tuple[int, ...], int, int]:
    """Shape of an image, number of training and number of test images of a source. Only the first image is decoded.

    channels: as for `load_images`.

    Raises:
        DataError: as `load_images` does, for the source and its first image.
    """
    with _open(Path(path)) as members:
        path = os.path.abspath(path)  # as messages show it
        train, test = _split(members, path)
        return _decode_one(train[0], path, channels)[0].shape, len(train), len(test)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[list[Member]]:
    """The image files of a source, which can be read while the context is open."""
    if path.is_dir():
        yield list(_walk(path))
        return
    if not path.exists():
        raise DataError(f"data.path: there is no {in_full(path)}; it must be {LAYOUT}.")
    path = path.absolute()  # as messages show it
    with contextlib.ExitStack() as stack:
        try:
            archive = zipfile.ZipFile(stack.enter_context(_BoundedReader(open_file(path).detach())))
        except (OSError, zipfile.BadZipFile, NotImplementedError, MemoryError) as error:
            raise DataError(
                f"data.path: {path} is not a zip that can be read ({error}); it must be {LAYOUT}."
            ) from error
        named = [(_member_path(info, path), info) for info in archive.infolist()]
        images = [(inside, info) for inside, info in named if _is_image(inside)]
        _check_sizes([info for _, info in images], path)
        yield [Member(inside, info.file_size, info.CRC, partial(_unpack, archive, info)) for inside, info in images]


class _BoundedReader(io.BufferedReader):
    """A zip file that refuses to read a directory larger than the limit, whatever size the zip announces."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_LISTING_BYTES:
            raise OSError(errno.EFBIG, f"its list of members has more than {MAX_LISTING_BYTES:,} bytes")
        return super().read(size)


def _member_path(info: zipfile.ZipInfo, path: Path) -> str:
    """A member's path inside the zip, with slashes; PowerShell 5 writes backslashes.

    Raises DataError for a path that no packing program writes, a sign that the zip was made to do harm.
    """
    inside = info.filename.replace("\\", "/")
    if inside.startswith("/") or inside[1:2] == ":" or ".." in inside.split("/"):
        raise DataError(
            f"data.path: {printable(info.filename)} in {path} leads out of the zip: do not trust it, pack the images anew."
        )
    return inside


def _check_sizes(infos: list[zipfile.ZipInfo], path: Path) -> None:
    """Raises DataError where the images lie over each other, another sign of harm."""
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise DataError(
            f"data.path: the images in {path} take more room than the file has: they lie over each other, to unpack to any "
            f"size. Do not trust this file, pack the images anew."
        )


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's content. Raises ValueError for compression methods that unpack without a bound."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed with another method than deflate")
    with archive.open(info) as file:
        # A bounded read stops the decompressor there. `archive.read` would unpack everything first.
        return file.read(min(info.file_size, MAX_FILE_BYTES) + 1)


def _walk(folder: Path) -> Iterator[Member]:
    def fail(error: OSError) -> None:
        raise DataError(
            f"data.path: {error.filename} cannot be read ({error.strerror}); check its permissions."
        ) from error

    seen: dict[tuple[int, int], str] = {}
    for parent, _, names in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(parent)
        before = seen.setdefault((status.st_dev, status.st_ino), parent)
        if before != parent:
            raise DataError(
                f"data.path: {printable(parent)} is the same folder as {printable(before)}, by a symbolic link: remove it."
            )
        for file in (Path(parent, name) for name in names):
            inside = file.relative_to(folder).as_posix()
            if _is_image(inside):
                try:
                    status = file.stat()
                except OSError as error:
                    fail(error)
                if not stat.S_ISREG(status.st_mode):
                    raise DataError(f"data.path: {printable(str(file))} is a pipe or a device and no file: remove it.")
                yield Member(inside, status.st_size, status.st_mtime_ns, partial(read_bytes, file, MAX_FILE_BYTES))


def _is_image(path: str) -> bool:
    # macOS adds a hidden twin of every file to the zips that it makes.
    hidden = any(name.startswith((".", "__MACOSX")) for name in path.split("/"))
    return path.lower().endswith(SUFFIXES + OTHER_SUFFIXES) and not hidden


def _split(members: list[Member], source: str) -> tuple[list[Member], list[Member]]:
    """The members in train/ and in test/, each sorted by path. Both may lie in one common folder."""
    members = sorted(members, key=lambda member: member.path)
    tops = {member.path.split("/")[0] for member in members}
    front = "" if len(tops) != 1 or tops & {"train", "test"} else f"{tops.pop()}/"
    train, test = ([m for m in members if m.path.startswith(f"{front}{part}/")] for part in ("train", "test"))
    for part, found in (("train", train), ("test", test)):
        if not found:
            suffixes = ", ".join(SUFFIXES)
            raise DataError(f"data.path: {source} has no images in {part}/ ({suffixes}); it must be {LAYOUT}.")
    return train, test


def _decode(members: list[Member], source: str, channels: int | None) -> tuple[np.ndarray, int]:
    """All images, uint8, [images, channels, height, width], and the number of those that `_decode_one` converted."""
    shape = _decode_one(members[0], source, channels)[0].shape
    images = _allocate(len(members), shape, source)
    num_converted = 0
    for index, member in enumerate(members):
        pixels, is_converted = _decode_one(member, source, channels)
        first, this = printable(members[0].path), printable(member.path)
        if len(pixels) != len(images[index]):
            raise DataError(
                f"data.path: {first} in {source} is {_colours(shape)}, but {this} is {_colours(pixels.shape)}: set "
                f"data.channels to 3 (grey becomes RGB) or to 1 (RGB becomes grey), or remove the odd ones."
            )
        if pixels.shape != shape:
            raise DataError(
                f"data.path: {this} in {source} is {_size(pixels.shape)}, but {first} is {_size(shape)}: resize or remove "
                f"the odd ones, so that all have one size."
            )
        images[index] = pixels
        num_converted += is_converted
    return images, num_converted


def _decode_one(member: Member, source: str, channels: int | None) -> tuple[np.ndarray, bool]:
    """One image, uint8, [channels, height, width], and whether it holds less or more than its file."""
    where = f"data.path: {printable(member.path)} in {source}"
    if member.size > MAX_FILE_BYTES:
        raise DataError(f"{where} is a file of {member.size:,} bytes; the limit is {MAX_FILE_BYTES:,}: remove it.")
    if not member.path.lower().endswith(SUFFIXES):
        raise DataError(f"{where} is none of {', '.join(SUFFIXES)}: convert or remove it.")
    try:
        return picture.decode(member.read(), channels)
    except picture.NotUsable as error:
        raise DataError(f"{where} {error}.") from None
    # A broken file can make a decoder or the zip reader raise anything.
    except Exception as error:
        raise DataError(f"{where} cannot be decoded ({error}); replace or remove it.") from error


def _allocate(num_images: int, shape: tuple[int, ...], source: str) -> np.ndarray:
    needed = num_images * math.prod(shape)
    # The other half of the memory is for a training subset, which is a copy.
    limit = min(MAX_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    if needed > limit:
        raise DataError(
            f"data.path: the {num_images:,} images of {_size(shape)} in {source} take {bytes_text(needed)}; the limit is "
            f"{bytes_text(limit)} on a machine with this memory: resize them, or take fewer."
        )
    return np.empty((num_images, *shape), np.uint8)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} (width x height)"


def _colours(shape: tuple[int, ...]) -> str:
    return "grey" if shape[0] == 1 else "RGB"
