"""Layers of flows that were written for normflows or zuko, which pipeflow does not import.

The modules themselves become layers, not copies: what is trained here is trained there, and the other way round.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeflow.errors import ConfigError
from pipeflow.flow.layers import Layer

_INSTEAD = {
    "Squeeze": "pipeflow.flow.Squeeze, which has the same order of channels",
    "Split": "pipeflow.flow.FactorOut, which has a prior of its own",
    "Merge": "pipeflow.flow.FactorOut, which has a prior of its own",
}
"""Blocks of normflows that change the shape of a latent, and what takes their place."""


class NormflowsLayer(Layer):
    """A block of normflows. Its `inverse` goes from data to latents, as `forward` does here.

    Raises ConfigError where it is none, or one that changes the shape of a latent.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        kind = type(block).__name__
        if not _derives_from(block, "normflows", "Flow"):
            raise ConfigError(
                f"flow: {kind} is no block of normflows: give one that derives from normflows.flows.Flow."
            )
        if kind in _INSTEAD:
            raise ConfigError(f"flow: normflows' {kind} changes the shape of a latent: put {_INSTEAD[kind]}, there.")
        self.block = block

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, logdet = self.block.inverse(x)  # type: ignore[operator]  # a method, as the class has one
        return y, x.new_zeros(len(x)) + logdet  # which is a single number where it does not depend on x

    def inverse(self, y: Tensor) -> Tensor:
        x: Tensor = self.block(y)[0]
        return x

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        self(x)  # an ActNorm of normflows initialises itself on the first batch that it gets, and keeps a flag


class ZukoLayer(Layer):
    """A lazy transform of zuko without a context. It goes from data to latents, as layers do here.

    Raises ConfigError where it is none, such as a plain transform, whose parameters nobody could find.
    """

    def __init__(self, transform: nn.Module):
        super().__init__()
        if not _derives_from(transform, "zuko", "LazyTransform"):
            raise ConfigError(
                f"flow: {type(transform).__name__} is no lazy transform of zuko: give one that derives from "
                f"zuko.lazy.LazyTransform, such as a plain transform in zuko.lazy.UnconditionalTransform."
            )
        self.transform = transform

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, logdet = self.transform().call_and_ladj(x)
        return y, logdet.reshape(len(x), -1).sum(dim=1)  # of a transform of single values it has the shape of x

    def inverse(self, y: Tensor) -> Tensor:
        x: Tensor = self.transform().inv(y)
        return x


def from_normflows(flow: nn.Module | Iterable[nn.Module]) -> list[Layer]:
    """The layers of a `normflows.NormalizingFlow`, or of its blocks in normflows' order, which is from latents to data.

    Its base is left out: `Flow(layers, shape, prior=StandardPrior(shape))` has the likelihood of one with a
    `DiagGaussian(..., trainable=False)`, and `Flow(layers, shape)` trains a Gaussian.

    Raises ConfigError for a MultiscaleFlow, and as `NormflowsLayer` does.
    """
    if hasattr(flow, "merges"):
        raise ConfigError(
            f"flow: normflows' {type(flow).__name__} has several latents: give from_normflows the blocks of each level, "
            f"and put pipeflow.flow.Squeeze and FactorOut between the levels."
        )
    blocks = getattr(flow, "flows", flow) if hasattr(flow, "q0") else flow
    return [NormflowsLayer(block) for block in reversed(_listed(blocks))]


def from_zuko(flow: nn.Module | Iterable[nn.Module]) -> list[Layer]:
    """The layers of a flow of zuko, or of its lazy transforms in zuko's order, which is from data to latents.

    Its base is left out: `Flow(layers, shape, prior=StandardPrior(shape))` has the likelihood of one with zuko's default.

    Raises ConfigError as `ZukoLayer` does.
    """
    transform: Any = getattr(flow, "transform", flow) if hasattr(flow, "base") else flow
    return [ZukoLayer(each) for each in _listed(getattr(transform, "transforms", transform))]


def _derives_from(value: object, package: str, kind: str) -> bool:
    """Whether a value is of a class of that name in a package, which need not be installed."""
    bases = type(value).__mro__
    return any(each.__name__ == kind and each.__module__.partition(".")[0] == package for each in bases)


def _listed(modules: Any) -> list[nn.Module]:
    return list(modules) if isinstance(modules, Iterable) else [modules]
