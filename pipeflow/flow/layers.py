"""The transforms a flow is made of, under one contract.

A layer takes `x` to `(y, contribution)`, where `contribution` ([batch], float32) is what the layer adds to log p(x): its
log-determinant, or for `FactorOut` the log-prior of the half it takes out, which it returns as a third value. So log p(x)
is one running sum over a list of layers, plus the prior of the last latent.

With `fold`, a flow step and its coupling net compute the same in fewer passes over memory: an ActNorm beside a convolution
is a factor on its weights and a bias, so that what remains are convolutions with ReLUs between them, channels last. The
parameters and their meaning stay; numbers differ by rounding.

Shapes of latents are [batch, channels, height, width]; a layer of one's own may use any [batch, ...]. Formulas are those
of Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018), as openai/glow computes them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeflow.flow.priors import diagonal_gaussian_log_prob

Shape = tuple[int, ...]


class NoInverse(TypeError):
    """A layer without an inverse was to be inverted. Training needs none, sampling does."""


class Layer(nn.Module):
    """Base of all transforms. A subclass gives `forward` and `inverse`; the rest has defaults for the simple case."""

    num_taken_out = 0
    """How many tensors `forward` returns after the contribution, and `inverse` takes after `y`."""
    stays_with_next = False
    """No cut may come right after this layer (a squeeze opens the block it stands before)."""
    stays_with_previous = False
    """No cut may come right before this layer (a factor-out closes the block it stands behind)."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """`(y, contribution)`, contribution: [batch], and `num_taken_out` tensors more."""
        raise TypeError(f"{type(self).__name__} has no forward: a layer returns (y, contribution).")

    def inverse(self, y: Tensor) -> Tensor:
        """The `x` that `forward` takes to `y`."""
        raise NoInverse(f"{type(self).__name__} has no inverse: write one to invert or sample the flow.")

    def sample_inverse(self, y: Tensor, generator: torch.Generator | None, temperature: float) -> Tensor:
        """`inverse`, with what the layer had taken out drawn anew."""
        return self.inverse(y)

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of one output for one input's shape, both without the batch. Raises ValueError where it cannot be."""
        return shape

    def multiply_adds(self, shape: Shape) -> int:
        """Multiply-adds of `forward` for one input of this shape; elementwise work does not count.

        Unless a layer says better, one for each parameter: right for dense nets, too few for convolutions.
        """
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets what is initialised from data, once, from the first batch that arrives here."""


def _check_channels(shape: Shape, num_channels: int) -> Shape:
    """`shape`, where it is what a layer for this many channels takes; one channel too many would broadcast unseen."""
    if len(shape) != 3 or shape[0] != num_channels:
        raise ValueError(f"it was made for images of {num_channels} channels")
    return shape


def _over_pixels(logdet: Tensor, x: Tensor) -> Tensor:
    """The contribution, [batch], of a layer that does the same at each pixel, with this log-determinant."""
    return (logdet * (x.shape[2] * x.shape[3])).expand(x.shape[0])


class ActNorm(Layer):
    """`y = (x + bias) * exp(3 log_scale)` for each channel, initialised to zero mean and unit variance of `y`.

    `initialized` travels in the state dict and is read nowhere but in `initialize`: no forward waits for it.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("initialized", torch.tensor(False))

    def _channels_of(self, parameter: Tensor) -> Tensor:
        return parameter.view(1, -1, 1, 1)

    def normalize(self, x: Tensor) -> Tensor:
        """`y` alone, for use inside a coupling net, where no log-determinant is asked for."""
        return (x + self._channels_of(self.bias)) * torch.exp(3 * self._channels_of(self.log_scale))

    def folded_behind(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that does what one with `weight` and then this layer do."""
        scale = torch.exp(3 * self.log_scale)
        return weight * scale.view(-1, 1, 1, 1), self.bias * scale

    def folded_before(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the 1x1 convolution that does what this layer and then `matrix` do at each pixel."""
        scaled = matrix * torch.exp(3 * self.log_scale)
        return scaled[:, :, None, None], scaled @ self.bias

    def logdet(self) -> Tensor:
        """At one pixel: a scalar."""
        return 3 * self.log_scale.sum()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.normalize(x), _over_pixels(self.logdet(), x)

    def inverse(self, y: Tensor) -> Tensor:
        return y * torch.exp(-3 * self._channels_of(self.log_scale)) - self._channels_of(self.bias)

    def output_shape(self, shape: Shape) -> Shape:
        return _check_channels(shape, len(self.bias))

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
    """A learned mixing of the channels at each pixel, initialised to a random rotation.

    form `lu`: `W = P L (U + diag(sign exp(log_s)))` with P and the signs fixed, so that the log-determinant is a sum;
    form `plain`: `W` itself, with `slogdet` in every forward, which a GPU is slow at.
    """

    def __init__(self, num_channels: int, form: str = "lu"):
        super().__init__()
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
        """log |det W|, a scalar."""
        return torch.linalg.slogdet(self.weight)[1] if self.form == "plain" else self.log_s.sum()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return functional.conv2d(x, self.matrix()[:, :, None, None]), _over_pixels(self.logdet(), x)

    def inverse(self, y: Tensor) -> Tensor:
        inverse = torch.linalg.inv(self.matrix().double()).to(y.dtype)
        return functional.conv2d(y, inverse[:, :, None, None])

    def output_shape(self, shape: Shape) -> Shape:
        return _check_channels(shape, len(self.matrix()))

    def multiply_adds(self, shape: Shape) -> int:
        channels, height, width = shape
        return channels * channels * height * width


class ZeroConv(nn.Module):
    """A 3x3 convolution that starts as 0: zero weights, and `exp(3 log_scale)` on each output channel."""

    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(num_inputs, num_outputs, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        self.log_scale = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * torch.exp(3 * self.log_scale.view(1, -1, 1, 1))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the plain convolution that this is."""
        scale = torch.exp(3 * self.log_scale)
        return self.conv.weight * scale.view(-1, 1, 1, 1), self.conv.bias * scale


class Squeeze(Layer):
    """Each 2x2 square of pixels becomes one pixel with four times the channels."""

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
    """Takes the second half of the channels out of the flow, as Gaussian with mean and log-scale from the first half."""

    num_taken_out = 1
    stays_with_previous = True

    def __init__(self, num_channels: int):
        super().__init__()
        self.num_channels = num_channels
        self.num_kept = num_channels // 2
        self.prior = ZeroConv(self.num_kept, 2 * (num_channels - self.num_kept))

    def _mean_and_log_scale(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.prior(kept)
        return outputs[:, 0::2], outputs[:, 1::2]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, taken_out = x[:, : self.num_kept].contiguous(), x[:, self.num_kept :]
        mean, log_scale = self._mean_and_log_scale(kept)
        return kept, diagonal_gaussian_log_prob(taken_out, mean, log_scale), taken_out

    def inverse(
        self,
        y: Tensor,
        taken_out: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Puts `taken_out` back behind `y`; without it, a draw from the prior at this temperature."""
        if taken_out is None:
            mean, log_scale = self._mean_and_log_scale(y)
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
            taken_out = mean + torch.exp(log_scale) * temperature * noise
        return torch.cat([y, taken_out], dim=1)

    def sample_inverse(self, y: Tensor, generator: torch.Generator | None, temperature: float) -> Tensor:
        return self.inverse(y, None, generator, temperature)

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = _check_channels(shape, self.num_channels)
        if channels % 2:
            raise ValueError(f"a factor-out halves the channels, which {channels} does not allow")
        return (channels // 2, height, width)

    def multiply_adds(self, shape: Shape) -> int:
        return self.prior.conv.weight.numel() * shape[1] * shape[2]
