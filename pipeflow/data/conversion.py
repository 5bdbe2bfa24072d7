"""Arrays, tensors and datasets become the tensors that an `ImageData` holds.

Values are never scaled, and no axis is moved but that of the pixels of a PIL image. What is rounded is said in a note.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pipeflow.data.stored import StoredImages
from pipeflow.errors import DataError

GivenImages = Tensor | np.ndarray | StoredImages | Dataset[Any]
"""Images as a user has them. A dataset gives images, or pairs of an image and its label."""


def are_images(given: object) -> bool:
    """Whether `given` is of a type that images are given in."""
    return isinstance(given, Tensor | np.ndarray | StoredImages | Dataset)


def read_images(given: GivenImages, where: str, notes: dict[str, None]) -> tuple[Tensor | StoredImages, Any]:
    """The images as a uint8 or float32 tensor, and the labels that a dataset gives with them, or None.

    Args:
        where: what they are, for messages.
        notes: gets what the user should know as its keys.

    Raises DataError where they are of another type.
    """
    if isinstance(given, Dataset):
        images, labels = _read_dataset(given, where)
        return to_tensor(images, f"{where} images", notes), labels
    if not are_images(given):
        raise DataError(
            f"{where} images are {type(given).__name__}; give a uint8 tensor or array of values 0 to 255, floats that are "
            f"no pixels, or a torch.utils.data.Dataset of these."
        )
    return to_tensor(given, f"{where} images", notes), None


def to_tensor(values: Tensor | np.ndarray | StoredImages, where: str, notes: dict[str, None]) -> Tensor | StoredImages:
    """uint8 or float32 as a tensor of the same memory; float16 and float64 as float32, where a note says what is rounded.

    Raises DataError for other types.
    """
    if isinstance(values, StoredImages):
        return values
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "uif" or values.dtype.itemsize > 8:
            raise DataError(f"{where} are {values.dtype}; give uint8 values 0 to 255, or floats that are no pixels.")
        values = torch.from_numpy(np.require(values, values.dtype.newbyteorder("="), ("C", "W")))
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise DataError(
            f"{where} are {values.dtype}; give pixels as uint8, images.astype('uint8') of an array or images.byte() of a "
            f"tensor if they are from 0 to 255, and other values as floats."
        )
    if values.dtype == torch.float64:
        notes[f"{where} are float64 and are rounded to float32."] = None
    return values.float()


def to_labels(given: Any, where: str) -> Tensor:
    """Labels, int64, [num], of whole numbers in any type of whole numbers. Raises DataError."""
    labels = given.numpy(force=True) if isinstance(given, Tensor) else np.asarray(given)
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras has those of CIFAR-10
        labels = labels[:, 0]
    if labels.dtype.kind not in "ui" or labels.ndim != 1:
        raise DataError(f"{where} are {labels.dtype} {list(labels.shape)}; give a whole number for each image, [num].")
    return torch.from_numpy(labels.astype(np.int64))


def _read_dataset(dataset: Any, where: str) -> tuple[Tensor, list[int] | None]:
    """The images of a dataset, and its labels if it gives (image, label), all in memory."""
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"{where} dataset has no length, so that an epoch has no end; give one with __len__ and [index]."
        )
    if len(dataset) == 0:
        raise DataError(f"{where} dataset is empty; give at least one image.")
    images: Any = None
    labels: list[int] = []
    for index in range(len(dataset)):
        item = dataset[index]
        if isinstance(item, tuple | list) and len(item) == 2:
            item, label = item
            labels.append(_label(label, f"{where} dataset: the label of item {index}"))
        pixels = _pixels(item, f"{where} dataset: item {index}")
        if images is None:
            images = torch.empty((len(dataset), *pixels.shape), dtype=pixels.dtype)
        if pixels.shape != images.shape[1:] or pixels.dtype != images.dtype:
            raise DataError(
                f"{where} dataset: item {index} is {pixels.dtype} {list(pixels.shape)}, item 0 {images.dtype} "
                f"{list(images.shape[1:])}; give all in one type and size, by a transform."
            )
        images[index] = pixels
    if labels and len(labels) < len(dataset):
        raise DataError(f"{where} dataset: {len(labels)} of {len(dataset)} items have labels; give all or none.")
    return images, labels or None


def _label(label: Any, where: str) -> int:
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if not isinstance(label, int | np.integer):
        raise DataError(f"{where} is a {type(label).__name__}; give (image, whole number), or images alone.")
    return int(label)


def _pixels(item: Any, where: str) -> Tensor:
    """One item as a tensor: of a PIL image its pixels as they are stored, [channels, height, width]."""
    if isinstance(item, Image.Image):
        if item.mode not in ("L", "RGB"):
            raise DataError(f"{where} is a PIL image of the mode {item.mode}; give L or RGB, by image.convert.")
        pixels = np.array(item)
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
    if isinstance(item, np.ndarray) and item.dtype.kind in "uif":
        return torch.from_numpy(np.require(item, item.dtype.newbyteorder("="), ("C", "W")))
    if isinstance(item, Tensor):
        return item
    raise DataError(
        f"{where} is a {type(item).__name__}; give a tensor, an array or a PIL image, or a pair of one and its label."
    )
