"""The values that a flow is trained on, between the data and the flow: padding, and log-densities as bits per dimension."""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class Values:
    """The values of one item, an image or a row of a table, as the data have them, and as the flow takes them.

    8-bit values are dequantized, `x = v/256 - 1/2 + u`; floats are taken as they are.

    Padding repeats the values at the edges. The padded image is 8-bit values too, one for each image, so that its code
    length `8 D' - log2 p(x)`, with D' its number of values, is one of the image that it was made of. Divided by D, the
    number of values of that image, it is an upper bound on the image's bits/dim, as dequantization is in any case.
    """

    shape: tuple[int, ...]
    """Shape of an item of the data."""
    padding: tuple[int, int] = (0, 0)
    """Rows and columns that are added to an image: half of them in front, the larger half behind."""
    is_float: bool = False
    """Whether the values are floats."""

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Shape of an item as the flow takes it."""
        if self.padding == (0, 0):
            return self.shape
        *front, height, width = self.shape
        return (*front, height + self.padding[0], width + self.padding[1])

    @property
    def item(self) -> str:
        """Word for one of them."""
        return "image" if len(self.shape) == 3 else "item"

    @property
    def nats_per_bit_per_dim(self) -> float:
        """D ln 2, with D the number of values of an item of the data."""
        return math.prod(self.shape) * math.log(2)

    @property
    def offset(self) -> float:
        """Bits/dim where log p(x) is 0: the 8 bits of 256 values, of padding too, and nothing for floats."""
        return 0.0 if self.is_float else 8 * math.prod(self.padded_shape) / math.prod(self.shape)

    def bits_per_dim(self, log_prob: Number) -> Number:
        """Bits per dimension of the data: of 8-bit values `(8 D' - log2 p(x)) / D`, of floats `-log2 p(x) / D`.

        D is the number of values of an item, D' with padding. Bits/dim of floats are of a density: they may be negative,
        and change with the unit of the data.

        log_prob: natural log-density of x; a float or a tensor of any shape. The result has the same type and precision.
        """
        return self.offset - log_prob / self.nats_per_bit_per_dim

    def nats(self, bits_per_dim: float) -> float:
        """Bits/dim as nats an item: of floats -log p(x)."""
        return bits_per_dim * self.nats_per_bit_per_dim

    def text(self, bits_per_dim: float, digits: int = 3) -> str:
        """Bits/dim in words, of floats with the nats."""
        text = f"{bits_per_dim:.{digits}f} bits/dim"
        return f"{text}, {self.nats(bits_per_dim):.{digits}f} nats an {self.item}" if self.is_float else text

    def pad(self, images: Tensor) -> Tensor:
        """Images as the flow takes them, with the values at their edges repeated. images: [batch, *shape]."""
        for dim, added in zip((-2, -1), self.padding):
            if added:
                size = images.shape[dim]
                inside = torch.arange(-(added // 2), size + added - added // 2).clamp(0, size - 1)
                images = images.index_select(dim, inside.to(images.device))
        return images

    def crop(self, images: Tensor) -> Tensor:
        """Images without their padding. images: [batch, *padded_shape]."""
        for dim, added in zip((-2, -1), self.padding):
            if added:
                images = images.narrow(dim, added // 2, images.shape[dim] - added)
        return images
