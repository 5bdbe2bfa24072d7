"""Multiply-adds of a layer, counted by running a copy of it on tensors that have shapes and no memory."""

import copy
import weakref

import torch
from torch import Tensor, nn

from pipeflow.errors import ConfigError
from pipeflow.flow.labels import example_labels

_counted: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]]" = weakref.WeakKeyDictionary()


def count_multiply_adds(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds that `layer.forward` takes for one more image of a shape in its batch; counted once, then known.

    Those of matrix products, convolutions and attention, as `torch.utils.flop_counter` counts them. Work that is the same
    for a batch of any size, such as a product of two of the layer's own matrices, is left out.

    Raises ConfigError where the layer cannot be run on a batch of such images.
    """
    known = _counted.setdefault(layer, {})
    if shape not in known:
        known[shape] = _count(layer, shape)
    return known[shape]


def _count(layer: nn.Module, shape: tuple[int, ...]) -> int:
    try:
        return _marginal(layer, shape, "meta")
    except Exception:  # any: a layer that looks at values, or has tensors torch does not know of, fails in its own way
        pass
    try:
        return _marginal(layer, shape, "cpu")
    except Exception as error:
        kind = type(layer).__name__
        raise ConfigError(
            f"{kind} fails on a batch of shape {[3, *shape]} on which its multiply-adds are to be counted "
            f"({type(error).__name__}: {error}): correct its forward, or give it a method multiply_adds(self, shape) that "
            f"returns them."
        ) from error


def _marginal(layer: nn.Module, shape: tuple[int, ...], device: str) -> int:
    """Cost of the third item of a batch; a single one would not do, because a batch norm refuses it."""
    copied = _copy(layer, device)
    return _flops(copied, (3, *shape), device) // 2 - _flops(copied, (2, *shape), device) // 2


def _copy(layer: nn.Module, device: str) -> nn.Module:
    """A copy of the layer on a device; its tensors take no memory where that is `meta`."""
    moved: dict[int, Tensor] = {}  # by the id of the original, as deepcopy looks for what it has copied already
    for module in layer.modules():
        tensors = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter):
                moved[id(tensor)] = nn.Parameter(tensor.detach().to(device, copy=True), tensor.requires_grad)
            elif isinstance(tensor, Tensor):
                moved[id(tensor)] = tensor.detach().to(device, copy=True)
    return copy.deepcopy(layer, moved)


@torch.no_grad()
def _flops(layer: nn.Module, shape: tuple[int, ...], device: str) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # takes a second, and flows of built-in layers do not need it

    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:  # no number of a run may change
        layer(torch.rand(shape, device=device) - 0.5, **example_labels(layer, shape[0], device))
    return int(counter.get_total_flops())
