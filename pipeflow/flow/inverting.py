"""A backward that keeps no activations: the inverse of each layer recomputes the layer's input from its output.

Only the first input, the last output and the tensors taken out on the way are kept, for any number of layers. The price
is one more inverse and forward of each layer. Rounding makes the recomputed inputs differ a little from the original ones;
the difference at the first input, the only one that is still known, is measured.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeflow.flow.labels import labels_for, with_labels
from pipeflow.flow.layers import Layer
from pipeflow.flow.running import run_layers


def run_inverting(
    layers: Sequence[Layer], latent: Tensor, report: Callable[[Tensor], None], labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Applies the layers: their output for `latent`, and the sum of their contributions, [batch], float64.

    report: called in the backward with the largest difference between `latent` and its recomputed value, a scalar.
    labels: of the batch, for the layers that take them.
    """
    parameters = [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]
    result: tuple[Tensor, Tensor] = _Inverting.apply(layers, report, labels, latent, *parameters)
    return result


class _Inverting(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layers: Sequence[Layer],
        report: Callable[[Tensor], None],
        labels: Tensor | None,
        latent: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        output, total, taken_out = run_layers(with_labels(layers, labels), latent)
        ctx.layers, ctx.report, ctx.labels = layers, report, labels
        ctx.save_for_backward(latent, output, *taken_out)
        return output, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        latent, output, *taken_out = ctx.saved_tensors
        parameter_grads: list[Tensor | None] = []
        for layer in reversed(ctx.layers):
            first = len(taken_out) - layer.num_taken_out
            given = labels_for(layer, ctx.labels)
            output = layer.inverse(output, *taken_out[first:], **given)
            del taken_out[first:]
            grad, layer_grads = _layer_grads(layer, given, output, grad, grad_total)
            parameter_grads = layer_grads + parameter_grads
        ctx.report((output - latent).abs().amax())
        return None, None, None, grad, *parameter_grads


def _layer_grads(
    layer: Layer, given: dict[str, Tensor], x: Tensor, grad: Tensor, grad_total: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of one layer's input and parameters, from a forward whose activations are freed on return.

    given: the labels, if the layer takes them.
    """
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y, contribution, *_ = layer(x, **given)
        pairs = [(y, grad), (contribution, grad_total.to(contribution.dtype))]
        outputs, grads = zip(*(pair for pair in pairs if pair[0].requires_grad))
        x_grad, *parameter_grads = torch.autograd.grad(outputs, [x, *parameters], grads, allow_unused=True)
    return x_grad, list[Tensor | None](parameter_grads)
