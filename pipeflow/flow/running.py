"""Runs layers one after the other on a batch of latents."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pipeflow.errors import ConfigError
from pipeflow.flow.labels import labels_for
from pipeflow.flow.layers import Layer


def run_layers(
    layers: Iterable[Callable[[Tensor], tuple[Tensor, ...]]], x: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Applies the layers in order: `(y, total, taken_out)`.

    total: sum of all contributions, [batch], float64, taken in layer order.
    taken_out: the tensors that layers took out, in order.
    """
    total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    taken_out: list[Tensor] = []
    for layer in layers:
        outputs = layer(x)
        check_outputs(type(layer).__name__, outputs)
        x, contribution, *taken = outputs
        total = total + contribution.double()
        taken_out += taken
    return x, total, taken_out


def sample_layers(
    layers: Sequence[Layer],
    latent: Tensor,
    generator: torch.Generator | None,
    temperature: float,
    labels: Tensor | None,
) -> Tensor:
    """Runs layers backward from a latent, and draws what they factored out: the input that would lead to it."""
    for layer in reversed(layers):
        latent = layer.sample_inverse(latent, generator, temperature, **labels_for(layer, labels))
    return latent


def check_outputs(name: str, outputs: object) -> None:
    """Raises ConfigError where the layer called `name` returns something else than tensors (y, contribution, ...)."""
    values = outputs if isinstance(outputs, tuple | list) else [outputs]
    if len(values) < 2 or not all(isinstance(each, Tensor) for each in values):
        kinds = ", ".join(type(each).__name__ for each in values)
        raise ConfigError(
            f"layer {name!r} returns {kinds}: a layer returns two tensors or more, (y, contribution). A "
            f"contribution of zero is x.new_zeros(len(x)), a number for each image."
        )
