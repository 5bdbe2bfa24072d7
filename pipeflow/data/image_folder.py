"""Images of the user's own: a folder or a zip with `train/<any depth>/<name>.png` and `test/...`, read in place."""

import errno
import hashlib
import io
import json
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeflow.data.cache import read_cache, write_cache
from pipeflow.errors import DataError
from pipeflow.safe_files import open_file, printable, read_bytes
from pipeflow.units import bytes_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
LAYOUT = "a folder or a zip with images in train/ and test/ (train/<class>/<name>.png)"
# A file may be hostile: a few kilobytes can announce gigabytes. The limits are far above what a flow trains on.
MAX_PIXELS = 16_000_000
MAX_FILE_BYTES = 64_000_000
MAX_BYTES = 32_000_000_000
"""Of all images decoded, as they lie in memory and in the cache: twice the 64 x 64 images of ImageNet."""
MAX_LISTING_BYTES = 128_000_000
"""Of a zip's list of its members: of more than a million."""
MAX_SCANS = 100
"""Of a JPEG; a progressive one has about ten, and each of thousands would be decoded at full size."""


@dataclass(frozen=True)
class Member:
    """An image file of a source."""

    path: str
    """Inside the source, with forward slashes."""
    size: int
    """In bytes."""
    stamp: int
    """Changes when the file does: its CRC in a zip, its modification time in nanoseconds in a folder."""
    read: Callable[[], bytes]
    """Its contents."""


def load_images(path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The training and the test images of a folder or a zip, each uint8, [images, 3, height, width], sorted by path.

    They are decoded once and then come from the user's cache folder for as long as the source does not change.

    Raises:
        DataError: there is no such source, it has another layout, or a file in it is no usable image.
    """
    if path is None:
        raise DataError(f"data.path is not set: with data.name 'images' it is {LAYOUT}.")
    with _open(Path(path)) as members:
        train, test = _split(members, path)
        fingerprint = _fingerprint(train + test)
        images = read_cache(fingerprint, len(train))
        if images is None:
            images = _decode(train + test, path)
            write_cache(fingerprint, images, len(train))
    return images[: len(train)], images[len(train) :]


def measure_images(path: str) -> tuple[tuple[int, int, int], int, int]:
    """Shape of an image, number of training and of test images of a source, of which only the first is decoded.

    Raises:
        DataError: what `load_images` raises of the source and of that image.
    """
    with _open(Path(path)) as members:
        train, test = _split(members, path)
        return _decode_one(train[0], path).shape, len(train), len(test)


@contextmanager
def _open(path: Path) -> Iterator[list[Member]]:
    """The image files of a source; they can be read for as long as the context is open."""
    if path.is_dir():
        yield list(_walk(path))
        return
    if not path.exists():
        raise DataError(f"data.path: there is no {path}; it must be {LAYOUT}.")
    try:
        archive = zipfile.ZipFile(_Source(open_file(path)))
    except (OSError, zipfile.BadZipFile, NotImplementedError, MemoryError) as error:
        raise DataError(f"data.path: {path} is not a zip that can be read ({error}); it must be {LAYOUT}.") from error
    with archive, archive.fp:
        infos = [info for info in archive.infolist() if not info.is_dir() and _is_image(info.filename)]
        _check_members(archive, infos, path)
        yield [Member(i.filename, i.file_size, i.CRC, lambda i=i: _read_member(archive, i)) for i in infos]


class _Source(io.BufferedReader):
    """A zip of which no more is read at once than a listing may have, whatever size it announces."""

    def __init__(self, file: io.BufferedReader):
        super().__init__(file.detach())

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_LISTING_BYTES:
            raise OSError(errno.EFBIG, f"its list of members has more than {MAX_LISTING_BYTES:,} bytes")
        return super().read(size)


def _check_members(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], path: Path) -> None:
    """Raises DataError for names and sizes that no packing program makes. Nothing is unpacked, but who made it meant harm.

    infos: of the images.
    """
    for name in archive.namelist():
        if name.startswith("/") or "\\" in name or name[1:2] == ":" or ".." in name.split("/"):
            raise DataError(
                f"data.path: {printable(name)} in {path} leads out of the zip: do not trust it, pack the images anew."
            )
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise DataError(
            f"data.path: the images in {path} take more room than the file has: they lie over each other, to unpack to any "
            f"size. Do not trust this file, pack the images anew."
        )


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """What a member holds, at most as much as it says. Raises ValueError for methods that unpack without a bound."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed with another method than deflate")
    with archive.open(info) as file:
        # Asked for so much, the decompressor stops there; `archive.read` would have it unpack all and cut that.
        return file.read(min(info.file_size, MAX_FILE_BYTES) + 1)


