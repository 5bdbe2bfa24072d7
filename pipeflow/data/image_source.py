"""The files of a user's images: a folder or a zip, which is read in place.

The source may be hostile, since a few kilobytes can announce gigabytes. Every read has a bound, far above what a flow
trains on.
"""

import contextlib
import errno
import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeflow.errors import DataError
from pipeflow.safe_files import in_full, open_file, printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
OTHER_SUFFIXES = (".gif", ".tif", ".tiff", ".jfif", ".avif", ".heic", ".jp2", ".pgm", ".ppm", ".tga")
"""Suffixes of pictures that are not read. They are an error, because they were put there to be learned."""
LAYOUT = "a folder or a zip with images in train/ and test/ (train/<class>/<name>.png), or an .npz or .npy file"
MAX_FILE_BYTES = 64_000_000
"""Most bytes of an image file."""
MAX_LISTING_BYTES = 128_000_000
"""Most bytes of a zip's directory, enough for more than a million files."""


@dataclass(frozen=True, slots=True)
class Member:
    """An image file of a source. There may be millions, so that each takes little memory."""

    path: str
    """Path inside the source, with forward slashes."""
    size: int
    """Size in bytes."""
    stamp: int
    """Number that changes with the file: its CRC in a zip, its modification time in nanoseconds in a folder."""
    info: zipfile.ZipInfo | None = None
    """Its entry in a zip."""


@dataclass(frozen=True)
class Source:
    """A folder or a zip that is open."""

    path: str
    """Its full path, as messages show it."""
    members: list[Member]
    read: Callable[[Member], bytes]
    """Gives a file's content, of at most `MAX_FILE_BYTES`. It may be called from several threads."""

    def where(self, member: Member) -> str:
        """The beginning of a message about a file."""
        return f"data.path: {printable(member.path)} in {self.path}"

    def content(self, member: Member) -> bytes:
        """A file's content. Raises DataError for a file that is too large, no image by its name, or cannot be read."""
        if member.size > MAX_FILE_BYTES:
            size = f"{member.size:,} bytes; the limit is {MAX_FILE_BYTES:,}"
            raise DataError(f"{self.where(member)} is a file of {size}: remove it.")
        if not member.path.lower().endswith(SUFFIXES):
            raise DataError(f"{self.where(member)} is none of {', '.join(SUFFIXES)}: convert or remove it.")
        try:
            return self.read(member)
        # A broken zip can make its reader raise anything.
        except Exception as error:
            raise DataError(f"{self.where(member)} cannot be decoded ({error}); replace or remove it.") from error


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A source of images, which can be read while the context is open. Raises DataError if it is none."""
    if path.is_dir():
        yield Source(os.path.abspath(path), list(_walk(path)), partial(_read, str(path)))
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
        members = [Member(inside, info.file_size, info.CRC, info) for inside, info in images]
        yield Source(str(path), members, partial(_unpack, archive))


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
            f"data.path: the images in {path} take more room than the file has: they overlap, so that a small file unpacks "
            f"to any size. Do not trust this file, pack the images anew."
        )


def _unpack(archive: zipfile.ZipFile, member: Member) -> bytes:
    """A member's content. Raises ValueError for compression methods that unpack without a bound."""
    info = member.info
    assert info is not None, "a file of a zip"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed with another method than deflate")
    with archive.open(info) as file:
        # A bounded read stops the decompressor there. `archive.read` would unpack everything first.
        return file.read(min(info.file_size, MAX_FILE_BYTES) + 1)


def _read(folder: str, member: Member) -> bytes:
    """A member's content. Raises ValueError where it has not the size that it had."""
    with open_file(f"{folder}/{member.path}") as file:
        content = file.read(member.size + 1)
    if len(content) != member.size:
        raise ValueError("it changes while it is read")
    return content


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
                yield Member(inside, status.st_size, status.st_mtime_ns)


def _is_image(path: str) -> bool:
    # macOS adds a hidden twin of every file to the zips that it makes.
    hidden = any(name.startswith((".", "__MACOSX")) for name in path.split("/"))
    return path.lower().endswith(SUFFIXES + OTHER_SUFFIXES) and not hidden
