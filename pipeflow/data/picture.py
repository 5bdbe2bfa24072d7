"""The pixels of one image file: exactly those that the file holds, turned upright, or an error in words.

Decoders convert without a word: Pillow takes the upper 8 of 16 bits, drops transparency and shows the first frame of many.
So what a file holds is read from its header, and whatever 8-bit channels cannot hold is refused. Values are those that are
stored: colour profiles are not applied.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeflow.config import DataConfig

RULES = 2
"""Version of the rules by which files become pixels: another one whenever they change, so that no old cache is read."""
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
MAX_PIXELS = 16_000_000
"""Most pixels of an image."""
MAX_SCANS = 100
"""Most scans of a JPEG. A progressive one has about ten, and each is decoded at full size."""

_MODES = {1: "L", 3: "RGB"}
"""Pillow's name for pixels of so many channels."""


class NotUsable(ValueError):
    """The file holds something that a flow of 8-bit channels cannot learn; the text goes on after the file's name."""


@dataclass(frozen=True)
class Conversion:
    """Words for what is done to the pixels of a file; None if nothing is."""

    channels: int | None = None
    """`data.channels`: 1 or 3."""
    resize: int | None = None
    """`data.resize`: pixels of the shorter side. The longer one keeps the proportions."""
    crop: int | None = None
    """`data.crop`: pixels in height and width of the middle that is kept."""

    @classmethod
    def of(cls, data: DataConfig) -> "Conversion":
        """The conversion that the options ask for."""
        return cls(data.channels, data.resize, data.crop)


AS_IS = Conversion()


def decode(content: bytes, conversion: Conversion = AS_IS) -> tuple[np.ndarray, bool]:
    """The pixels of an image file, uint8, [channels, height, width], and whether their channels are others than the file's.

    A file has one channel if it is grey, by its header or by a palette of greys alone, else three. Grey becomes RGB by
    repetition; RGB becomes grey by the weights of ITU-R 601 (0.299, 0.587, 0.114), which keep greys that are stored as RGB.

    Args:
        content: of the file.
        conversion: resizing is by Pillow's LANCZOS, which averages over all pixels that lie under one of the result.

    Raises:
        NotUsable: the file is an image, but not one that 8-bit channels hold exactly, or too large.
        Exception: whatever a decoder raises for a broken file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF data and goes on without it
        # It only warns of an image that is large but not enormous.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            opened = Image.open(io.BytesIO(content), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_large() from None
        except UnidentifiedImageError:  # whose text names the bytes in memory
            raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
        # So far only the header was read. The pixels are decoded once their number is known.
        with opened as image:
            _check_header(image, content)
            upright = ImageOps.exif_transpose(image)
        own = _own_mode(upright)
        wanted = own if conversion.channels is None else _MODES[conversion.channels]
        pixels = np.asarray(_fitted(upright.convert(wanted), conversion))
        is_same = wanted == own or (wanted == "L" and is_grey(np.asarray(upright.convert("RGB")).transpose(2, 0, 1)))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), not is_same


def _fitted(image: Image.Image, conversion: Conversion) -> Image.Image:
    """The image in the size that is asked for. Raises NotUsable where it is too small to be cut, or becomes too large."""
    size, crop = image.size, conversion.crop
    if conversion.resize is not None:
        width, height = (max(1, round(side * conversion.resize / min(size))) for side in size)
        if width * height > MAX_PIXELS:
            raise _too_large()
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if crop is not None:
        if min(image.size) < crop:
            raise NotUsable(
                f"is {image.width}x{image.height} (width x height), smaller than data.crop {crop}; lower it, or set "
                f"data.resize"
            )
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
    return image


def is_grey(pixels: np.ndarray) -> bool:
    """Whether red, green and blue are the same everywhere. pixels: [3, height, width]."""
    return bool((pixels == pixels[:1]).all())


def _check_header(image: Image.Image, content: bytes) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large()
    # A JPEG of several pictures, as telephones write them, is of the format MPO; the first picture is the one they show.
    if image.format in ("JPEG", "MPO"):
        if content.count(b"\xff\xda") > MAX_SCANS:
            raise ValueError(f"it has more than {MAX_SCANS} scans")
    elif (num_frames := getattr(image, "n_frames", 1)) > 1:
        raise NotUsable(f"is an animation of {num_frames} frames; save those to learn as images of their own")
    # Byte 24 of a PNG is its bit depth: of 16 bits Pillow keeps 8 in colour, and shows none of that.
    if image.format == "PNG" and content[24] > 8:
        raise NotUsable("has more than 8 bits a channel; save it with 8 bits")


def _too_large() -> NotUsable:
    return NotUsable(f"has more than {MAX_PIXELS:,} pixels; resize or remove it")


def _own_mode(image: Image.Image) -> str:
    """`L` or `RGB`, whichever holds the image exactly. Raises NotUsable if none does."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise NotUsable(f"has the colours {image.mode}; save it as RGB or as grey")
    if _is_transparent(image):
        raise NotUsable("has transparent pixels; put it on a background, and save it without transparency")
    if image.mode == "P":
        palette = np.array(image.getpalette()).reshape(-1, 3)
        return "L" if (palette == palette[:, :1]).all() else "RGB"
    return "RGB" if image.mode.startswith("RGB") else "L"


def _is_transparent(image: Image.Image) -> bool:
    if "A" in image.mode or (image.mode == "P" and "transparency" in image.info):
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        return lowest != 255
    # Grey or RGB with one value that stands for transparent. No program writes that for an image without such pixels.
    return "transparency" in image.info
