"""A part: consecutive layers of a flow, trained by themselves on the head that judges their latent."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeflow.errors import ConfigError
from pipeflow.flow.flow import PRIOR, Flow
from pipeflow.flow.inverting import run_inverting
from pipeflow.flow.labels import common_num_classes, labels_for, with_labels
from pipeflow.flow.layers import Layer
from pipeflow.flow.priors import NoHead, Prior
from pipeflow.flow.running import check_outputs, run_layers

_HEADS = "heads."
"""Names of heads begin so; those of layers, and the flow's own prior, do not."""


def is_head(name: str) -> bool:
    """Whether this is the name of a head, or of a tensor in one: it is no part of the flow."""
    return name.startswith(_HEADS)


class PartOutput(NamedTuple):
    """Result of a part for a batch of latents."""

    latent: Tensor
    """h', the input of the next part: [batch, ...]."""
    contribution: Tensor
    """Sum of the layers' contributions to log p(x): [batch], float64."""
    log_head: Tensor
    """log head(h'): [batch], float64."""


class Part(nn.Module):
    """Layers `first` to `last` (exclusive) of a flow, with a head. The layers are the flow's own, not copies.

    index: position of the part among the flow's parts.
    head: the local prior of the part's latent, or NoHead; None for the part that ends the flow, whose head is the flow's
        prior.
    activations: what the forward keeps for the backward. `keep`: all activations; `recompute`: the layers' inputs, with
        the same numbers; `invert`: the part's input and output, from which inverses recompute the rest up to rounding.

    Raises ConfigError if `activations` is `invert` and a layer has no inverse.
    """

    __call__: Callable[..., PartOutput]

    def __init__(self, flow: Flow, index: int, first: int, last: int, head: Prior | None, activations: str = "keep"):
        super().__init__()
        self.index = index
        self.names = flow.names[first:last]
        self.layers = nn.ModuleList(layer for _, layer in list(flow.named_layers())[first:last])
        self.head = flow.prior if head is None else head
        self.head_name = PRIOR if head is None else f"{_HEADS}{flow.names[last]}"
        self._has_head = not isinstance(head, NoHead)
        self.input_shape, self.output_shape = flow.shapes[first], flow.shapes[last]
        self._layer_shapes = flow.shapes[first:last]
        self.values = flow.values
        self._activations = activations
        self.num_classes = common_num_classes([*self.layers, self.head])
        """Number of classes of the labels that the part's layers or its head take; None: it needs no labels."""
        self.reconstruction_error: Tensor | None = None
        """With `invert`: largest difference between the part's input and its recomputed value in the last backward."""
        if activations == "invert":
            for name, layer in self.named_layers():
                if type(layer).inverse is Layer.inverse:
                    raise ConfigError(
                        f"memory.activations: invert recovers activations by inverting, but layer {name!r} "
                        f"({type(layer).__name__}) has no inverse: write one, or use recompute."
                    )

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """The layers in order, with their names in the flow."""
        for name, layer in zip(self.names, self.layers):
            assert isinstance(layer, Layer)
            yield name, layer

    def forward(self, latent: Tensor, labels: Tensor | None = None) -> PartOutput:
        """latent: [batch, *input_shape], float32; labels: int64, [batch], for a part with `num_classes`."""
        layers = [layer for _, layer in self.named_layers()]
        if self._activations == "invert" and torch.is_grad_enabled():
            latent, total = run_inverting(layers, latent, self._set_reconstruction_error, labels)
        elif self._activations == "recompute" and torch.is_grad_enabled():
            recomputing = [
                functools.partial(checkpoint, layer, use_reentrant=False) for layer in with_labels(layers, labels)
            ]
            latent, total, _ = run_layers(recomputing, latent)
        else:
            latent, total, _ = run_layers(with_labels(layers, labels), latent)
        return PartOutput(latent, total, self.head.log_prob(latent, **labels_for(self.head, labels)).double())

    def _set_reconstruction_error(self, error: Tensor) -> None:
        self.reconstruction_error = error

    def loss(self, output: PartOutput) -> Tensor:
        """The truncated objective `-(contribution + log_head) / (D ln 2)`, mean over the batch: a scalar, float64.

        Its unit is bits per dimension of the image. The last part's loss is the objective of the whole flow without the
        contributions of the earlier parts.
        """
        return -(output.contribution + output.log_head).mean() / self.values.nats_per_bit_per_dim

    def outgoing(self, output: PartOutput) -> Tensor:
        """The latent for the next part, detached so that no gradient ever comes back."""
        return output.latent.detach()

    @torch.no_grad()
    def initialize(
        self, latent: Tensor, layers: bool = True, head: bool = True, labels: Tensor | None = None
    ) -> Tensor:
        """Data-dependent initialisation of the layers, the head or both; returns the latent for the next part.

        Raises ConfigError if a layer's output does not have the shapes that its contract promises.
        """
        shapes = [*self._layer_shapes[1:], self.output_shape]
        for (name, layer), shape in zip(self.named_layers(), shapes):
            given = labels_for(layer, labels)
            if layers:
                layer.initialize(latent, **given)
            outputs = layer(latent, **given)
            check_outputs(name, outputs)
            latent, contribution, *_ = outputs
            found = [list(contribution.shape), list(latent.shape)]
            expected = [[len(latent)], [len(latent), *shape]]
            if found != expected:
                raise ConfigError(
                    f"layer {name!r} returns a contribution of shape {found[0]} and a latent of shape {found[1]}: they "
                    f"should be {expected[0]} (a number for each image) and {expected[1]} (what output_shape says)."
                )
        if head:
            self.head.initialize(latent, **labels_for(self.head, labels))
        return latent

    def uninitialized(self) -> list[Tensor]:
        """The flags `initialized` of layers that have not taken their values from data yet."""
        named = self.layers.named_buffers()
        return [flag for name, flag in named if name.rpartition(".")[2] == "initialized" and not flag]

    def multiply_adds(self, with_head: bool = True) -> int:
        """Multiply-adds of one forward of one image through the layers, and of its density under the head."""
        return sum(self.layer_multiply_adds()) + with_head * self.head_multiply_adds()

    def layer_multiply_adds(self) -> list[int]:
        """Multiply-adds of one forward of one image through each layer."""
        return [layer.multiply_adds(shape) for (_, layer), shape in zip(self.named_layers(), self._layer_shapes)]

    def head_multiply_adds(self) -> int:
        """Multiply-adds of the head, if it tells them; 0 for the part that ends the flow."""
        return self.head.multiply_adds() if isinstance(self.head, Prior) and self.head_name != PRIOR else 0

    def owners(self) -> list[str]:
        """Names of the modules that the part trains: its layers, and its head last if it has one."""
        return [*self.names, *[self.head_name] * self._has_head]

    def _named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self.named_layers()
        if self._has_head:
            yield self.head_name, self.head

    def global_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by names that do not depend on the cuts: the flow's names, and `heads.<cut>.*`."""
        named = ((name, module.named_parameters()) for name, module in self._named_modules())
        return {f"{name}.{key}": parameter for name, parameters in named for key, parameter in parameters}

    def global_state(self) -> dict[str, Tensor]:
        """Parameters and buffers by the same names; the tensors share their memory with the part."""
        named = ((name, module.state_dict().items()) for name, module in self._named_modules())
        return {f"{name}.{key}": tensor for name, tensors in named for key, tensor in tensors}

    def describe(self) -> dict[str, Any]:
        """The part's entry in `summary.json`; `forward_macs` are with the head's, parameters are not."""
        return {
            "layers": list(self.names),
            "parameters": sum(parameter.numel() for parameter in self.layers.parameters()),
            "head_parameters": sum(parameter.numel() for parameter in self.head.parameters()),
            "forward_macs": self.multiply_adds(),
            "head_macs": self.head_multiply_adds(),
            "output_shape": list(self.output_shape),
        }
