"""Samples of a flow, and a grid of images as one PNG."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeflow.data.random import generator
from pipeflow.flow import Flow, Values


def to_data(samples: Tensor, values: Values) -> Tensor:
    """What a flow made, as the data have it, without padding, on the CPU: floats as they are, 8-bit values as uint8.

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


def draw_samples(flow: Flow, num: int, temperature: float, seed: int, batch_size: int = 64) -> Tensor:
    """Draws samples, uint8, or float32 of a flow of floats, [num, *flow.values.shape], on the flow's device.

    The noise of sample i depends on the seed, the batch size and i, so a smaller `num` gives the first of the same samples.
    With a run's seed and temperature and batches of 64, the first 64 samples are those of the run's own `samples.png`. All
    devices draw the same noise, but their last bits may differ.

    Args:
        temperature: scale of the noise, >= 0; 0 gives the same sample `num` times.
        batch_size: number of samples drawn at a time.
    """
    noise = generator(seed, "samples")
    # The last batch is drawn whole and then cut, because the noise of a sample depends on the size of its batch.
    batches = [to_data(flow.sample(batch_size, noise, temperature), flow.values) for _ in range(0, num, batch_size)]
    return torch.cat(batches)[:num]


def save_samples(samples: Tensor, path: Path) -> None:
    """Writes samples as a grid, or as an array of NumPy where `path` ends in .npy, see `file_suffix`."""
    if path.suffix.lower() == ".npy":
        with open(path, "wb") as file:  # by a name alone, NumPy would write another file than `a.NPY`
            np.save(file, samples.numpy(), allow_pickle=False)
    else:
        sample_grid(samples, path)


def sample_grid(images: Tensor, path: str | Path, columns: int = 8) -> None:
    """Writes images as one PNG on white, row by row, enlarged three times and 2 pixels apart.

    images: uint8, [batch, 1 or 3, height, width].
    """
    scale, gap = 3, 2
    pixels = images.cpu().numpy().repeat(scale, axis=2).repeat(scale, axis=3)
    num, channels, height, width = pixels.shape
    columns = min(columns, num)
    rows = math.ceil(num / columns)
    cells = np.full((rows * columns, channels, height + gap, width + gap), 255, np.uint8)
    cells[:num, :, :height, :width] = pixels
    grid = cells.reshape(rows, columns, *cells.shape[1:]).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * (height + gap), columns * (width + gap), channels)[:-gap, :-gap]
    Image.fromarray(grid.squeeze(2) if channels == 1 else grid).save(path)
