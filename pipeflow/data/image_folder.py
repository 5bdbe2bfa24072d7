"""A user's images: a folder or a zip with `train/<any depth>/<name>.png` and `test/...`, decoded once."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

from pipeflow.data import picture
from pipeflow.data.cache import read_cache, write_cache
from pipeflow.data.decoding import Decoding, size_text
from pipeflow.data.image_source import LAYOUT, SUFFIXES, Member, open_source
from pipeflow.data.stored import Images, in_chunks, subset
from pipeflow.errors import DataError
from pipeflow.units import bytes_text

MAX_BYTES = 128_000_000_000
"""Most bytes of all images, twice the size of ImageNet at 128 x 128."""


def load_images(path: str | None, channels: int | None, memory: float) -> tuple[Images, Images, list[str]]:
    """The training and the test images of a folder or a zip, each uint8, [images, channels, height, width], sorted by path.

    They are decoded once, into the user's cache folder. As long as the source does not change, they come from there; they
    stay on the disk. The third value has a note for the user where images hold less or more than their files, or thrice
    the same, or could not be kept.

    Args:
        channels: `data.channels`; None takes those of the files, which must then all be grey or all be RGB.
        memory: `data.memory_bytes`, which images may take where the cache cannot be written.

    Raises:
        DataError: there is no such source, it has another layout, a file in it is no usable image, or there is no room.
    """
    if path is None:
        raise DataError(f"data.path is not set: with data.name 'images' it is {LAYOUT}.")
    with open_source(Path(path)) as source:
        train, test = _split(source.members, source.path)
        fingerprint = _fingerprint(train + test, channels)
        kept = read_cache(fingerprint, len(train))
        if kept is None:
            decoding = Decoding(source, train + test, channels)
            images, num_converted, notes = _decode(decoding, fingerprint, len(train), memory)
        else:
            (images, num_converted), notes = kept, []
    notes += _notes(num_converted, images, channels)
    return subset(images, slice(len(train))), subset(images, slice(len(train), None)), notes


def _decode(decoding: Decoding, fingerprint: str, num_train: int, memory: float) -> tuple[Images, int, list[str]]:
    """All images, decoded into the cache, or into memory where there is none; how many were converted; notes."""
    shape = (len(decoding.members), *decoding.first_shape())
    size = math.prod(shape)
    source = decoding.source.path
    about = f"data.path: the {shape[0]:,} images of {size_text(shape[1:])} in {source} take {bytes_text(size)}"
    if size > MAX_BYTES:
        raise DataError(f"{about}; the limit is {bytes_text(MAX_BYTES)}: resize them, or take fewer.")
    try:
        return *write_cache(fingerprint, num_train, shape, lambda write: decoding.run(shape[1:], write)), []
    except OSError as error:
        why = f"they cannot be kept on the disk ({error.filename or 'the cache folder'}: {error.strerror})"
        fix = "make room there, or set XDG_CACHE_HOME to a folder elsewhere"
        if size > memory:
            raise DataError(
                f"{about}, more than data.memory ({bytes_text(memory)}), and {why}: {fix}, or raise data.memory."
            ) from None
    images = np.empty(shape, np.uint8)
    content, image_bytes = images.data.cast("B"), size // len(images)

    def write(first: int, pixels: memoryview) -> None:
        content[first * image_bytes : first * image_bytes + len(pixels)] = pixels

    num_converted = decoding.run(shape[1:], write)
    return (
        torch.from_numpy(images),
        num_converted,
        [f"The images in {source} are decoded at every start: {why}; {fix}."],
    )


def _fingerprint(members: list[Member], channels: int | None) -> str:
    """sha256, in hexadecimal, of whatever the pixels depend on: the files and the rules of decoding."""
    digest = hashlib.sha256(f"[{picture.RULES}, {json.dumps(channels)}, [".encode())
    for index, member in enumerate(members):
        digest.update(f"{', ' if index else ''}{json.dumps([member.path, member.size, member.stamp])}".encode())
    digest.update(b"]]")
    return digest.hexdigest()


def _notes(num_converted: int, images: Images, channels: int | None) -> list[str]:
    if not num_converted:
        if images.shape[1] == 3 and all(map(_is_grey, in_chunks(images))):  # which ends at the first in colour
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


def _is_grey(images: torch.Tensor) -> bool:
    """Whether red, green and blue are the same everywhere. images: [images, 3, height, width]."""
    return bool((images == images[:, :1]).all())


def measure_images(path: str, channels: int | None) -> tuple[tuple[int, ...], int, int]:
    """Shape of an image, number of training and number of test images of a source. Only the first image is decoded.

    channels: as for `load_images`.

    Raises:
        DataError: as `load_images` does, for the source and its first image.
    """
    with open_source(Path(path)) as source:
        train, test = _split(source.members, source.path)
        return Decoding(source, train, channels).first_shape(), len(train), len(test)


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
