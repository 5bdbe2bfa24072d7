"""The transforms of a flow, under one contract.

A layer maps `x` to `(y, contribution)`, where `contribution` ([batch], float32) is what the layer adds to log p(x): its
log-determinant or, for `FactorOut`, the log-prior of the half it takes out, which it returns as a third value. So log p(x)
is one running sum over a list of layers, plus the log-prior of the last latent.

Latents have the shape [batch, channels, height, width]; a user's own layer may use any [batch, ...]. Formulas are those
of Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018), as openai/glow computes them.

An ActNorm beside a convolution is a factor on the convolution's weights and a bias. The methods `folded*` return such
weights, with which a flow step needs fewer passes over memory; the results differ by rounding.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeflow.errors import NoInverse
from pipeflow.flow.counting import count_multiply_adds
from pipeflow.flow.priors import diagonal_gaussian_log_prob

Shape = tuple[int, ...]


class Layer(nn.Module):
    """Base of all transforms. A subclass writes `forward` and `inverse`; the other methods have defaults."""

    num_classes: int | None = None
    """Number of classes of a `ConditionalLayer`; None: the layer takes no labels."""
    image_channels: int | None = None
    """Channels of the images that the layer was made for, which `output_shape` checks; None if it takes any shape."""
    num_taken_out = 0
    """Number of tensors that `forward` returns after the contribution and `inverse` takes after `y`."""
    stays_with_next = False
    """Forbids a cut right after this layer (a squeeze opens the block that follows it)."""
    stays_with_previous = False
    """Forbids a cut right before this layer (a factor-out closes the block that precedes it)."""

    __call__: Callable[..., tuple[Tensor, ...]]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns `(y, contribution)`, then `num_taken_out` tensors. contribution: [batch], what is added to log p(x)."""
        raise TypeError(f"{type(self).__name__} has no forward: a layer returns (y, contribution).")

    def inverse(self, y: Tensor) -> Tensor:
        """Returns the `x` that `forward` maps to `y`."""
        raise NoInverse(f"{type(self).__name__} has no inverse: write one to invert or sample the flow.")

    def sample_inverse(self, y: Tensor, generator: torch.Generator | None, temperature: float) -> Tensor:
        """`inverse`, but a half that the layer takes out is drawn from its prior, with noise scaled by `temperature`."""
        return self.inverse(y)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of `y` for an `x` of this shape, both without the batch. Raises ValueError if the layer cannot take it."""
        # A wrong number of channels might broadcast unseen.
        if self.image_channels is not None and (len(shape) != 3 or shape[0] != self.image_channels):
            raise ValueError(f"it was made for images of {self.image_channels} channels")
        return shape

    def multiply_adds(self, shape: Shape) -> int:
        """Multiply-adds of `forward` for one input of this shape, without elementwise work.

        The default counts them on a copy of the layer. A layer may know better, and say it without being run.
        """
        return count_multiply_adds(self, shape)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets data-dependent initial values from a batch of this layer's inputs.

        It is called before the run, and again where the layer's part begins to train behind parts that have trained. A
        layer that may be trained already keeps a bool buffer `initialized`, and does nothing where it is true.
        """


