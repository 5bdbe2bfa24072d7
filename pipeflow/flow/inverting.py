"""A backward that keeps no activations: each layer's input is computed again, from its output, by the layer's inverse.

What is kept of any number of layers is the first input, the last output and the halves taken out on the way. It costs an
inverse and a forward of each layer more. Rounding makes the inputs recovered this way a little different from those that
were there; how different the first one is, which is still known, is measured.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeflow.flow.layers import Layer


def run_inverting(layers: Sequence[Layer], latent: Tensor, measured: Callable[[Tensor], None]) -> tuple[Tensor, Tensor]:
    """What the layers make of `latent`, and the sum of their contributions ([batch], float64).

    measured: called in the backward with the largest difference between `latent` and what the inverses recover of it.
    """
    parameters = [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]
    return _Inverting.apply(layers, measured, latent, *parameters)


class _Inverting(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, layers: Sequence[Layer], measured: Callable, latent: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        output, taken_out = latent, []
        total = torch.zeros(latent.shape[0], dtype=torch.float64, device=latent.device)
        for layer in layers:
            output, contribution, *taken = layer(output)
            total = total + contribution.double()
            taken_out += taken
        ctx.layers, ctx.measured = layers, measured
        ctx.save_for_backward(latent, output, *taken_out)
        return output, total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        latent, output, *taken_out = ctx.saved_tensors
        of_parameters: list[Tensor | None] = []
        for layer in reversed(ctx.layers):
            first = len(taken_out) - layer.num_taken_out
            recovered = layer.inverse(output, *taken_out[first:])
            del taken_out[first:]
            grad, of_layer = _backward_of(layer, recovered, grad, grad_total)
            of_parameters = of_layer + of_parameters
            output = recovered
        ctx.measured((output - latent).abs().amax())
        return None, None, grad, *of_parameters


def _backward_of(layer: Layer, x: Tensor, grad: Tensor, grad_total: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of one layer's input and parameters, from a forward that is forgotten again."""
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y, contribution, *_ = layer(x)
        pairs = [(y, grad), (contribution, grad_total.to(contribution.dtype))]
        outputs, grads = zip(*(pair for pair in pairs if pair[0].requires_grad))
        of_x, *of_parameters = torch.autograd.grad(outputs, [x, *parameters], grads, allow_unused=True)
    return of_x, of_parameters
