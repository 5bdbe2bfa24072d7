"""Bits per dimension: of a log-density, and of the sums over parts and batches."""

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def bits_per_dim(log_prob: Number, num_dims: int) -> Number:
    """Bits per dimension of 8-bit data, `-(log p(x) - D ln 256) / (D ln 2) = 8 - log p(x) / (D ln 2)`.

    Args:
        log_prob: natural log-density of x = v/256 - 1/2 + u, where v is the 8-bit value and u ~ U(0, 1/256); a float
            or a tensor of any shape. The result has the same type and precision.
        num_dims: D, the number of values in an image.
    """
    return 8 - log_prob / (num_dims * math.log(2))


def exit_bits_per_dim(sums: Sequence[Sequence[float]], num_images: int, num_dims: int) -> list[float]:
    """B_1 ... B_K from each part's sums, in part order: the bits/dim had the flow ended at part k."""
    exits, total = [], 0.0
    for contribution, log_head in sums:
        total += contribution
        exits.append(bits_per_dim((total + log_head) / num_images, num_dims))
    return exits