class ConditionalLayer(Layer):
    """Base of a layer that depends on the label of each image: its methods take the batch's labels too.

    labels: int64, [batch], from 0 to num_classes - 1.
    """

    num_classes: int

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # num_classes says so
        return super().forward(x)

    def inverse(self, y: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return super().inverse(y)

    def sample_inverse(  # type: ignore[override]
        self, y: Tensor, generator: torch.Generator | None, temperature: float, labels: Tensor
    ) -> Tensor:
        return self.inverse(y, labels)

    @torch.no_grad()
    def initialize(self, x: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Sets data-dependent initial values from a batch of this layer's inputs and its labels, as `Layer.initialize`."""


def sum_over_pixels(logdet: Tensor, x: Tensor) -> Tensor:
    """Contribution, [batch], of a layer whose log-determinant at each pixel of `x` is the scalar `logdet`."""
    return (logdet * (x.shape[2] * x.shape[3])).expand(x.shape[0])


class ActNorm(Layer):
    """`y = (x + bias) * exp(3 log_scale)` per channel, initialised so that `y` has zero mean and unit variance.

    The flag `initialized` is kept in the state dict. Only `initialize` reads it, so no forward waits for a GPU.
    """

    initialized: Tensor

    def __init__(self, num_channels: int):
        super().__init__()
        self.image_channels = num_channels
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("initialized", torch.tensor(False))

    def _channels_of(self, parameter: Tensor) -> Tensor:
        return parameter.view(1, -1, 1, 1)

    def normalize(self, x: Tensor) -> Tensor:
        """`y` alone, for a coupling net, which needs no log-determinant."""
        return (x + self._channels_of(self.bias)) * torch.exp(3 * self._channels_of(self.log_scale))

    def folded_behind(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of one convolution that equals a convolution with `weight` followed by this layer."""
        scale = torch.exp(3 * self.log_scale)
        return weight * scale.view(-1, 1, 1, 1), self.bias * scale

    def folded_before(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of one 1x1 convolution that equals this layer followed by `matrix` at each pixel."""
        scaled = matrix * torch.exp(3 * self.log_scale)
        return scaled[:, :, None, None], scaled @ self.bias

    def logdet(self) -> Tensor:
        """Log-determinant at one pixel, a scalar."""
        return 3 * self.log_scale.sum()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.normalize(x), sum_over_pixels(self.logdet(), x)

    def inverse(self, y: Tensor) -> Tensor:
        return y * torch.exp(-3 * self._channels_of(self.log_scale)) - self._channels_of(self.bias)

    def multiply_adds(self, shape: Shape) -> int:
        return 0

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        if self.initialized:
            return
        mean = x.mean(dim=(0, 2, 3))
        deviation = (x - self._channels_of(mean)).square().mean(dim=(0, 2, 3)).sqrt()
        self.bias.copy_(-mean)
        self.log_scale.copy_(-torch.log(deviation + 1e-6) / 3)
        self.initialized.fill_(True)


class InvertibleConv1x1(Layer):
    """A learned matrix W that mixes the channels of each pixel, initialised to a random rotation.

    form: `lu` learns `W = P L (U + diag(sign exp(log_s)))` with P and the signs fixed, so that the log-determinant is the
        sum of `log_s`; `plain` learns W itself and computes `slogdet` in every forward, which is slow on a GPU.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, num_channels: int, form: str = "lu"):
        super().__init__()
        self.image_channels = num_channels
        self.form = form
        rotation, _ = torch.linalg.qr(torch.randn(num_channels, num_channels, dtype=torch.float64))
        if form == "plain":
            self.weight = nn.Parameter(rotation.float())
            return
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_s = nn.Parameter(diagonal.abs().log().float())

    def matrix(self) -> Tensor:
        """W, [channels, channels]: `y[:, :, i, j] = W x[:, :, i, j]`."""
        if self.form == "plain":
            return self.weight
        lower = self.lower.tril(-1) + torch.eye(len(self.log_s), device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.sign * torch.exp(self.log_s))
        return self.permutation @ lower @ upper

    def logdet(self) -> Tensor:
        """log |det W| at one pixel, a scalar."""
        return torch.linalg.slogdet(self.weight)[1] if self.form == "plain" else self.log_s.sum()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return functional.conv2d(x, self.matrix()[:, :, None, None]), sum_over_pixels(self.logdet(), x)

    def inverse(self, y: Tensor) -> Tensor:
        inverse = torch.linalg.inv(self.matrix().double()).to(y.dtype)
        return functional.conv2d(y, inverse[:, :, None, None])

    def multiply_adds(self, shape: Shape) -> int:
        channels, height, width = shape
        return channels * channels * height * width


class ZeroConv(nn.Module):
    """A 3x3 convolution with zero initial weights, whose output channels are scaled by `exp(3 log_scale)`."""

    __call__: Callable[..., Tensor]

    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(num_inputs, num_outputs, 3, padding=1)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)
        self.log_scale = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.conv(x)
        return outputs * torch.exp(3 * self.log_scale.view(1, -1, 1, 1))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the equivalent plain convolution."""
        assert self.conv.bias is not None
        scale = torch.exp(3 * self.log_scale)
        return self.conv.weight * scale.view(-1, 1, 1, 1), self.conv.bias * scale


class Squeeze(Layer):
    """Turns each 2x2 square of pixels into one pixel with four times the channels."""

    stays_with_next = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return functional.pixel_unshuffle(x, 2), x.new_zeros(x.shape[0], dtype=torch.float32)

    def inverse(self, y: Tensor) -> Tensor:
        return functional.pixel_shuffle(y, 2)

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = shape
        if height % 2 or width % 2:
            raise ValueError(f"a squeeze halves height and width, which {height}x{width} does not allow")
        return (4 * channels, height // 2, width // 2)


class FactorOut(Layer):
    """Takes the second half of the channels out of the flow. The first half gives the moments of its Gaussian prior."""

    num_taken_out = 1
    stays_with_previous = True

    def __init__(self, num_channels: int):
        super().__init__()
        self.image_channels = num_channels
        self.num_kept = num_channels // 2
        self.prior = ZeroConv(self.num_kept, 2 * (num_channels - self.num_kept))

    def _mean_and_log_scale(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.prior(kept)
        return outputs[:, 0::2], outputs[:, 1::2]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, taken_out = x[:, : self.num_kept].contiguous(), x[:, self.num_kept :]
        mean, log_scale = self._mean_and_log_scale(kept)
        return kept, diagonal_gaussian_log_prob(taken_out, mean, log_scale), taken_out

    def inverse(self, y: Tensor, taken_out: Tensor) -> Tensor:  # type: ignore[override]  # as num_taken_out says
        return torch.cat([y, taken_out], dim=1)

    def sample_inverse(self, y: Tensor, generator: torch.Generator | None, temperature: float) -> Tensor:
        mean, log_scale = self._mean_and_log_scale(y)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
        return self.inverse(y, mean + torch.exp(log_scale) * temperature * noise)

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = super().output_shape(shape)
        if channels % 2:
            raise ValueError(f"a factor-out halves the channels, which {channels} does not allow")
        return (channels // 2, height, width)

    def multiply_adds(self, shape: Shape) -> int:
        return self.prior.conv.weight.numel() * shape[1] * shape[2]
