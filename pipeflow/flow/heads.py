"""Heads: local priors that stand in for the parts to come while a part is trained, and are discarded at the gather.

A head is any module with `log_prob(latent) -> [batch]`; it never draws a sample. A new kind of head is one more entry of
`HEADS`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeflow.config import Config, PartsConfig
from pipeflow.errors import ConfigError
from pipeflow.flow.layers import Shape
from pipeflow.flow.priors import GaussianPrior, Prior, StandardPrior, diagonal_gaussian_terms

HeadMaker = Callable[[Shape], Prior]
"""Makes a head for a latent's shape."""


class MaskedConv(nn.Module):
    """A 3x3 convolution that sees the pixels before each pixel in raster order: the row above, and what is on the left.

    The kernel has two rows, for the third would see later pixels alone.

    sees_itself: whether the pixel itself is seen too, as behind the first of several such convolutions.
    """

    mask: Tensor

    def __init__(self, num_inputs: int, num_outputs: int, sees_itself: bool, generator: torch.Generator | None = None):
        super().__init__()
        mask = torch.ones(2, 3)
        mask[1, 1 + sees_itself :] = 0
        self.register_buffer("mask", mask, persistent=False)
        self.weight = nn.Parameter(torch.zeros(num_outputs, num_inputs, 2, 3))
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        if generator is not None:  # as He et al. (2015) have it for ReLUs, over the weights that count
            scale = math.sqrt(2 / (num_inputs * (4 + sees_itself)))
            self.weight.data.normal_(std=scale, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x, (1, 1, 1, 0)), self.weight * self.mask, self.bias)


class AutoregressiveHead(Prior):
    """A Gaussian for each value given those before it: pixels in raster order, and the channels of a pixel in theirs.

    Masked convolutions (van den Oord et al., 2016) over the pixels before give each pixel means and log-scales. Inside the
    pixel a unit triangular map takes from each channel a multiple of those before it. At the start all of them add
    nothing, so that the head is the Gaussian one. A latent that is flat has the triangular map alone, over all its values;
    one of more than two dimensions behind the channels is seen as an image whose rows are those of all of them.

    width, depth: channels and number of the hidden layers of masked convolutions; depth 0 is a linear map. A latent of one
    pixel has none of them.
    """

    def __init__(self, shape: Shape, width: int = 64, depth: int = 0):
        super().__init__()
        self.shape = shape
        channels = shape[0]
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.mixing = nn.Parameter(torch.zeros(channels, channels))
        self.convs = nn.ModuleList()
        if math.prod(shape[1:]) > 1:
            # A generator of its own: neither the cuts nor the number of heads may change any other initial value.
            generator = torch.Generator().manual_seed(0)
            sizes = [channels, *[width] * depth, 2 * channels]
            for index, (before, behind) in enumerate(zip(sizes, sizes[1:])):
                drawn = generator if index < depth else None
                self.convs.append(MaskedConv(before, behind, sees_itself=index > 0, generator=drawn))

    def _as_image(self, latent: Tensor) -> Tensor:
        rows, columns = (math.prod(self.shape[1:-1]), self.shape[-1]) if len(self.shape) > 1 else (1, 1)
        return latent.reshape(len(latent), self.shape[0], rows, columns)

    def pixel_log_prob(self, latent: Tensor) -> Tensor:
        """log of each pixel's density given the pixels before it: [batch, rows, columns]."""
        image = self._as_image(latent)
        mixing = torch.eye(len(self.mixing), device=latent.device) - self.mixing.tril(-1)
        mixed = functional.conv2d(image, mixing[:, :, None, None])
        mean, log_scale = self.mean.view(1, -1, 1, 1), self.log_scale.view(1, -1, 1, 1)
        if len(self.convs):
            hidden = image
            for conv in self.convs[:-1]:
                hidden = functional.relu(conv(hidden))
            shift, stretch = self.convs[-1](hidden).chunk(2, dim=1)
            mean, log_scale = mean + shift, log_scale + _LARGEST * torch.tanh(stretch / _LARGEST)
        return diagonal_gaussian_terms(mixed, mean, log_scale).sum(dim=1)

    def log_prob(self, latent: Tensor) -> Tensor:
        return self.pixel_log_prob(latent).flatten(1).sum(dim=1)

    def multiply_adds(self) -> int:
        pixels = math.prod(self.shape[1:])
        convolved = sum(conv.weight.numel() for conv in self.convs if isinstance(conv, MaskedConv))
        return (self.mixing.numel() + convolved) * pixels


def _autoregressive(shape: Shape, parts: PartsConfig) -> Prior:
    if shape[0] > _MOST_CHANNELS:
        raise ConfigError(
            f"parts.head: autoregressive has a weight for each pair of a latent's {shape[0]:,} channels, which is too many "
            f"(at most {_MOST_CHANNELS:,} channels): set parts.head to gaussian."
        )
    return AutoregressiveHead(shape, parts.head_width, parts.head_depth)


_MOST_CHANNELS = 4096
_LARGEST = 3.0
"""Bound of what the convolutions add to a log-scale, so that no batch of far latents takes the head out of range."""

HEADS: dict[str, Callable[[Shape, PartsConfig], Prior]] = {
    "gaussian": lambda shape, _: GaussianPrior(shape),
    "standard": lambda shape, _: StandardPrior(shape),
    "autoregressive": _autoregressive,
}
"""Makes a head for a latent's shape, by the kind that `parts.head` names."""


def head_maker(parts: PartsConfig) -> HeadMaker:
    """Returns the function that makes the heads a configuration asks for."""
    return lambda shape: HEADS[parts.head](shape, parts)


def local_heads(config: Config) -> HeadMaker | None:
    """The function that makes the heads of a run; None of one in which no part trains by itself."""
    return head_maker(config.parts) if config.num_local_epochs else None
