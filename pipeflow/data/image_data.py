"""Training and test items, in memory or on the disk: images, or rows of a table, with their labels where there are some."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipeflow.data.conversion import GivenImages, read_images, to_labels
from pipeflow.data.stored import Images, in_chunks, subset
from pipeflow.errors import DataError
from pipeflow.flow.values import Values


@dataclass(frozen=True, eq=False, init=False)
class ImageData:
    """Training and test images.

    Images are uint8, values 0 to 255, which are dequantized, or floats, values of one's own, which are taken as they are.

    Args:
        train: tensor, array, `StoredImages`, which are read when they are needed, or `torch.utils.data.Dataset` of PIL
            images, tensors or arrays, alone or with a label, which is read into memory. float64 and float16 become float32.
        test: as `train`, with images of the same shape and type.
        name: name of the source in messages.
        notes: what the user should know of how the images came from their files; said at the start of a training.
        train_labels: the class of each training image, whole numbers from 0 on, [images]; if None, those of the dataset.
        test_labels: as `train_labels`: both are given, or neither.
        classes: names of the labels 0, 1, ...; the attribute `classes` of both datasets, if empty.

    Raises:
        DataError: the images are empty, of another type, not finite, floats that are whole numbers or scaled 8-bit
            values, or differ in shape or type between train and test; or the labels do not fit them.
    """

    train: Images
    """uint8 or float32, [images, channels, height, width]; a user's own items may have any number of dimensions."""
    test: Images
    """As `train`."""
    name: str
    notes: tuple[str, ...]
    train_labels: Tensor | None
    """int64, [images]."""
    test_labels: Tensor | None
    classes: tuple[str, ...]

    def __init__(
        self,
        train: GivenImages,
        test: GivenImages,
        name: str = "python",
        notes: Sequence[str] = (),
        train_labels: Any = None,
        test_labels: Any = None,
        classes: Sequence[str] = (),
    ):
        of_reading: dict[str, None] = {}
        found, labels = [], []
        for part, given, its_labels in (("train", train, train_labels), ("test", test, test_labels)):
            images, of_dataset = read_images(given, f"{name}: the {part}", of_reading)
            its_labels = of_dataset if its_labels is None else its_labels
            found.append(images)
            labels.append(None if its_labels is None else to_labels(its_labels, f"{name}: the {part} labels"))
        if not classes and labels[0] is not None:
            classes = _common_classes(train, test)
        values = (*found, name, (*notes, *of_reading), *labels, tuple(classes))
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)
        self._check()

    def _check(self) -> None:
        for part, images in (("train", self.train), ("test", self.test)):
            self._check_images(part, images)
        train, test = list(self.train.shape[1:]), list(self.test.shape[1:])
        if train != test:
            raise DataError(
                f"{self.name}: a train image has the shape {train}, a test image {test}; give both the same."
            )
        if self.train.dtype != self.test.dtype:
            raise DataError(
                f"{self.name}: the train images are {self.train.dtype}, the test images {self.test.dtype}; give both in "
                f"one type."
            )
        self._check_labels()

    def _check_images(self, part: str, images: Images) -> None:
        where = f"{self.name}: the {part} images"
        if images.ndim < 2 or images.numel() == 0:
            raise DataError(
                f"{where} have the shape {list(images.shape)}; give at least one image, [num, channels, height, width]."
            )
        if images.dtype == torch.float32:
            if bad := sum(int((~each.isfinite()).sum()) for each in in_chunks(images)):
                raise DataError(f"{where} have {bad:,} values that are NaN or infinite; give finite ones.")
            _check_continuous(next(in_chunks(images)), where)

    def _check_labels(self) -> None:
        if (self.train_labels is None) != (self.test_labels is None):
            given, missing = ("test", "train") if self.train_labels is None else ("train", "test")
            raise DataError(
                f"{self.name}: the {given} images have labels, the {missing} images none; give both or none."
            )
        if len(set(self.classes)) < len(self.classes):
            raise DataError(f"{self.name}: two classes have the same name, among {', '.join(self.classes[:12])}.")
        if self.classes and self.train_labels is None:
            raise DataError(f"{self.name}: has names of classes, but no labels; give both or none.")
        for part, images, labels in (
            ("train", self.train, self.train_labels),
            ("test", self.test, self.test_labels),
        ):
            if labels is None:
                continue
            where = f"{self.name}: the {part} labels"
            if len(labels) != len(images):
                raise DataError(f"{where} are {len(labels)}; give one for each of the {len(images)} images.")
            least, most = int(labels.min()), int(labels.max())
            if least < 0 or (self.classes and most >= len(self.classes)):
                bound = f"0 to {len(self.classes) - 1}, as there are names" if self.classes else "0 or more"
                raise DataError(f"{where} go from {least} to {most}; they must be {bound}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.train.shape[1:])

    def values(self, pad: int | None) -> Values:
        """The values of an image, padded as `data.pad` says. Raises DataError as `padded_values`."""
        return padded_values(self.shape, self.train.is_floating_point(), pad, self.name)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hexadecimal, of the images, their number, shape and order: the same wherever they were loaded from.

        Labels are no part of it: a run whose flow takes none goes on where its images have come to have some.
        """
        return _fingerprint(self.train, self.test)

    @cached_property
    def labels_fingerprint(self) -> str | None:
        """The same of the labels, whose names are no part of it; None where there are none."""
        if self.train_labels is None or self.test_labels is None:
            return None
        return _fingerprint(self.train_labels, self.test_labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the images in memory, wherever they are now."""
        return self.train.nbytes + self.test.nbytes

    def subset(self, train: Tensor, test: Tensor) -> "ImageData":
        """Some of the images with their labels. train, test: their indices, int64."""
        return replace(
            self,
            train=subset(self.train, train),
            test=subset(self.test, test),
            train_labels=None if self.train_labels is None else self.train_labels[train],
            test_labels=None if self.test_labels is None else self.test_labels[test],
        )

    def in_memory(self) -> "ImageData":
        """The same, with images that are on the disk read into memory."""
        return replace(self, train=self.train[:], test=self.test[:])


def _common_classes(train: object, test: object) -> tuple[str, ...]:
    """The names of classes that two datasets share, as torchvision's have them in `classes`."""
    names = [tuple(getattr(each, "classes", ())) for each in (train, test)]
    return names[0] if names[0] == names[1] and all(isinstance(each, str) for each in names[0]) else ()


_LOOKED_AT = 65_536
"""Pixels of a channel whose values are counted, evenly spread over the images."""


def _check_continuous(values: Tensor, where: str) -> None:
    """Raises DataError for floats that have few values: their density has no bound, and bits/dim would mean nothing.

    Tables may have columns of few values; channels of images with no more values than 8 bits have are normalised pixels.
    """
    for scale, are, fix in (
        (1, "whole numbers", "images.byte()"),
        (255, "8-bit values over 255, as ToTensor makes them", "(images * 255).round().byte() or PILToTensor"),
    ):
        scaled = values * scale
        if bool(((scaled - scaled.round()).abs() < 1e-3).all()):
            raise DataError(
                f"{where} are floats, but {are}: a flow would learn a density without bound. Give pixels as uint8, by "
                f"{fix}, and add noise to other values."
            )
    if values.ndim == 4:
        for channel in values.movedim(1, 0).flatten(1):
            some = channel[:: -(-len(channel) // _LOOKED_AT)]
            num = len(some.unique())
            if 1 < num <= 256 and 16 * num <= len(some):
                raise DataError(
                    f"{where} are floats, but a channel has {num} values in {len(some):,} pixels, as 8-bit ones have "
                    f"that were scaled or normalised: a flow would learn a density without bound. Give pixels as uint8, "
                    f"before that."
                )


def _fingerprint(*tensors: Images) -> str:
    digest = hashlib.sha256()
    for values in tensors:
        digest.update(f"{values.dtype} {list(values.shape)}\n".encode())
        for chunk in in_chunks(values):
            digest.update(chunk.flatten().numpy().data)
    return digest.hexdigest()


def padded_values(shape: tuple[int, ...], is_float: bool, pad: int | None, name: str) -> Values:
    """The values of images of a shape, padded to a height and width that are multiples of `pad`, `data.pad`.

    Raises DataError where images cannot be padded. name: of their source, for the message.
    """
    if pad is None:
        return Values(shape, is_float=is_float)
    if is_float:
        raise DataError(
            f"data.pad is {pad}, but {name} has floats: the density of a value that is always the same has no bound, and "
            f"bits/dim would mean nothing. Set data.pad to null, or give images as uint8."
        )
    if len(shape) != 3:
        raise DataError(
            f"data.pad is {pad}, but an image of {name} has the shape {list(shape)}, which has no height and width: set "
            f"data.pad to null, or give images of [channels, height, width]."
        )
    return Values(shape, padding=(-shape[1] % pad, -shape[2] % pad))