def _read_file(file: Path) -> bytes:
    return read_bytes(file, MAX_FILE_BYTES)


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
        for name in names:
            file = Path(parent, name)
            inside = file.relative_to(folder).as_posix()
            if _is_image(inside):
                try:
                    status = file.stat()
                except OSError as error:
                    fail(error)
                if not stat.S_ISREG(status.st_mode):
                    raise DataError(f"data.path: {printable(str(file))} is a pipe or a device and no file: remove it.")
                yield Member(inside, status.st_size, status.st_mtime_ns, lambda file=file: _read_file(file))


def _is_image(path: str) -> bool:
    # macOS puts a hidden twin of every file into the zips it makes.
    hidden = any(name.startswith((".", "__MACOSX")) for name in path.split("/"))
    return path.lower().endswith(SUFFIXES) and not hidden


def _split(members: list[Member], source: str) -> tuple[list[Member], list[Member]]:
    """The members in train/ and in test/, each sorted by path; one folder in front that all have in common is fine."""
    members = sorted(members, key=lambda member: member.path)
    tops = {member.path.split("/")[0] for member in members}
    front = "" if len(tops) != 1 or tops & {"train", "test"} else f"{tops.pop()}/"
    train, test = ([m for m in members if m.path.startswith(f"{front}{part}/")] for part in ("train", "test"))
    for part, found in (("train", train), ("test", test)):
        if not found:
            suffixes = ", ".join(SUFFIXES)
            raise DataError(f"data.path: {source} has no images in {part}/ ({suffixes}); it must be {LAYOUT}.")
    return train, test


def _fingerprint(members: list[Member]) -> str:
    listing = json.dumps([[member.path, member.size, member.stamp] for member in members])
    return hashlib.sha256(listing.encode()).hexdigest()


def _decode(members: list[Member], source: str) -> np.ndarray:
    """All images, uint8, [images, 3, height, width]."""
    images: np.ndarray | None = None
    with warnings.catch_warnings():
        # Pillow only warns of an image that is large but not enormous; here it is as unusable.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for index, member in enumerate(members):
            pixels = _decode_one(member, source)
            if images is None:
                images = _allocate(len(members), pixels.shape, source)
            elif pixels.shape != images.shape[1:]:
                raise DataError(
                    f"data.path: {printable(member.path)} in {source} is {_size(pixels.shape)}, but "
                    f"{printable(members[0].path)} is {_size(images.shape[1:])}; all images must have one size: resize or "
                    f"remove the odd ones."
                )
            images[index] = pixels
    assert images is not None, "_split lets no empty source pass"
    return images


def _decode_one(member: Member, source: str) -> np.ndarray:
    """One image, uint8, [3, height, width]."""
    where = f"data.path: {printable(member.path)} in {source}"
    if member.size > MAX_FILE_BYTES:
        raise DataError(f"{where} is a file of {member.size:,} bytes; the limit is {MAX_FILE_BYTES:,}: remove it.")
    try:
        content = member.read()
        # Only the header is read here; the pixels are not decoded before their number is known.
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            too_large = image.width * image.height > MAX_PIXELS
            deep = image.mode.startswith(("I", "F"))
            if image.format == "JPEG" and content.count(b"\xff\xda") > MAX_SCANS:
                raise ValueError(f"it has more than {MAX_SCANS} scans")
            if not too_large and not deep:
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        too_large = True
    # A broken file can make a decoder or the zip reader raise anything.
    except Exception as error:
        raise DataError(f"{where} cannot be decoded ({error}); replace or remove it.") from error
    if too_large:
        raise DataError(f"{where} has more than {MAX_PIXELS:,} pixels; resize or remove it.")
    raise DataError(f"{where} has more than 8 bits a channel; save it with 8 bits.")


def _allocate(num_images: int, shape: tuple[int, ...], source: str) -> np.ndarray:
    needed = num_images * math.prod(shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A training subset is a copy beside them.
    if needed > min(MAX_BYTES, memory // 2):
        raise DataError(
            f"data.path: the {num_images:,} images of {_size(shape)} in {source} take {bytes_text(needed)}; the limit is "
            f"half of this machine's memory, {bytes_text(memory / 2)}, and {bytes_text(MAX_BYTES)}: resize them, or take "
            f"fewer."
        )
    return np.empty((num_images, *shape), np.uint8)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} (width x height)"
