"""Image files that are named one by one, for a flow of images of a shape."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeflow.data import picture
from pipeflow.data.image_source import MAX_FILE_BYTES
from pipeflow.errors import DataError
from pipeflow.safe_files import in_full, read_bytes


def read_images(paths: Sequence[str], shape: tuple[int, ...], conversion: picture.Conversion = picture.AS_IS) -> Tensor:
    """The images of some files, uint8, [images, *shape].

    Args:
        paths: PNG, JPEG, BMP or WebP files.
        shape: [channels, height, width] that each must have.
        conversion: of the pixels of each file.

    Raises:
        DataError: a file is no usable image, or has another shape.
    """
    images = torch.empty((len(paths), *shape), dtype=torch.uint8)
    for index, path in enumerate(paths):
        name = in_full(path)
        try:
            content = read_bytes(path, MAX_FILE_BYTES)
        except OSError as error:
            raise DataError(f"{name} cannot be read ({error.strerror}): name an image file.") from None
        try:
            pixels, _ = picture.decode(content, conversion)
        except picture.NotUsable as error:
            raise DataError(f"{name} {error}.") from None
        except Exception as error:  # any: a broken file makes decoders raise all sorts
            raise DataError(f"{name} cannot be decoded ({error}): name another image file.") from None
        if pixels.shape != shape:
            raise DataError(
                f"{name} has the shape {list(pixels.shape)}, the flow is of images of {list(shape)} (channels, height, "
                f"width): resize or convert it."
            )
        images[index] = torch.from_numpy(pixels.copy())  # a decoder may own the pixels
    return images
