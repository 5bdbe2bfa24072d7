"""Samples of a flow, and a grid of images as one PNG."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeflow.data.random import generator
from pipeflow.flow import Flow, Values

SAMPLE_TEMPERATURE = 0.7
"""Temperature of the samples that a run leaves."""

_SCALE, _GAP = 3, 2
"""How many times grids enlarge images, and pixels between them."""


def to_data(samples: Tensor, values: Values) -> Tensor:
    """Samples of a flow in the form of its data, without padding, on the CPU: floats as they are, 8-bit values as uint8.

    Those are the bins of values in [-0.5, 0.5); other values are clamped, NaN becomes 0.
    """
    samples = values.crop(samples)
    if values.is_float:
        return samples.cpu()
    return torch.nan_to_num((samples + 0.5) * 256).clamp(0, 255).to(torch.uint8).cpu()


def file_suffix(values: Values) -> str:
    """`.png` where a flow's items are pictures, 8-bit values of [1 or 3, height, width], else `.npy`."""
    is_picture = not values.is_float and len(values.shape) == 3 and values.shape[0] in (1, 3)
    return ".png" if is_picture else ".npy"


def labels_in_turn(num: int, num_classes: int | None) -> Tensor | None:
    """Labels of `num` samples that nobody has said the class of, 0, 1, ..., 0, 1, ...; None for a flow that takes none."""
    return None if num_classes is None else torch.arange(num) % num_classes


def draw_samples(
    flow: Flow, num: int, temperature: float, seed: int, batch_size: int = 64, labels: Tensor | None = None
) -> Tensor:
    """Draws samples, uint8, or float32 of a flow of floats, [num, *flow.values.shape], on the flow's device.

    The noise of sample i depends on the seed, the batch size and i, so a smaller `num` gives the first of the same samples.
    With a run's seed and temperature and batches of 64, the first 64 samples are those of the run's own `samples.png`. All
    devices draw the same noise, but their last bits may differ.

    Args:
        temperature: scale of the noise, >= 0; 0 gives the same sample `num` times.
        batch_size: number of samples drawn at a time.
        labels: int64, [num]; None for `labels_in_turn`.
    """
    if labels is None:
        labels = labels_in_turn(num, flow.num_classes)
    noise = generator(seed, "samples")
    # The last batch is drawn whole and then cut, because the noise of a sample depends on the size of its batch.
    batches = []
    for first in range(0, num, batch_size):
        chosen = None if labels is None else labels[torch.arange(first, first + batch_size).clamp(max=num - 1)]
        batches.append(to_data(flow.sample(batch_size, noise, temperature, chosen), flow.values))
    return torch.cat(batches)[:num]


def save_samples(samples: Tensor, path: Path, labels: Tensor | None = None, classes: Sequence[str] = ()) -> None:
    """Writes samples as a grid, or as an array of NumPy where `path` ends in .npy, see `file_suffix`.

    labels, classes: of the samples; a grid has each class in rows of its own, with its name in front.
    """
    if path.suffix.lower() == ".npy":
        with open(path, "wb") as file:  # by a name alone, NumPy would write another file than `a.NPY`
            np.save(file, samples.numpy(), allow_pickle=False)
    elif labels is None:
        sample_grid(samples, path)
    else:
        class_grid(samples, labels, path, classes)


def sample_grid(images: Tensor, path: str | Path, columns: int = 8) -> None:
    """Writes images as one PNG on white, row by row, enlarged three times and 2 pixels apart.

    images: uint8, [batch, 1 or 3, height, width].
    """
    grid(images, columns).save(path)


def class_grid(images: Tensor, labels: Tensor, path: str | Path, classes: Sequence[str], columns: int = 8) -> None:
    """Writes images as `sample_grid` does, but each class in rows of its own, with its name in front.

    labels: int64, [batch]. classes: names of the labels 0, 1, ...; a label without one is its own.
    """
    columns = min(columns, int(labels.bincount().max()))
    rows: list[Tensor] = []
    names: dict[int, str] = {}
    for label in labels.unique().tolist():
        names[len(rows)] = classes[label] if label < len(classes) else str(label)
        for row in images[labels == label].cpu().split(columns):
            white = row.new_full((columns - len(row), *row.shape[1:]), 255)
            rows.append(torch.cat([row, white]))
    cells = grid(torch.cat(rows), columns)
    font = ImageFont.load_default()
    shown = {row: name.encode("ascii", "replace").decode() for row, name in names.items()}  # an old font has no others
    margin = math.ceil(max(map(font.getlength, shown.values()))) + 2 * _GAP
    picture = Image.new(cells.mode, (margin + cells.width, cells.height), "white")
    picture.paste(cells, (margin, 0))
    draw = ImageDraw.Draw(picture)
    for row, name in shown.items():
        draw.text((_GAP, row * (cells.height + _GAP) // len(rows)), name, "black", font)
    picture.save(path)


def grid(images: Tensor, columns: int = 8, scale: int = _SCALE) -> Image.Image:
    """The picture that `sample_grid` writes. scale: times that it is enlarged."""
    pixels = images.cpu().numpy().repeat(scale, axis=2).repeat(scale, axis=3)
    num, channels, height, width = pixels.shape
    columns = min(columns, num)
    rows = math.ceil(num / columns)
    cells = np.full((rows * columns, channels, height + _GAP, width + _GAP), 255, np.uint8)
    cells[:num, :, :height, :width] = pixels
    picture = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 3, 1, 4, 2)
    picture = picture.reshape(rows * (height + _GAP), columns * (width + _GAP), channels)[:-_GAP, :-_GAP]
    return Image.fromarray(picture.squeeze(2) if channels == 1 else picture)
