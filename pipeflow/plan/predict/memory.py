"""Bytes that a worker's memory holds at most: weights, gradients, moments, activations, and latents that wait on links.

On the CPU they include the copy that a checkpoint is written from; the copy of a GPU's tensors is in the host's memory.

Activations are counted, not computed: the flow runs forward on tensors without memory, and autograd reports each tensor
that it keeps. Tensors that live within one operation (a convolution's workspace) and the allocator's slack are left out.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeflow.flow import Flow, Part
from pipeflow.flow.labels import example_labels
from pipeflow.plan.without_memory import WITHOUT_MEMORY

Output = TypeVar("Output")

_COUNTED = (2, 4)
"""Batch sizes of the two runs that separate what grows with the batch from what does not."""

_FLOAT = 4
"""Bytes of a value of a latent."""

MOMENTS = 2
"""Values that Adam and Adamax keep for each parameter."""

Saved = dict[int, torch.UntypedStorage]
"""Storages that are kept for a backward, by their numbers, which are unique as long as the storages are held."""


@dataclass(frozen=True)
class Kept:
    """Bytes kept from a forward until its backward: `fixed + per_image * images`."""

    fixed: float
    per_image: float

    def at(self, num_images: float) -> float:
        """Bytes kept of a batch."""
        return self.fixed + self.per_image * num_images


class Activations:
    """Bytes that autograd keeps of each layer of a flow."""

    def __init__(self, flow: Flow, activations: str = "keep"):
        """Runs the flow forward twice, without memory.

        activations: as for `Part`; with any but `keep`, one layer's activations are there at a time.
        """
        self._by_size = [_saved_by_layer(flow, size) for size in _COUNTED]
        latents = [_FLOAT * math.prod(shape) for shape in flow.shapes]
        self._input_bytes = dict(zip(flow.names, latents))
        self._taken_out = dict(zip(flow.names, (before - after for before, after in zip(latents, latents[1:]))))
        self._activations = activations
        self._known: dict[tuple[str, str], Kept] = {}

    def of_layers(self, names: Iterable[str]) -> Kept:
        """Bytes that these layers keep; a tensor that two of them keep is counted once."""
        names = list(names)
        if self._activations == "keep":
            return self._of_saved(names)
        fullest = max((self._of_saved([name]) for name in names), key=lambda kept: kept.per_image)
        inputs = [self._input_bytes[name] for name in names]
        if self._activations == "recompute":
            return Kept(fullest.fixed, fullest.per_image + sum(inputs))
        taken_out = sum(self._taken_out[name] for name in names)
        output = inputs[0] - taken_out
        return Kept(fullest.fixed, fullest.per_image + inputs[0] + taken_out + output)

    def _of_saved(self, names: Sequence[str]) -> Kept:
        return _line([_bytes_of(saved[name] for name in names) for saved in self._by_size])

    def of(self, part: Part) -> Kept:
        """Bytes that a part's layers and its head keep."""
        ends = part.names[0], part.names[-1]
        if ends not in self._known:
            layers, head = self.of_layers(part.names), self._of_head(part)
            self._known[ends] = Kept(layers.fixed + head.fixed, layers.per_image + head.per_image)
        return self._known[ends]

    def _of_head(self, part: Part) -> Kept:
        counts = []
        for batch_size in _COUNTED:
            with WITHOUT_MEMORY:
                latent = torch.empty(batch_size, *part.output_shape).requires_grad_()
                given = example_labels(part.head, batch_size, latent.device)
                saved, _ = _keeping(part.head, functools.partial(part.head.log_prob, **given), latent)
            counts.append(_bytes_of([saved]))
        return _line(counts)


def _line(counts: Sequence[int]) -> Kept:
    """The line through the counts at the two batch sizes."""
    per_image = (counts[1] - counts[0]) / (_COUNTED[1] - _COUNTED[0])
    return Kept(counts[0] - per_image * _COUNTED[0], per_image)


def saved_bytes(module: nn.Module, inputs: Tensor) -> int:
    """Bytes kept for the backward of a forward of `inputs`, with or without memory; weights do not count."""
    saved, _ = _keeping(module, module, inputs)
    return _bytes_of([saved])


def _parameters_and_buffers(parts: Sequence[Part]) -> tuple[int, int]:
    """Bytes of the parameters that are trained with these parts, their heads' with them, and of their buffers."""
    parameters = sum(each.nbytes for part in parts for each in part.parameters())
    return parameters, sum(each.nbytes for part in parts for each in part.buffers())


def trained_bytes(parts: Sequence[Part], ema: bool) -> int:
    """Bytes of weights, gradients, moments, and averages where there are any, local heads included."""
    parameters, buffers = _parameters_and_buffers(parts)
    return parameters * (2 + MOMENTS + ema) + buffers


def copied_bytes(parts: Sequence[Part], ema: bool) -> int:
    """Bytes of the copy in host memory that a checkpoint is written from: all that is trained, but for the gradients."""
    parameters, buffers = _parameters_and_buffers(parts)
    return parameters * (1 + MOMENTS + ema) + buffers


def _saved_by_layer(flow: Flow, batch_size: int) -> dict[str, Saved]:
    with WITHOUT_MEMORY:
        latent = torch.empty(batch_size, *flow.shape)
        by_layer = {}
        for name, layer in flow.named_layers():
            given = example_labels(layer, batch_size, latent.device)
            by_layer[name], outputs = _keeping(layer, functools.partial(layer, **given), latent)
            latent = outputs[0]
    return by_layer


def _keeping(module: nn.Module, run: Callable[..., Output], inputs: Tensor) -> tuple[Saved, Output]:
    """Storages that autograd keeps of `run(inputs)`, without the module's own, and the output."""
    own = {tensor.untyped_storage()._cdata for tensor in [*module.parameters(), *module.buffers()]}
    saved: Saved = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return saved, run(inputs)


def _bytes_of(several: Iterable[Saved]) -> int:
    """Bytes of all these storages; one that is in several of them is counted once."""
    together: Saved = {}
    for saved in several:
        together |= saved
    return sum(storage.nbytes() for storage in together.values())
