"""Densities of a latent: the prior of a flow's last latent, and the base of the heads of parts."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeflow.errors import NoInverse


def diagonal_gaussian_terms(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log N(x; mean, exp(log_scale)^2) of each value: x's shape."""
    return -0.5 * math.log(2 * math.pi) - log_scale - 0.5 * (x - mean).square() * torch.exp(-2 * log_scale)


def diagonal_gaussian_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log N(x; mean, exp(log_scale)^2), summed over all dimensions but the batch: [batch]."""
    return diagonal_gaussian_terms(x, mean, log_scale).flatten(1).sum(dim=1)


class Prior(nn.Module):
    """Base of priors and heads. A head needs only `log_prob`; the prior of a whole flow also needs `sample`."""

    num_classes: int | None = None
    """Number of classes of a `ConditionalPrior`; None: the prior takes no labels."""

    def log_prob(self, latent: Tensor) -> Tensor:
        """log p(latent), [batch], float32."""
        raise TypeError(f"{type(self).__name__} has no log_prob.")

    def sample(self, num: int, generator: torch.Generator | None, temperature: float) -> Tensor:
        """`num` latents with noise scaled by `temperature`; temperature 0 gives the mean."""
        raise NoInverse(f"{type(self).__name__} cannot be sampled: write its sample(num, generator, temperature).")

    def initialize(self, latent: Tensor) -> None:
        """Sets data-dependent initial values from the first batch of latents. The default has none."""

    def multiply_adds(self) -> int:
        """Multiply-adds of the density of one latent. The default has no matrix products, hence none."""
        return 0


class ConditionalPrior(Prior):
    """Base of a prior that depends on the label of each image: its methods take the batch's labels too.

    labels: int64, [batch], from 0 to num_classes - 1.
    """

    num_classes: int

    def log_prob(self, latent: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]  # num_classes says so
        """log p(latent | label), [batch], float32."""
        return super().log_prob(latent)

    def sample(  # type: ignore[override]
        self, num: int, generator: torch.Generator | None, temperature: float, labels: Tensor
    ) -> Tensor:
        """A latent for each of `num` labels, with noise scaled by `temperature`; temperature 0 gives the mean."""
        raise NoInverse(
            f"{type(self).__name__} cannot be sampled: write its sample(num, generator, temperature, labels)."
        )

    def initialize(self, latent: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Sets data-dependent initial values from the first batch of latents and its labels. The default has none."""


class GaussianPrior(Prior):
    """A learned Gaussian with a mean and a log-scale per channel, both 0 at the start.

    It equals the learned top prior of openai/glow, a zero convolution applied to a constant 0.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape
        self.mean = nn.Parameter(torch.zeros(shape[0]))
        self.log_scale = nn.Parameter(torch.zeros(shape[0]))

    def _moments(self) -> tuple[Tensor, Tensor]:
        per_channel = (1, -1) + (1,) * (len(self.shape) - 1)
        return self.mean.view(per_channel), self.log_scale.view(per_channel)

    def log_prob(self, latent: Tensor) -> Tensor:
        return diagonal_gaussian_log_prob(latent, *self._moments())

    def sample(self, num: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        mean, log_scale = self._moments()
        noise = torch.randn((num, *self.shape), generator=generator).to(mean.device)
        return mean + torch.exp(log_scale) * temperature * noise


class ClassPrior(ConditionalPrior):
    """A learned Gaussian for each class: that of `GaussianPrior`, with a shift of mean and log-scale by the label.

    It equals the top prior of openai/glow with `ycond`, whose embedding of the label is a linear map of its one-hot vector,
    zero at the start. The map's bias and its scale of the outputs are left out: they add no other Gaussians.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int):
        super().__init__()
        self.shape = shape
        self.num_classes = num_classes
        self.mean = nn.Parameter(torch.zeros(shape[0]))
        self.log_scale = nn.Parameter(torch.zeros(shape[0]))
        self.embedding = nn.Parameter(torch.zeros(num_classes, 2 * shape[0]))
        """For each class what is added to the means, and to the log-scales."""

    def _moments(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        moments = torch.cat([self.mean, self.log_scale]) + functional.embedding(labels, self.embedding)
        mean, log_scale = moments.view(len(labels), -1, *[1] * (len(self.shape) - 1)).chunk(2, dim=1)
        return mean, log_scale

    def log_prob(self, latent: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return diagonal_gaussian_log_prob(latent, *self._moments(labels))

    def sample(  # type: ignore[override]
        self, num: int, generator: torch.Generator | None, temperature: float, labels: Tensor
    ) -> Tensor:
        mean, log_scale = self._moments(labels.to(self.mean.device))
        noise = torch.randn((num, *self.shape), generator=generator).to(mean.device)
        return mean + torch.exp(log_scale) * temperature * noise


class NoHead(Prior):
    """Stands where a part has no head, because the parts behind it train with it: adds nothing."""

    def log_prob(self, latent: Tensor) -> Tensor:
        return latent.new_zeros(len(latent))


class StandardPrior(Prior):
    """N(0, I), without parameters."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape

    def log_prob(self, latent: Tensor) -> Tensor:
        zero = torch.zeros((), device=latent.device)
        return diagonal_gaussian_log_prob(latent, zero, zero)

    def sample(self, num: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        return temperature * torch.randn((num, *self.shape), generator=generator)
