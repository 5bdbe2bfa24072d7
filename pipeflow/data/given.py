"""Images given from Python, as arrays, tensors or datasets, become an `ImageData`.

Values are never scaled, and no axis is moved but that of the pixels of a PIL image. What is rounded is said in a note.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pipeflow.data.image_data import ImageData
from pipeflow.data.stored import StoredImages
from pipeflow.errors import DataError

GivenPart = Tensor | np.ndarray | StoredImages | Dataset[Any] | tuple[Any, Any]
GivenData = ImageData | tuple[GivenPart, GivenPart]
TAKES = (
    "an ImageData, or a pair (train, test), each an array or a tensor, a pair (images, labels) of these, or a "
    "torch.utils.data.Dataset"
)
"""What stands for images, for messages."""


class NoImages(DataError):
    """Something was given that does not stand for images."""


def as_image_data(given: object, name: str = "python") -> ImageData:
    """The images that `given` stands for, see `TAKES`. name: of their source, for messages.

    Raises:
        NoImages: it is none of these.
        DataError: the images or labels cannot be used, as `ImageData` has it, or have their channels last.
    """
    if isinstance(given, ImageData):
        return given
    if not isinstance(given, tuple | list) or len(given) != 2 or not all(map(_is_part, given)):
        kind = type(given).__name__
        if isinstance(given, tuple | list) and len(given) == 2:
            kind = f"{kind} of {type(given[0]).__name__} and {type(given[1]).__name__}"
        raise NoImages(f"{name}: a {kind} does not stand for images; give {TAKES}.")
    notes: dict[str, None] = {}
    parts = [_part(each, f"{name}: the {part}", notes) for part, each in zip(("train", "test"), given)]
    (train, train_labels), (test, test_labels) = parts
    names = [tuple(getattr(each, "classes", ())) for each in given]
    has_names = train_labels is not None and names[0] == names[1] and all(isinstance(each, str) for each in names[0])
    return ImageData(train, test, name, tuple(notes), train_labels, test_labels, names[0] if has_names else ())


def check_layout(images: Tensor | StoredImages, where: str) -> None:
    """Raises DataError where images seem to have their channels last, as matplotlib, PIL and TensorFlow have them."""
    if images.ndim == 4 and images.shape[-1] in (1, 3, 4) and min(images.shape[1:3]) > 4:
        raise DataError(
            f"{where} have the shape {list(images.shape)}, which looks like [num, height, width, channels]: give [num, "
            f"channels, height, width], as images.transpose(0, 3, 1, 2) of an array or images.permute(0, 3, 1, 2) of a "
            f"tensor. If they have {images.shape[1]} channels, give ImageData(train, test)."
        )


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


def _is_part(given: object) -> bool:
    if isinstance(given, tuple | list) and len(given) == 2:
        given = given[0]
    return isinstance(given, Tensor | np.ndarray | StoredImages | Dataset)


def _part(given: Any, where: str, notes: dict[str, None]) -> tuple[Tensor | StoredImages, Tensor | None]:
    """Images and labels of one part."""
    if isinstance(given, Dataset):
        given = _read_dataset(given, where)
    images, labels = given if isinstance(given, tuple | list) else (given, None)
    images = to_tensor(images, f"{where} images", notes)
    check_layout(images, f"{where} images")
    return images, None if labels is None else to_labels(labels, f"{where} labels")


def to_labels(given: Any, where: str) -> Tensor:
    """Labels, int64, [num], of whole numbers in any type of whole numbers. Raises DataError."""
    labels = given.numpy(force=True) if isinstance(given, Tensor) else np.asarray(given)
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras has those of CIFAR-10
        labels = labels[:, 0]
    if labels.dtype.kind not in "ui" or labels.ndim != 1:
        raise DataError(f"{where} are {labels.dtype} {list(labels.shape)}; give a whole number an image, [num].")
    return torch.from_numpy(labels.astype(np.int64))


def _read_dataset(dataset: Any, where: str) -> Any:
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
    return (images, labels) if labels else images


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
