"""Images in an .npy file, of which only those are in memory that are asked for."""

import copy
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeflow.data.npy import MAX_HEADER_BYTES, NpyHeader, read_header
from pipeflow.errors import DataError
from pipeflow.safe_files import in_full, open_file

CHUNK_BYTES = 4_000_000
"""Bytes of images that are looked at together where all are looked at, one after the other."""

_DTYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.float32): torch.float32}


class StoredImages:
    """Images on the disk. Indexed as a tensor of all of them by its first dimension, they give a tensor in memory.

    They are read by `preadv`. A memory map would count each page that was looked at as memory of the process, and end the
    process where the disk fails or the file is cut short.

    Args:
        path: .npy file of uint8 or float32, [images, ...], as `np.save` writes it. It is kept open, so that the images stay
            the same when another file takes its name.

    Raises:
        DataError: the file cannot be read, or is none of these.
    """

    def __init__(self, path: str | Path):
        self._path = in_full(path)
        try:
            with open_file(path) as file:
                self._file = _Descriptor(os.dup(file.fileno()))
            start = os.pread(self._file.number, MAX_HEADER_BYTES, 0)
            size = os.fstat(self._file.number).st_size
        except OSError as error:
            raise DataError(f"{self._path} cannot be read ({error.strerror}).") from None
        header = self._parse(start)
        shape, self._offset = header.shape, header.size
        self.dtype = _DTYPES[header.dtype]
        self._image_shape = shape[1:]
        self._image_bytes = math.prod(shape[1:]) * header.dtype.itemsize
        if header.nbytes != size - self._offset:
            raise DataError(f"{self._path} is damaged: its size is not the one that its header gives.")
        self._places = torch.arange(shape[0])
        """Where in the file each image is."""

    def _parse(self, start: bytes) -> NpyHeader:
        """The header in the first bytes of the file."""
        try:
            header = read_header(start)
        except ValueError:
            raise DataError(f"{self._path} is no .npy file of numbers: write it with numpy.save.") from None
        shape = header.shape
        if header.dtype not in _DTYPES or header.is_fortran or len(shape) < 2 or min(shape) < 1:
            order = " in Fortran order" if header.is_fortran else ""
            raise DataError(
                f"{self._path} has {header.dtype} of shape {list(shape)}{order}: images that are read from the disk are "
                f"uint8 or float32, [images, ...], in C order."
            )
        return header

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self._image_shape))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all of them would take in memory."""
        return len(self) * self._image_bytes

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def subset(self, chosen: Tensor | slice) -> "StoredImages":
        """Some of the images, in the order of `chosen`; nothing is read."""
        subset = copy.copy(self)
        subset._places = self._places[chosen]
        return subset

    def with_channel(self) -> "StoredImages":
        """The same images with a dimension of 1 in front of the others of an image."""
        images = copy.copy(self)
        images._image_shape = (1, *self._image_shape)
        return images

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        """Reads images: a tensor [chosen, ...], in memory of its own. Raises DataError where that fails."""
        places = self._places[chosen]
        images = torch.empty((len(places), *self._image_shape), dtype=self.dtype)
        room = images.numpy().reshape(-1).view(np.uint8).data
        # Images that lie one behind the other are read in one go.
        begins = (places.diff(prepend=torch.tensor([-2])) != 1).nonzero().flatten().tolist()
        for begin, end in zip(begins, [*begins[1:], len(places)]):
            self._read(room[begin * self._image_bytes : end * self._image_bytes], int(places[begin]))
        return images

    def _read(self, room: memoryview, place: int) -> None:
        offset = self._offset + place * self._image_bytes
        while room:
            try:
                count = os.preadv(self._file.number, [room], offset)
            except OSError as error:
                raise DataError(f"{self._path} cannot be read ({error.strerror}).") from None
            if count == 0:
                raise DataError(f"{self._path} was cut short while it was read.")
            room, offset = room[count:], offset + count

    def sha256(self) -> str:
        """sha256 of the whole file, in hexadecimal; takes no memory. Raises OSError where the file cannot be read."""
        with open(os.dup(self._file.number), "rb") as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


Images = Tensor | StoredImages
"""Images in memory or on the disk: both have a length, a shape and a type, and give a tensor when they are indexed."""


def subset(images: Images, chosen: Tensor | slice) -> Images:
    """Some of the images. Those on the disk stay there."""
    return images.subset(chosen) if isinstance(images, StoredImages) else images[chosen]


def in_chunks(images: Images) -> Iterator[Tensor]:
    """All images in order, as tensors of some megabytes."""
    num = max(1, CHUNK_BYTES * len(images) // images.nbytes)
    for start in range(0, len(images), num):
        yield images[start : start + num]


class _Descriptor:
    """An open file, closed with the last of the images that are read from it."""

    def __init__(self, number: int):
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)
