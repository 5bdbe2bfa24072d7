"""A part: consecutive layers of a flow with the prior that its latent is measured by."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeflow.errors import ConfigError
from pipeflow.flow.flow import PRIOR, Flow
from pipeflow.flow.inverting import run_inverting
from pipeflow.flow.layers import Layer
from pipeflow.flow.priors import Prior


class PartOutput(NamedTuple):
    """What a part makes of a batch of latents."""

    latent: Tensor
    """h', what the next part gets: [batch, ...]."""
    contribution: Tensor
    """What the part's layers add to log p(x): [batch], float64."""
    log_head: Tensor
    """log head(h'): [batch], float64."""


class Part(nn.Module):
    """A run of consecutive layers of a flow, with the prior that its latent is measured by.

    It shares its layers with the flow: what is trained here is trained there. Names of parameters are the flow's own.
    """

    def __init__(self, flow: Flow, index: int, first: int, last: int, head: Prior | None, activations: str = "keep"):
        """Layers first..last (exclusive); head None: the part ends the flow and takes the flow's own prior.

        activations: what a backward finds of its forward. `keep`: all; `recompute`: the layers' inputs, same numbers;
        `invert`: the part's input and output, from which the inverses recover the rest, up to rounding.
        Raises ConfigError where a layer has no inverse to do that with.
        """
        super().__init__()
        self.index = index
        self.names = flow.names[first:last]
        self.layers = nn.ModuleList(layer for _, layer in list(flow.named_layers())[first:last])
        self.head = flow.prior if head is None else head
        self.head_name = PRIOR if head is None else f"heads.{flow.names[last]}"
        self.input_shape, self.output_shape = flow.shapes[first], flow.shapes[last]
        self._layer_shapes = flow.shapes[first:last]
        self.nats_per_bit_per_dim = flow.num_dims * math.log(2)
        self._activations = activations
        self.reconstruction_error: Tensor | None = None
        """With `invert`, of the last backward: by how much the input that was recovered differs from the input."""
        if activations == "invert":
            for name, layer in zip(self.names, self.layers):
                if type(layer).inverse is Layer.inverse:
                    raise ConfigError(
                        f"memory.activations: invert recovers activations by inverting, but layer {name!r} "
                        f"({type(layer).__name__}) has no inverse: write one, or use recompute."
                    )

    def forward(self, latent: Tensor) -> PartOutput:
        """latent: [batch, *input_shape], float32."""
        latent, total = self._run_layers(latent)
        return PartOutput(latent, total, self.head.log_prob(latent).double())

    def _run_layers(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        with_backward = torch.is_grad_enabled()
        if self._activations == "invert" and with_backward:
            return run_inverting(self.layers, latent, self._measure)
        recompute = self._activations == "recompute" and with_backward
        total = torch.zeros(latent.shape[0], dtype=torch.float64, device=latent.device)
        for layer in self.layers:
            latent, contribution, *_ = checkpoint(layer, latent, use_reentrant=False) if recompute else layer(latent)
            total = total + contribution.double()
        return latent, total

    def _measure(self, error: Tensor) -> None:
        self.reconstruction_error = error

    def loss(self, output: PartOutput) -> Tensor:
        """The truncated objective, mean over the batch, in bits per dimension of the image: a scalar, float64.

        For the last part it is the whole flow's objective but for what the parts before it contribute.
        """
        return -(output.contribution + output.log_head).mean() / self.nats_per_bit_per_dim

    def outgoing(self, output: PartOutput) -> Tensor:
        """The latent that goes on to the next part, detached: no gradient ever comes back."""
        return output.latent.detach()

    @torch.no_grad()
    def initialize(self, latent: Tensor, layers: bool = True, head: bool = True) -> Tensor:
        """Data-dependent initialisation of the layers and of the head, or of one; returns the next part's latent.

        Raises ConfigError for a layer that does not return what its contract says, before anything is trained on it.
        """
        shapes = [*self._layer_shapes[1:], self.output_shape]
        for name, layer, shape in zip(self.names, self.layers, shapes):
            if layers:
                layer.initialize(latent)
            latent, contribution, *_ = layer(latent)
            found = [list(contribution.shape), list(latent.shape)]
            expected = [[len(latent)], [len(latent), *shape]]
            if found != expected:
                raise ConfigError(
                    f"layer {name!r} returns a contribution of shape {found[0]} and a latent of shape {found[1]}: they "
                    f"should be {expected[0]} (one number an image) and {expected[1]} (what output_shape says)."
                )
        if head:
            self.head.initialize(latent)
        return latent

    def multiply_adds(self) -> int:
        """Multiply-adds of one forward of one image through the layers."""
        return sum(layer.multiply_adds(shape) for layer, shape in zip(self.layers, self._layer_shapes))

    def owners(self) -> list[str]:
        """Names of what the part trains: its layers, and its head last."""
        return [*self.names, self.head_name]

    def _modules_by_name(self) -> Iterator[tuple[str, nn.Module]]:
        yield from zip(self.names, self.layers)
        yield self.head_name, self.head

    def global_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by names that do not depend on the cuts: the flow's own, and `heads.<cut>.*`."""
        return {
            f"{name}.{key}": parameter
            for name, module in self._modules_by_name()
            for key, parameter in module.named_parameters()
        }

    def global_state(self) -> dict[str, Tensor]:
        """Parameters and buffers by the same names; the tensors share their memory with the part."""
        return {
            f"{name}.{key}": tensor
            for name, module in self._modules_by_name()
            for key, tensor in module.state_dict().items()
        }

    def describe(self) -> dict:
        """Layers, parameters (head apart) and forward multiply-adds an image, as `summary.json` has them."""
        return {
            "layers": list(self.names),
            "parameters": sum(parameter.numel() for parameter in self.layers.parameters()),
            "head_parameters": sum(parameter.numel() for parameter in self.head.parameters()),
            "forward_macs": self.multiply_adds(),
            "output_shape": list(self.output_shape),
        }
