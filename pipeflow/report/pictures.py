"""Pictures of a run folder as data that stand in the page itself."""

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeflow.data.picture import MAX_PIXELS, decode
from pipeflow.output import say
from pipeflow.rundir.folder import SAMPLES
from pipeflow.safe_files import brief, read_bytes

_MOST_BYTES = 4 * MAX_PIXELS
_WIDEST = 520
"""Pixels of a picture in the page; a larger one is made smaller."""
_EPOCH = re.compile(r"epoch-(\d{6})\.png")


def sample_epochs(run_dir: Path, num_epochs: int, most: int) -> list[int]:
    """Epochs that have samples, at most so many, evenly spread, and the last among them.

    num_epochs: those that the run has done; files of later ones are from before a resume.
    """
    folder = run_dir / SAMPLES
    names = [found for path in folder.glob("epoch-*.png") if (found := _EPOCH.fullmatch(path.name))]
    epochs = sorted(epoch for found in names if (epoch := int(found[1])) < num_epochs)
    return evenly(epochs, most)


def evenly(items: Sequence[int], most: int) -> list[int]:
    """At most so many of the items, evenly spread, the first and the last among them; of one, the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def samples_of(run_dir: Path, epoch: int) -> str | None:
    """The samples behind an epoch."""
    return data_uri(run_dir / SAMPLES / f"epoch-{epoch:06d}.png")


def data_of(run_dir: Path) -> str | None:
    """The test images beside the samples."""
    return data_uri(run_dir / SAMPLES / "data.png")


def data_uri(path: Path) -> str | None:
    """A PNG file, drawn anew, as an address that holds the picture; None where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        pixels, _ = decode(read_bytes(path, _MOST_BYTES))
    except Exception as error:  # whatever a decoder raises for a broken file
        say(f"{path} cannot be shown: {brief(error, str)}")
        return None
    return uri_of(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)).squeeze()))


def uri_of(picture: Image.Image) -> str:
    """The address of a picture, not wider than the page has room for."""
    if picture.width > _WIDEST:
        height = max(1, round(picture.height * _WIDEST / picture.width))
        picture = picture.resize((_WIDEST, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
