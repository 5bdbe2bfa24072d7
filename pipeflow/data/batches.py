"""Batches of images, whose order, flips and noise depend on (seed, purpose, epoch, step) alone.

So a worker without images can make the noise of any batch, and any number of workers trains on the same numbers as one
process.
"""

from collections.abc import Iterator, Sequence

import torch

from pipeflow.config.checks import check_batch_size
from pipeflow.data.image_data import ImageData
from pipeflow.data.order import Order
from pipeflow.data.random import generator
from pipeflow.data.stored import Images, subset
from pipeflow.errors import ConfigError, DataError
from pipeflow.flow.values import Values

TEST_NOISE_SEED = 0
"""Seed of evaluation's noise. It is not the run's, so that bits/dim of different runs compare."""


def dequantization_noise(seed: int, purpose: str, epoch: int, step: int, shape: Sequence[int]) -> torch.Tensor:
    """Uniform noise for `dequantize` of one global batch, float32 in [0, 1).

    A worker with images a..b of a global batch takes `[a:b]` of the global batch's noise.

    Args:
        purpose: `train` for the noise that `Batches.train` adds.
        shape: shape of the global batch, [batch, channels, height, width].
    """
    return torch.rand(tuple(shape), generator=generator(seed, f"noise of {purpose}", epoch, step))


def dequantize(images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A new tensor `x/256 - 1/2 + u/256`, as in openai/glow: float32 in [-0.5, 0.5), the shape of `images`.

    The noise is truncated to multiples of 2^-17, which makes every operation exact in float32. Otherwise float32 would
    round a u close to 1 up to 0.5 or into the next of the 256 bins.

    Args:
        images: x, uint8, [batch, ...].
        noise: u, float32 in [0, 1), the shape of `images`.
    """
    return images.to(torch.float32).sub_(128).div_(256).add_(torch.floor(noise * 2**17).mul_(2**-25))


def dequantized_batches(
    images: Images, values: Values, batch_size: int, seed: int = TEST_NOISE_SEED
) -> Iterator[torch.Tensor]:
    """Images in order, padded, and dequantized with the noise of evaluation: float32 in [-0.5, 0.5), [<= batch, ...].

    Floats come as they are. The last batch may be incomplete. The noise of an image depends on the seed and its place, not
    on `batch_size`.

    Args:
        images: uint8 or float32, [images, *values.shape].
        values: says whether they are floats, and the padding.
        batch_size: number of images in a batch.
        seed: seed of the noise.
    """
    numbers = generator(seed, "noise of test")  # one generator for all batches, wherever they are cut
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        if values.is_float:
            yield batch
        else:
            padded = values.pad(batch)
            yield dequantize(padded, torch.rand(padded.shape, generator=numbers))


class Batches:
    """The batches of one run.

    Args:
        data: training and test images.
        seed: the run's seed.
        batch_size: images in a global training batch.
        flip: mirror each training image left to right with probability 1/2.
        pad: height and width are padded to multiples of it; None: not at all.

    Raises:
        ConfigError: `batch_size` is below 1 or above the number of training images.
        DataError: `flip` or `pad` with images that are not [channels, height, width], `pad` with floats.
    """

    def __init__(self, data: ImageData, seed: int, batch_size: int, flip: bool, pad: int | None = None) -> None:
        check_batch_size(batch_size, len(data.train), data.name)
        if flip and len(data.shape) != 3:
            raise DataError(
                f"data.flip is on, but an image of {data.name} has the shape {list(data.shape)}, which has no left and "
                f"right: set data.flip to false, or give images of [channels, height, width]."
            )
        self.data = data
        self.values = data.values(pad)
        """The values of an image, as the data have them and as the batches do."""
        self.seed = seed
        self.batch_size = batch_size
        self.flip = flip
        self._order = Order(len(data.train), seed, batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Training batches in an epoch, without a last incomplete one."""
        return self._order.steps_per_epoch

    def train_images(self, epoch: int, step: int, share: slice = slice(None)) -> torch.Tensor:
        """The images `share` of training batch `step` of `epoch` after flips: uint8 or float32 as the data, [share, ...].

        Raises:
            IndexError: `step` is not in 0 .. steps_per_epoch - 1.
        """
        images = self.data.train[self._order.batch(epoch, step)[share]]
        if self.flip:
            mirrored = (torch.rand(self.batch_size, generator=generator(self.seed, "flip", epoch, step)) < 0.5)[share]
            images[mirrored] = images[mirrored].flip(-1)
        return images

    def train_noise(self, epoch: int, step: int) -> torch.Tensor:
        """The noise of training batch `step` of `epoch`, float32 in [0, 1), [batch, *values.padded_shape]."""
        return dequantization_noise(self.seed, "train", epoch, step, (self.batch_size, *self.values.padded_shape))

    def train(self, epoch: int, step: int, share: slice = slice(None)) -> torch.Tensor:
        """The images `share` of training batch `step` of `epoch`: float32, [share, *values.padded_shape].

        They are padded and dequantized, in [-0.5, 0.5), or as they are where the data are floats.
        """
        images = self.train_images(epoch, step, share)
        if self.values.is_float:
            return images
        return dequantize(self.values.pad(images), self.train_noise(epoch, step)[share])

    def initial(self) -> torch.Tensor:
        """The batch that layers are initialised on: training images without flips, float32, as in `train`."""
        images = self.data.train[self._order.initial()]
        if self.values.is_float:
            return images
        padded = self.values.pad(images)
        return dequantize(padded, dequantization_noise(self.seed, "initial", 0, 0, padded.shape))

    def test_batches(self, num_images: int | None, batch_size: int) -> Iterator[torch.Tensor]:
        """The first `num_images` test images (None: all), as `dequantized_batches` gives them.

        The last batch may be incomplete. The noise of an image depends neither on the run's seed nor on `num_images` or
        `batch_size`.

        Raises:
            ConfigError: `num_images` is below 1 or above the number of test images.
        """
        there = len(self.data.test)
        num_images = there if num_images is None else num_images
        if not 1 <= num_images <= there:
            raise ConfigError(
                f"eval.num_images is {num_images}, but there are {there} test images ({self.data.name}): it must be "
                f"from 1 to {there}, or null for all."
            )
        return dequantized_batches(subset(self.data.test, slice(num_images)), self.values, batch_size)
