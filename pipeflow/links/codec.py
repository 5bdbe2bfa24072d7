"""Codecs write latents for a link: the type of the payload, its bytes, and how the receiver reads it.

    float32, bfloat16   the values in that type
    int8                a byte a value, with a range for each channel of each batch

A part trains on what it will be sent, so both ends use one codec, inside a worker too. Rounded latents are discrete, and a
density fitted to discrete points grows without bound. Hence `int8` dithers: with `u` uniform in [0, 1), known to both ends,

    sent     q = floor((h - low) / step + u)        step = (high - low) / 255
    used     low + step (q - u + 1/2) = h + step e  e uniform in (-1/2, 1/2], independent of h

so the receiver sees the latent plus a small uniform noise, continuous as dequantized images are, and never the grid. With
the same dither added and taken off, the noise has half the variance of rounding first and adding noise after.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pipeflow.flow.layers import Shape

_RANGE_BYTES = 2 * 4
"""Bytes of a channel's `low` and `step`, float32."""

DENSITY_BYTES = 8
"""Bytes of an image's log-density, float64."""


class Codec(ABC):
    """A way to write latents of one shape."""

    dtype: torch.dtype
    """Type of the payload."""
    needs_generator = False
    """Whether the two ends share random numbers."""

    def __init__(self, shape: Shape):
        """shape: [channels, ...] of one latent, without the batch."""
        self.shape = shape

    @abstractmethod
    def encode(self, latent: Tensor, generator: torch.Generator | None) -> Tensor:
        """The payload, contiguous, for a latent, [batch, *shape], float32. Both ends give equal generators."""

    @abstractmethod
    def decode(self, payload: Tensor, generator: torch.Generator | None) -> Tensor:
        """The latent that the receiver trains on, [batch, *shape], float32."""

    def payload_shape(self, batch: int) -> Shape:
        """Shape of the payload of a batch."""
        return (batch, *self.shape)

    def num_bytes(self, batch: int) -> int:
        """Bytes of the payload of a batch."""
        return math.prod(self.payload_shape(batch)) * self.dtype.itemsize


class Cast(Codec):
    """Values in a floating-point type."""

    def __init__(self, shape: Shape, dtype: torch.dtype):
        super().__init__(shape)
        self.dtype = dtype

    def encode(self, latent: Tensor, generator: torch.Generator | None) -> Tensor:
        return latent.to(self.dtype).contiguous()

    def decode(self, payload: Tensor, generator: torch.Generator | None) -> Tensor:
        return payload.float()


class DitheredBytes(Codec):
    """A byte a value. One flat tensor: `low` and `step` of each channel, then the values."""

    needs_generator = True
    dtype = torch.uint8

    def payload_shape(self, batch: int) -> Shape:
        return (_RANGE_BYTES * self.shape[0] + batch * math.prod(self.shape),)

    def encode(self, latent: Tensor, generator: torch.Generator | None) -> Tensor:
        channels = latent.flatten(2) if latent.ndim > 2 else latent.unsqueeze(2)
        low = channels.amin(dim=(0, 2))
        step = ((channels.amax(dim=(0, 2)) - low) / 255).clamp_min(torch.finfo(torch.float32).tiny)
        values = (channels - low[:, None]).div_(step[:, None]).add_(self._dither(channels, generator)).floor_()
        # Where float32 rounds a sum up to the next whole number, 256 would wrap around to 0.
        values = values.clamp_(0, 255).to(torch.uint8)
        return torch.cat([torch.cat([low, step]).view(torch.uint8), values.flatten()])

    def decode(self, payload: Tensor, generator: torch.Generator | None) -> Tensor:
        num_channels = self.shape[0]
        head = _RANGE_BYTES * num_channels
        low, step = payload[:head].view(torch.float32).view(2, num_channels, 1)
        values = payload[head:].view(-1, num_channels, math.prod(self.shape[1:])).float()
        values = (values - self._dither(values, generator)).add_(0.5).mul_(step).add_(low)
        return values.view(-1, *self.shape)

    def _dither(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        assert generator is not None, "both ends draw the dither from generators of their own"
        return torch.rand(like.shape, generator=generator, device=like.device)


class WithDensity:
    """The payload of a pipeline: the log-density so far of each image, float64, and behind it the latents."""

    dtype = torch.uint8

    def __init__(self, latents: Codec):
        self._latents = latents

    def payload_shape(self, batch: int) -> Shape:
        """Shape of the payload of a batch."""
        return (self.num_bytes(batch),)

    def num_bytes(self, batch: int) -> int:
        """Bytes of the payload of a batch."""
        return DENSITY_BYTES * batch + self._latents.num_bytes(batch)

    def join(self, log_density: Tensor, latents: Tensor) -> Tensor:
        """The payload. log_density: [batch], float64; latents: the latents' own payload."""
        return torch.cat([log_density.view(torch.uint8), latents.flatten().view(torch.uint8)])

    def split(self, payload: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """The log-density and the latents' own payload."""
        density, latents = payload[: DENSITY_BYTES * batch], payload[DENSITY_BYTES * batch :]
        shape = self._latents.payload_shape(batch)
        return density.view(torch.float64), latents.view(self._latents.dtype).view(shape)


def make_codec(name: str, shape: Shape) -> Codec:
    """The codec of a `link.dtype`."""
    if name == "int8":
        return DitheredBytes(shape)
    return Cast(shape, {"float32": torch.float32, "bfloat16": torch.bfloat16}[name])
