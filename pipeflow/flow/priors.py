"""What stands at the end of a flow, or of a part of it: densities of a latent.

A prior, or head, is any module with `log_prob(latent) -> [batch]`, float32; the one of the whole flow can also `sample`.
"""

import math

import torch
from torch import Tensor, nn


def diagonal_gaussian_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log N(x; mean, exp(log_scale)^2), summed over all but the batch: [batch]."""
    terms = -0.5 * math.log(2 * math.pi) - log_scale - 0.5 * (x - mean).square() * torch.exp(-2 * log_scale)
    return terms.flatten(1).sum(dim=1)


class Prior(nn.Module):
    """Base of priors and heads: how likely a latent is."""

    def log_prob(self, latent: Tensor) -> Tensor:
        """log p(latent), [batch]."""
        raise TypeError(f"{type(self).__name__} has no log_prob.")

    def sample(self, num: int, generator: torch.Generator | None, temperature: float) -> Tensor:
        """`num` latents; temperature 0 gives the mean."""
        raise TypeError(f"{type(self).__name__} cannot be sampled.")

    def initialize(self, latent: Tensor) -> None:
        """Sets what is initialised from data, on the first latents that arrive here."""


class GaussianPrior(Prior):
    """A mean and a log-scale for each channel, learned, 0 at the start.

    openai/glow writes its learned top prior as a zero convolution of a constant 0: what is left of that is this.
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


class StandardPrior(Prior):
    """N(0, I), nothing learned."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape

    def log_prob(self, latent: Tensor) -> Tensor:
        zero = torch.zeros((), device=latent.device)
        return diagonal_gaussian_log_prob(latent, zero, zero)

    def sample(self, num: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        return temperature * torch.randn((num, *self.shape), generator=generator)
