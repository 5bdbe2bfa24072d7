"""Where images come from: cifar10, a folder or a zip, the embedded dead leaves, or a function of the user's."""

import contextlib
import io
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pipeflow.data.dead_leaves import dead_leaves
from pipeflow.data.image_folder import load_images
from pipeflow.errors import DataError
from pipeflow.user_function import load_function

# Which images a subset takes is no part of a run's randomness: runs with different seeds see the same ones.
SUBSET_SEED = 0
DEAD_LEAVES_SEEDS = {"train": 1, "test": 2}
DEAD_LEAVES_NUM = {"train": 2560, "test": 512}
DOWNLOAD_TIMEOUT_S = 10
"""Without an answer for so long, a download has failed: some networks drop packets instead of refusing them."""


class DataOptions(Protocol):
    """The section `data` of a configuration, as far as loading reads it."""

    name: str
    path: str | None
    num_train: int | None
    num_test: int | None


@dataclass(frozen=True, eq=False)
class ImageData:
    """Training and test images.

    Raises:
        DataError: they are not uint8 tensors of the same shape behind the first dimension, or one of them is empty.
    """

    train: torch.Tensor
    """uint8, [images, channels, height, width]; a user's own data may have any shape behind the first dimension."""
    test: torch.Tensor
    """The same."""
    name: str
    """For messages."""

    def __post_init__(self) -> None:
        for part, images in (("train", self.train), ("test", self.test)):
            if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
                kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
                raise DataError(f"{self.name}: the {part} images are {kind}; give a uint8 tensor of values 0 to 255.")
            if images.ndim < 2 or images.numel() == 0:
                raise DataError(
                    f"{self.name}: the {part} images have the shape {list(images.shape)}; give at least one image, as "
                    f"[images, channels, height, width]."
                )
        if self.train.shape[1:] != self.test.shape[1:]:
            raise DataError(
                f"{self.name}: a train image has the shape {list(self.train.shape[1:])}, a test image "
                f"{list(self.test.shape[1:])}; give both the same."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return tuple(self.train.shape[1:])


def load_data(data: DataOptions) -> ImageData:
    """The images that the section `data` of a configuration asks for.

    They come in a permuted order that is the same in every run, and `num_train` and `num_test` take the first ones of
    it: folders are sorted by class, and the first images of one would be all of a kind.

    Raises:
        DataError: an option is wrong, or the images cannot be had; the message names the option and the fix.
        ConfigError: there is no such `module:function`.
    """
    for option, num in (("num_train", data.num_train), ("num_test", data.num_test)):
        if num is not None and num < 1:
            raise DataError(f"data.{option} is {num}; it must be at least 1, or null for all.")
    if data.name == "cifar10":
        images = ImageData(*_cifar10("data" if data.path is None else data.path), name=data.name)
    elif data.name == "images":
        images = ImageData(*map(torch.from_numpy, load_images(data.path)), name=data.name)
    elif data.name == "dead_leaves":
        images = ImageData(_dead_leaves("train", data.num_train), _dead_leaves("test", data.num_test), name=data.name)
    elif ":" in data.name:
        images = _call(data)
    else:
        raise DataError(
            f"data.name is {data.name!r}; it must be cifar10, images, dead_leaves or module:function (a function of "
            f"yours that returns the images)."
        )
    return ImageData(
        _take(images.train, data.num_train, "num_train"), _take(images.test, data.num_test, "num_test"), images.name
    )


def _take(images: torch.Tensor, num: int | None, option: str) -> torch.Tensor:
    there = len(images)
    if num is not None and num > there:
        raise DataError(f"data.{option} is {num}, but there are only {there} images; lower it, or set null for all.")
    order = torch.randperm(there, generator=torch.Generator().manual_seed(SUBSET_SEED))
    return images[order[:num]]


def _dead_leaves(part: str, num: int | None) -> torch.Tensor:
    return dead_leaves(DEAD_LEAVES_NUM[part] if num is None else num, seed=DEAD_LEAVES_SEEDS[part])


def _cifar10(root: str) -> list[torch.Tensor]:
    """The 50,000 training and 10,000 test images, each uint8, [images, 3, 32, 32], in the official order."""
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise DataError(f"data.name cifar10 needs torchvision ({error}): install it, or use images.") from error
    quiet = io.StringIO()
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), _socket_timeout(DOWNLOAD_TIMEOUT_S):
            parts = [CIFAR10(root, train=train, download=True).data for train in (True, False)]
    # torchvision raises OSError for the network and the disk, RuntimeError for a wrong checksum.
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"data.name cifar10: not in {os.path.abspath(root)} and not to be downloaded ({reason}).\n"
            f"Put cifar-10-python.tar.gz there (or set data.path), or set data.name images with images of your own."
        ) from error
    return [torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2))) for part in parts]


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """For sockets that are opened meanwhile: torchvision has no timeout to set."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _call(data: DataOptions) -> ImageData:
    made = load_function("data.name", data.name)(data)
    if isinstance(made, ImageData):
        return made
    if isinstance(made, (tuple, list)) and len(made) == 2:
        return ImageData(*(torch.from_numpy(m) if isinstance(m, np.ndarray) else m for m in made), name=data.name)
    raise DataError(
        f"data.name is {data.name!r}, but it returned {type(made).__name__}; it must return an ImageData or a pair "
        f"(train, test) of uint8 tensors or arrays, [images, channels, height, width]."
    )
