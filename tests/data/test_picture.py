"""The pixels of one image file: exact whichever way they are written, where 8-bit channels hold them; else refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeflow.data.picture import Conversion, NotUsable, decode

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (4, 5), np.uint8)
COLOUR = RNG.integers(0, 256, (4, 5, 3), np.uint8)
LEVELS = RNG.integers(0, 4, (4, 5), np.uint8)
RAMP = [[85 * i] * 3 for i in range(4)]
COLOURS = [[10, 20, 30], [10, 10, 10], [200, 0, 0], [1, 2, 3]]


def png(depth: int, colour_type: int, rows: np.ndarray, palette: list | None = None, transparent: bytes = b"") -> bytes:
    """A PNG as its standard has it: rows, [height, values], of `depth` bits; no library chooses another way to write it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    bits = (rows[..., None].astype(np.uint16) >> np.arange(depth - 1, -1, -1, dtype=np.uint16)) & 1
    packed = np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1)
    width = rows.shape[1] // {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    content += chunk(b"PLTE", bytes(np.ravel(palette).tolist())) if palette else b""
    content += chunk(b"tRNS", transparent) if transparent else b""
    pixels = b"".join(b"\0" + row.tobytes() for row in packed)
    return content + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def saved(pixels: np.ndarray, format: str, mode: str | None = None, **how) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, format, **how)
    return file.getvalue()


def with_alpha(pixels: np.ndarray, alpha: int) -> np.ndarray:
    """Rows of pixels behind which the last pixel has this alpha, and all others 255."""
    alphas = np.full((4, 5, 1), 255, np.uint8)
    alphas[-1, -1] = alpha
    return np.concatenate([pixels.reshape(4, 5, -1), alphas], axis=2).reshape(4, -1)


def bmp_of_16_bits(values: np.ndarray) -> bytes:
    """values: uint16, five bits a channel."""
    rows = b"".join(row.astype("<u2").tobytes() + bytes(2) for row in values[::-1])
    header = struct.pack("<IiiHHIIiiII", 40, 5, 4, 1, 16, 0, len(rows), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + header + rows


EXACT = {
    "grey PNG": (png(8, 0, GREY), GREY),
    "grey PNG of 1 bit": (png(1, 0, LEVELS & 1), (LEVELS & 1) * 255),
    "grey PNG of 2 bits": (png(2, 0, LEVELS), LEVELS * 85),
    "grey PNG of 4 bits": (png(4, 0, LEVELS), LEVELS * 17),
    "RGB PNG": (png(8, 2, COLOUR.reshape(4, -1)), COLOUR),
    "palette of greys": (png(2, 3, LEVELS, RAMP), LEVELS * 85),
    "palette of colours": (png(8, 3, LEVELS, COLOURS), np.array(COLOURS, np.uint8)[LEVELS]),
    "opaque palette": (png(8, 3, LEVELS, COLOURS, b"\xff" * 4), np.array(COLOURS, np.uint8)[LEVELS]),
    "transparent entry that is not used": (
        png(8, 3, LEVELS & 1, COLOURS, b"\xff\xff\0"),
        np.array(COLOURS)[LEVELS & 1],
    ),
    "opaque LA": (png(8, 4, with_alpha(GREY, 255)), GREY),
    "opaque RGBA": (png(8, 6, with_alpha(COLOUR, 255)), COLOUR),
    "grey BMP": (saved(GREY, "BMP"), GREY),
    "BMP of 1 bit": (saved(GREY > 9, "BMP"), (GREY > 9) * 255),
    "RGB BMP": (saved(COLOUR, "BMP"), COLOUR),
    "WEBP": (saved(COLOUR, "WEBP", lossless=True), COLOUR),
    "opaque WEBP": (saved(COLOUR, "WEBP", "RGBA", lossless=True), COLOUR),
}


@pytest.mark.parametrize("case", EXACT)
def test_pixels_are_those_of_the_file(case):
    content, expected = EXACT[case]
    pixels, is_converted = decode(content)
    expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected) and not is_converted


