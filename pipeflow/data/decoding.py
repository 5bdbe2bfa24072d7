"""The pixels of the image files of a source, decoded on as many cores as there are and as are worth it."""

import math
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from pipeflow.data import decoder, picture
from pipeflow.data.cache import Write
from pipeflow.data.decoding_progress import DecodingProgress
from pipeflow.data.image_source import Member, Source
from pipeflow.errors import DataError
from pipeflow.safe_files import printable

BYTES_PER_PROCESS = 16_000_000
"""Bytes of files from which one more process is worth its start, which takes about as long as they do."""
CHUNK_BYTES = 1_000_000
"""Bytes of files, or of pixels, that are decoded in one go."""

DecodeAll = Callable[[Sequence[bytes], picture.Conversion], list[decoder.Decoded]]


@dataclass(frozen=True)
class Decoding:
    """Some of the files of a source, to be decoded to images that are all of one shape.

    Every method raises DataError where a file is no usable image, for the first of them.
    """

    source: Source
    members: Sequence[Member]
    conversion: picture.Conversion

    def first_shape(self) -> tuple[int, ...]:
        """[channels, height, width] of the first image; those of all others must be the same."""
        pixels, _ = self._decode(self.members[:1], decoder.decode_all)[0]
        return pixels.shape

    def run(self, shape: tuple[int, ...], write: Write, num_processes: int | None = None) -> int:
        """Decodes all; returns the number of images that hold less or more than their files.

        Args:
            shape: of each image.
            write: takes them, in any order, each one once.
            num_processes: that decode; None takes as many as there are cores for this process, fewer for few files.
        """
        num = _num_processes(self.members) if num_processes is None else num_processes
        chunks = list(_chunks(self.members, math.prod(shape)))
        counts: Iterator[int]
        with ExitStack() as stack:
            if num == 1:
                counts = map(lambda chunk: self._decode_chunk(chunk, shape, write, decoder.decode_all), chunks)
            else:
                idle: queue.SimpleQueue[DecodeAll] = queue.SimpleQueue()
                for _ in range(num):
                    process = decoder.DecoderProcess()
                    stack.callback(process.close)
                    idle.put(process.decode_all)
                # A thread for each process waits for its answers, and reads and writes meanwhile for the next.
                threads = ThreadPoolExecutor(num, thread_name_prefix="pipeflow-decode")
                stack.callback(threads.shutdown, cancel_futures=True)
                counts = threads.map(lambda chunk: self._decode_elsewhere(chunk, shape, write, idle), chunks)
            progress = stack.enter_context(DecodingProgress(len(self.members), self.source.path))
            num_converted = 0
            for chunk, count in zip(chunks, counts):  # in order, so that the first error is that of the first bad file
                progress.add(len(chunk))
                num_converted += count
        return num_converted

    def _decode_elsewhere(
        self, chunk: range, shape: tuple[int, ...], write: Write, idle: "queue.SimpleQueue[DecodeAll]"
    ) -> int:
        """Decodes a chunk in one of the processes."""
        decode_all = idle.get()
        try:
            return self._decode_chunk(chunk, shape, write, decode_all)
        finally:
            idle.put(decode_all)

    def _decode_chunk(self, chunk: range, shape: tuple[int, ...], write: Write, decode_all: DecodeAll) -> int:
        """Decodes and writes some files; returns the number of those that were converted."""
        members = self.members[chunk.start : chunk.stop]
        images = np.empty((len(chunk), *shape), np.uint8)
        decoded = self._decode(members, decode_all)
        for image, member, (pixels, _) in zip(images, members, decoded):
            if pixels.shape != shape:
                raise self._other_shape(member, pixels.shape, shape)
            image[:] = pixels
        write(chunk.start, images.data.cast("B"))
        return sum(is_converted for _, is_converted in decoded)

    def _decode(self, members: Sequence[Member], decode_all: DecodeAll) -> list[tuple[np.ndarray, bool]]:
        """Pixels of each file, and whether they hold less or more than it."""
        contents, unread = [], None
        for member in members:
            try:
                contents.append(self.source.content(member))
            except DataError as error:
                unread = error  # a file before it may be broken
                break
        decoded = []
        for member, each in zip(members, decode_all(contents, self.conversion)):
            if isinstance(each, picture.NotUsable):
                raise DataError(f"{self.source.where(member)} {each}.")
            if isinstance(each, Exception):
                raise DataError(
                    f"{self.source.where(member)} cannot be decoded ({each}); replace or remove it."
                ) from each
            decoded.append(each)
        if unread is not None:
            raise unread
        return decoded

    def _other_shape(self, member: Member, found: tuple[int, ...], shape: tuple[int, ...]) -> DataError:
        first, this, source = printable(self.members[0].path), printable(member.path), self.source.path
        if found[0] != shape[0]:
            return DataError(
                f"data.path: {first} in {source} is {_colours(shape)}, but {this} is {_colours(found)}: set "
                f"data.channels to 3 (grey becomes RGB) or to 1 (RGB becomes grey), or remove the odd ones."
            )
        return DataError(
            f"data.path: {this} in {source} is {size_text(found)}, but {first} is {size_text(shape)}: set data.resize and "
            f"data.crop, or remove the odd ones, so that all have one size."
        )


def size_text(shape: tuple[int, ...]) -> str:
    """Size of an image of [channels, height, width]."""
    return f"{shape[2]}x{shape[1]} (width x height)"


def _colours(shape: tuple[int, ...]) -> str:
    return "grey" if shape[0] == 1 else "RGB"


def _num_processes(members: Sequence[Member]) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, sum(member.size for member in members) // BYTES_PER_PROCESS))


def _chunks(members: Sequence[Member], image_bytes: int) -> Iterator[range]:
    """The files in runs, by their indices, each about `CHUNK_BYTES` of files or of pixels."""
    start, num_bytes = 0, 0
    for index, member in enumerate(members):
        needed = max(member.size, image_bytes)
        if start < index and num_bytes + needed > CHUNK_BYTES:
            yield range(start, index)
            start, num_bytes = index, 0
        num_bytes += needed
    yield range(start, len(members))
