"""A user's images: a folder or a zip with `train/<any depth>/<name>.png` and `test/...`, decoded once."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeflow.config import DataConfig
from pipeflow.data import picture
from pipeflow.data.cache import read_cache, write_cache
from pipeflow.data.decoding import Decoding, size_text
from pipeflow.data.held_out import hold_out, num_held_out
from pipeflow.data.image_data import ImageData
from pipeflow.data.image_source import LAYOUT, Member, Source, open_source
from pipeflow.data.layout import lay_out
from pipeflow.data.picture import Conversion
from pipeflow.data.stored import Images, in_chunks, subset
from pipeflow.errors import DataError
from pipeflow.units import bytes_text

MAX_BYTES = 128_000_000_000
"""Most bytes of all images, twice the size of ImageNet at 128 x 128."""


def load_images(data: DataConfig) -> ImageData:
    """The images of the folder or zip `data.path`, uint8, [images, channels, height, width], sorted by path.

    They are decoded once, into the user's cache folder. As long as the source does not change, they come from there; they
    stay on the disk. Their notes tell where images hold less or more than their files, or thrice the same, or could not be
    kept. They have labels where `Layout.classes` has names.

    Raises:
        DataError: there is no such source, it has another layout, a file in it is no usable image, or there is no room.
    """
    if data.path is None:
        raise DataError(f"data.path is not set: with data.name 'images' it is {LAYOUT}.")
    conversion = Conversion.of(data)
    with open_source(Path(data.path)) as source:
        layout = lay_out(source.members, source.path, data.test_fraction)
        members, num_train = [*layout.train, *layout.test], len(layout.train)
        fingerprint = _fingerprint(source, members, conversion)
        kept = read_cache(fingerprint, num_train, len(members))
        if kept is None:
            decoding = Decoding(source, members, conversion)
            images, num_converted, notes = _decode(decoding, fingerprint, num_train, data.memory_bytes)
        else:
            (images, num_converted), notes = kept, []
    notes += [*_notes(num_converted, images, conversion), *layout.notes]
    number = {name: label for label, name in enumerate(layout.classes)}
    train_labels, test_labels = (
        torch.tensor([number[name] for name in names]) if number else None
        for names in (layout.train_classes, layout.test_classes)
    )
    train, test = subset(images, slice(num_train)), subset(images, slice(num_train, None))
    if data.test_fraction is not None:
        return hold_out(train, train_labels, data.test_fraction, data.name, notes, layout.classes)
    return ImageData(train, test, data.name, tuple(notes), train_labels, test_labels, layout.classes)


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


_READ = 16
"""Most files whose contents tell a folder from others."""


def _fingerprint(source: Source, members: Sequence[Member], conversion: Conversion) -> str:
    """sha256, in hexadecimal, of whatever the pixels depend on: the files and the rules of decoding.

    Some files of a folder are read, for others may have their names, sizes and times. In a zip each has its CRC.
    """
    channels, *size = dataclasses.astuple(conversion)
    rules = channels if size == [None, None] else [channels, *size]
    digest = hashlib.sha256(f"[{picture.RULES}, {json.dumps(rules)}, [".encode())
    for index, member in enumerate(members):
        digest.update(f"{', ' if index else ''}{json.dumps([member.path, member.size, member.stamp])}".encode())
    digest.update(b"]]")
    for member in members[:: -(-len(members) // _READ)]:
        if member.info is None:
            digest.update(hashlib.sha256(source.content(member)).digest())
    return digest.hexdigest()


def _notes(num_converted: int, images: Images, conversion: Conversion) -> list[str]:
    channels, notes = conversion.channels, []
    if conversion.resize is not None:
        notes.append(
            f"data.resize: the shorter side of each image is resized to {conversion.resize} pixels (Lanczos), "
            f"smaller ones are enlarged: bits/dim are of what comes out."
        )
    if conversion.crop is not None:
        notes.append(f"data.crop: the middle {conversion.crop}x{conversion.crop} of each image is kept.")
    if not num_converted:
        if images.shape[1] == 3 and all(map(_is_grey, in_chunks(images))):  # which ends at the first in colour
            return [
                *notes,
                "All images are grey, stored as RGB: three times the same value, so that their bits/dim compare neither "
                "with those of grey nor of RGB images. --data.channels 1 keeps one.",
            ]
        return notes
    if channels == 3:
        how = "grey and become RGB by repetition: their bits/dim compare neither with those of grey nor of RGB images"
    else:
        how = "in colour and become grey: their colours are lost"
    return [*notes, f"data.channels {channels}: {num_converted:,} of {len(images):,} images are {how}."]


def _is_grey(images: torch.Tensor) -> bool:
    """Whether red, green and blue are the same everywhere. images: [images, 3, height, width]."""
    return bool((images == images[:, :1]).all())


def measure_images(data: DataConfig) -> tuple[tuple[int, ...], int, int]:
    """Shape of an image, number of training and number of test images of `data.path`. Only the first image is decoded.

    Raises:
        DataError: as `load_images` does, for the source and its first image.
    """
    with open_source(Path(data.path or "")) as source:
        layout = lay_out(source.members, source.path, data.test_fraction)
        num_train, num_test = len(layout.train), len(layout.test)
        if data.test_fraction is not None:
            num_test = num_held_out(num_train, data.test_fraction)
            num_train -= num_test
        return Decoding(source, layout.train, Conversion.of(data)).first_shape(), num_train, num_test