def test_levels_of_five_bits_stay_apart():
    levels = np.arange(20, dtype=np.uint16).reshape(4, 5)
    pixels, _ = decode(bmp_of_16_bits(levels << 10 | levels << 5 | levels))
    assert pixels.shape == (3, 4, 5) and all(len(np.unique(channel)) == 20 for channel in pixels)


@pytest.mark.parametrize("pixels, num_channels", [(GREY, 1), (COLOUR, 3)])
def test_channels_of_a_jpeg(pixels, num_channels):
    """A JPEG is never exact, but its channels are."""
    assert decode(saved(np.full_like(pixels, 200), "JPEG"))[0].tolist() == [[[200] * 5] * 4] * num_channels


def test_first_picture_of_a_telephones_jpeg():
    """Telephones write a second picture into the file, such as how bright a screen is to show which place."""
    second = [Image.fromarray(np.zeros_like(COLOUR))]
    content = saved(np.full_like(COLOUR, 200), "MPO", save_all=True, append_images=second)
    assert (decode(content)[0] == 200).all()


WORDS = {
    "grey PNG of 16 bits": (png(16, 0, GREY), "more than 8 bits"),
    "RGB PNG of 16 bits": (png(16, 2, COLOUR.reshape(4, -1)), "more than 8 bits"),
    "LA PNG of 16 bits": (png(16, 4, with_alpha(GREY, 255)), "more than 8 bits"),
    "RGBA PNG of 16 bits": (png(16, 6, with_alpha(COLOUR, 255)), "more than 8 bits"),
    "LA": (png(8, 4, with_alpha(GREY, 254)), "transparent"),
    "RGBA": (png(8, 6, with_alpha(COLOUR, 254)), "transparent"),
    "palette with transparency": (png(8, 3, LEVELS, COLOURS, b"\xff\xff\xfe"), "transparent"),
    "palette with one transparent entry": (png(8, 3, LEVELS, COLOURS, b"\xff\xff\0"), "transparent"),
    "transparent grey": (png(2, 0, LEVELS, None, struct.pack(">H", 3)), "transparent"),
    "transparent colour": (png(8, 2, COLOUR.reshape(4, -1), None, struct.pack(">HHH", *COLOUR[0, 0])), "transparent"),
    "transparent WEBP": (saved(with_alpha(COLOUR, 9).reshape(4, 5, 4), "WEBP", lossless=True), "transparent"),
    "CMYK": (saved(COLOUR, "JPEG", "CMYK"), "CMYK"),
    "moving WEBP": (saved(COLOUR, "WEBP", save_all=True, append_images=[Image.fromarray(255 - COLOUR)]), "2 frames"),
    "moving PNG": (saved(COLOUR, "PNG", save_all=True, append_images=[Image.fromarray(255 - COLOUR)]), "2 frames"),
}


@pytest.mark.parametrize("case", WORDS)
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_what_would_be_lost_is_refused(case, channels):
    content, words = WORDS[case]
    with pytest.raises(NotUsable, match=words):
        decode(content, Conversion(channels))


@pytest.mark.parametrize("case", EXACT)
def test_channels_that_are_asked_for(case):
    content, _ = EXACT[case]
    own, _ = decode(content)
    for channels in (1, 3):
        pixels, is_converted = decode(content, Conversion(channels))
        assert len(pixels) == channels and is_converted == (len(own) != channels)
        if len(own) == 1:
            assert (pixels == own).all()
        elif channels == 1:
            assert np.abs(pixels[0] - np.tensordot([0.299, 0.587, 0.114], own, 1)).max() <= 0.51


# How a picture is to be turned that was stored with each orientation, by the EXIF standard.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_upright_as_exif_says(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, _ = decode(saved(COLOUR, format, exif=exif, lossless=True))
    assert np.array_equal(pixels.transpose(1, 2, 0), UPRIGHT[orientation](COLOUR))


def test_damaged_exif_is_passed_over_in_silence(recwarn):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0e\x01\x02\0\xff\0\0\0\xf0\0\0\0\x12\x01\x03\0\x01\0\0\0"
    pixels, _ = decode(saved(COLOUR, "JPEG", exif=exif))
    assert pixels.shape == (3, 4, 5) and not recwarn.list
