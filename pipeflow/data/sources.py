"""Sources of images: CIFAR-10, a folder or a zip, the embedded dead leaves, or a user's function."""

import contextlib
import io
import os
import socket
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeflow.config import DataConfig
from pipeflow.data.array_files import holds_arrays, load_arrays
from pipeflow.data.given import TAKES, NoImages, as_image_data
from pipeflow.data.image_data import ImageData
from pipeflow.data.image_folder import load_images
from pipeflow.data.leaves import dead_leaves
from pipeflow.data.stored import StoredImages
from pipeflow.errors import DataError
from pipeflow.units import bytes_text
from pipeflow.user_function import load_function

SUBSET_SEED = 0
"""Seed of the order that subsets are taken in. It is not the run's, so that runs of all seeds see the same images."""
DEAD_LEAVES_SEEDS = {"train": 1, "test": 2}
DEAD_LEAVES_NUM = {"train": 2560, "test": 512}
DOWNLOAD_TIMEOUT_S = 10
"""Seconds without an answer after which a download fails, since some networks drop packets instead of refusing them."""


class TooFewImages(DataError):
    """There are fewer images than `data.num_train` or `data.num_test` takes."""


def load_data(data: DataConfig) -> ImageData:
    """The images that the section `data` of a configuration asks for.

    Those of a folder or zip stay on the disk, where they take more than `data.memory`, and are read as they are needed.

    They come in a permuted order that is the same in every run. `num_train` and `num_test` take the first images in this
    order, because folders are sorted by class and the first images of a folder would all be of one class.

    Raises:
        DataError: an option is wrong, or the images cannot be had; the message names the option and the fix.
        ConfigError: there is no such `module:function`.
    """
    whole = _load_whole(data)
    images = whole.subset(
        _first(data.num_train, len(whole.train), "num_train"), _first(data.num_test, len(whole.test), "num_test")
    )
    if images.nbytes <= data.memory_bytes:
        return images.in_memory()
    if isinstance(images.train, StoredImages):
        size = bytes_text(images.nbytes)
        note = f"{size} of images are more than data.memory ({data.memory}): they are read from the disk."
        return replace(images, notes=(*images.notes, note))
    return images


def take(data: DataConfig, given: ImageData) -> ImageData:
    """As many of the images that were given from Python as `num_train` and `num_test` ask for, in their own order.

    They are those that `load_data` would take. Raises TooFewImages.
    """
    if data.num_train is None and data.num_test is None:
        return given
    train = _first(data.num_train, len(given.train), "num_train").sort().values
    return given.subset(train, _first(data.num_test, len(given.test), "num_test").sort().values)


def _load_whole(data: DataConfig) -> ImageData:
    """All images of a source, in its own order."""
    name = data.name
    if name == "cifar10":
        return _cifar10("data" if data.path is None else data.path)
    if name == "images":
        return load_arrays(data) if holds_arrays(data.path) else load_images(data)
    if name == "dead_leaves":
        unread = (
            f"data.path {data.path} is not read: the images of data.name dead_leaves are drawn (--data.name images)."
        )
        notes = () if data.path is None else (unread,)
        return ImageData(_dead_leaves("train", data.num_train), _dead_leaves("test", data.num_test), name, notes)
    if ":" in name:
        return _call_function(data)
    raise DataError(
        f"data.name is {data.name!r}; it must be cifar10, images, dead_leaves or module:function (a function of "
        f"yours that returns the images)."
    )


def num_taken(num: int | None, there: int, option: str) -> int:
    """Number of images that `data.num_train` or `data.num_test` takes of those that are there, None taking all.

    Raises TooFewImages.
    """
    if num is not None and num > there:
        raise TooFewImages(f"data.{option} is {num}, but there are only {there} images; lower it, or set null for all.")
    return there if num is None else num


def _first(num: int | None, there: int, option: str) -> Tensor:
    """Indices of the first `num` images in the permuted order."""
    num = num_taken(num, there, option)
    return torch.randperm(there, generator=torch.Generator().manual_seed(SUBSET_SEED))[:num]


def _dead_leaves(part: str, num: int | None) -> Tensor:
    return dead_leaves(DEAD_LEAVES_NUM[part] if num is None else num, seed=DEAD_LEAVES_SEEDS[part])


def _cifar10(root: str) -> ImageData:
    """The 50,000 training and 10,000 test images, uint8, [images, 3, 32, 32], in the official order, with their classes."""
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise DataError(f"data.name cifar10 needs torchvision ({error}): install it, or use images.") from error
    quiet, timeout_before = io.StringIO(), socket.getdefaulttimeout()
    # torchvision's download takes no timeout, so this sets that of all sockets which are opened meanwhile.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            parts = [CIFAR10(root, train=train, download=True) for train in (True, False)]
    # torchvision raises OSError for the network and the disk, RuntimeError for a wrong checksum.
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"data.name cifar10: not in {os.path.abspath(root)} and not to be downloaded ({reason}).\n"
            f"Put cifar-10-python.tar.gz there (or set data.path), or set data.name images with images of your own."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout_before)
    train, test = (torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))) for part in parts)
    train_labels, test_labels = (torch.tensor(part.targets, dtype=torch.int64) for part in parts)
    return ImageData(
        train,
        test,
        "cifar10",
        train_labels=train_labels,
        test_labels=test_labels,
        classes=tuple(parts[0].classes),
    )


def _call_function(data: DataConfig) -> ImageData:
    """The images that the user's function returns."""
    made = load_function("data.name", data.name)(data)
    try:
        return as_image_data(made, data.name)
    except NoImages:
        raise DataError(
            f"data.name is {data.name!r}, but it returned {type(made).__name__}; it must return {TAKES}."
        ) from None
