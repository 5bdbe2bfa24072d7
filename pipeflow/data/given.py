"""Images given from Python in place of a source: an `ImageData`, or a pair (train, test) of what it takes."""

from typing import Any

from torch import Tensor

from pipeflow.data.conversion import GivenImages, are_images
from pipeflow.data.image_data import ImageData
from pipeflow.data.stored import StoredImages
from pipeflow.errors import DataError

GivenPart = GivenImages | tuple[GivenImages, Any]
GivenData = ImageData | tuple[GivenPart, GivenPart]
TAKES = (
    "an ImageData, or a pair (train, test), each an array or a tensor, a pair (images, labels) of these, or a "
    "torch.utils.data.Dataset"
)
"""Words for everything that is taken as images, for messages."""


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
    pairs = [_pair(each) for each in given] if isinstance(given, tuple | list) else []
    if len(pairs) != 2 or not all(are_images(images) for images, _ in pairs):
        kind = type(given).__name__
        if isinstance(given, tuple | list) and len(given) == 2:
            kind = f"{kind} of {type(given[0]).__name__} and {type(given[1]).__name__}"
        raise NoImages(f"{name}: a {kind} does not stand for images; give {TAKES}.")
    (train, train_labels), (test, test_labels) = pairs
    data = ImageData(train, test, name, train_labels=train_labels, test_labels=test_labels)
    for part, images in (("train", data.train), ("test", data.test)):
        check_layout(images, f"{name}: the {part} images")
    return data


def check_layout(images: Tensor | StoredImages, where: str) -> None:
    """Raises DataError where images seem to have their channels last, as matplotlib, PIL and TensorFlow have them."""
    if images.ndim == 4 and images.shape[-1] in (1, 3, 4) and min(images.shape[1:3]) > 4:
        raise DataError(
            f"{where} have the shape {list(images.shape)}, which looks like [num, height, width, channels]: give [num, "
            f"channels, height, width], as images.transpose(0, 3, 1, 2) of an array or images.permute(0, 3, 1, 2) of a "
            f"tensor. If they have {images.shape[1]} channels, give ImageData(train, test)."
        )


def _pair(given: Any) -> tuple[Any, Any]:
    """Images, and the labels that are given beside them."""
    return tuple(given) if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
