"""Test images of a source that has none of its own: a part of the training images, the same in every run."""

import torch
from torch import Tensor

from pipeflow.data.image_data import ImageData
from pipeflow.data.stored import Images, subset
from pipeflow.errors import DataError

SPLIT_SEED = 0
"""Seed of the choice. It is not the run's, so that bits/dim of runs with other seeds compare."""


def hold_out(
    images: Images, labels: Tensor | None, fraction: float, name: str, notes: list[str], classes: tuple[str, ...] = ()
) -> ImageData:
    """Holds a part of some images out as test images, chosen at random.

    Args:
        fraction: `data.test_fraction`, of the images; at least one is held out.
        name, notes, classes: as of the `ImageData`.

    Raises DataError where no training image would be left.
    """
    num, num_test = len(images), num_held_out(len(images), fraction)
    chosen = torch.randperm(num, generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, train = chosen[:num_test].sort().values, chosen[num_test:].sort().values
    note = (
        f"data.test_fraction {fraction:g}: {num_test:,} of {num:,} are held out as test images, the same in every run."
    )
    return ImageData(
        subset(images, train),
        subset(images, test),
        name,
        (*notes, note),
        None if labels is None else labels[train],
        None if labels is None else labels[test],
        classes,
    )


def num_held_out(num: int, fraction: float) -> int:
    """Number of test images among `num`. Raises DataError where no training image would be left."""
    num_test = max(1, round(num * fraction))
    if num_test >= num:
        raise DataError(
            f"data.test_fraction is {fraction:g}: of {num:,} images none would be left to train on; lower it."
        )
    return num_test
