"""Which training images a batch has. It depends on (seed, epoch, step) alone, so every worker knows it without images."""

import torch
from torch import Tensor

from pipeflow.data.random import generator


class Order:
    """The order of one run's training images.

    Args:
        num_images: number of training images.
        seed: the run's seed.
        batch_size: images in a global training batch.
    """

    def __init__(self, num_images: int, seed: int, batch_size: int) -> None:
        self.num_images = num_images
        self.seed = seed
        self.batch_size = batch_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Training batches in an epoch, without a last incomplete one."""
        return self.num_images // self.batch_size

    def batch(self, epoch: int, step: int) -> Tensor:
        """Numbers of the images of training batch `step` of `epoch`, int64, [batch].

        Raises:
            IndexError: `step` is not in 0 .. steps_per_epoch - 1.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")
        if epoch != self._epoch:
            self._order = torch.randperm(self.num_images, generator=generator(self.seed, "order", epoch))
            self._epoch = epoch
        return self._order[step * self.batch_size : (step + 1) * self.batch_size]

    def initial(self) -> Tensor:
        """Numbers of the images that layers are initialised on, int64, [batch]."""
        return torch.randperm(self.num_images, generator=generator(self.seed, "initial"))[: self.batch_size]
