"""What a worker's memory holds at most: weights, gradients, moments, what a backward needs, and what waits on links.

On the CPU also the copy of them that a checkpoint is written from; the copy of what is on a GPU is in the host's memory.

What a backward needs is counted, not computed: the flow runs once on tensors without memory, and autograd tells each
tensor that it keeps. Left out is what lives within one operation (a convolution's workspace) and the allocator's slack.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeflow.flow import Flow, Part
from pipeflow.plan.fake import without_memory

_COUNTED = (2, 4)
"""Batch sizes of the two runs that separate what grows with the batch from what does not."""

_FLOAT = 4
"""Bytes of a value of a latent."""

MOMENTS = 2
"""Values that Adam and Adamax keep for each parameter."""

Saved = dict[int, int]
"""Bytes of each storage that is kept, by its number."""


@dataclass(frozen=True)
class Kept:
    """Bytes kept from a forward until its backward: `fixed + per_image * images`."""

    fixed: float
    per_image: float

    def at(self, num_images: float) -> float:
        """For a batch."""
        return self.fixed + self.per_image * num_images


class Activations:
    """What autograd keeps for each layer of a flow."""

    def __init__(self, flow: Flow, activations: str = "keep"):
        """Runs the flow forward twice, without memory.

        activations: as of `Part`; other than `keep`, one layer's activations are there at a time.
        """
        self._by_size = [_saved_by_layer(flow, size) for size in _COUNTED]
        latents = [_FLOAT * math.prod(shape) for shape in flow.shapes]
        self._input_bytes = dict(zip(flow.names, latents))
        self._taken_out = dict(zip(flow.names, (before - after for before, after in zip(latents, latents[1:]))))
        self._activations = activations
        self._known: dict[tuple[str, str], Kept] = {}

    def of_layers(self, names: Iterable[str]) -> Kept:
        """Kept by these layers. What two of them keep both is counted once."""
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
        return _line([_union(saved[name] for name in names) for saved in self._by_size])

    def of(self, part: Part) -> Kept:
        """Kept by a part: its layers, and its head."""
        ends = part.names[0], part.names[-1]
        if ends not in self._known:
            layers, head = self.of_layers(part.names), self._of_head(part)
            self._known[ends] = Kept(layers.fixed + head.fixed, layers.per_image + head.per_image)
        return self._known[ends]

    def _of_head(self, part: Part) -> Kept:
        counts = []
        for batch_size in _COUNTED:
            with without_memory():
                latent = torch.empty(batch_size, *part.output_shape).requires_grad_()
                saved, _ = _keeping(part.head, lambda latent=latent: part.head.log_prob(latent))
            counts.append(_union([saved]))
        return _line(counts)


def _line(counts: Sequence[int]) -> Kept:
    """Through the counts at the two batch sizes."""
    per_image = (counts[1] - counts[0]) / (_COUNTED[1] - _COUNTED[0])
    return Kept(counts[0] - per_image * _COUNTED[0], per_image)


def saved_bytes(module: nn.Module, inputs: Tensor) -> Saved:
    """Storages kept for the backward of a forward of `inputs`, real or fake; parameters and buffers do not count."""
    saved, _ = _keeping(module, lambda: module(inputs))
    return saved


def part_bytes(part: Part) -> tuple[int, int]:
    """Bytes of the parameters that are trained with a part, its head's with them, and of its buffers."""
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in part.parameters())
    return parameters, sum(buffer.numel() * buffer.element_size() for buffer in part.buffers())


def trained_bytes(parts: Sequence[Part], ema: bool) -> int:
    """Weights, gradients, moments, and averages where there are any."""
    parameters, buffers = map(sum, zip(*(part_bytes(part) for part in parts)))
    return parameters * (2 + MOMENTS + ema) + buffers


def copied_bytes(parts: Sequence[Part], ema: bool) -> int:
    """Of the copy in host memory that a checkpoint is written from: all that is trained, but for the gradients."""
    parameters, buffers = map(sum, zip(*(part_bytes(part) for part in parts)))
    return parameters * (1 + MOMENTS + ema) + buffers


def flow_bytes(part: Part, ema: bool) -> int:
    """What the gather sends of a trained part: all but a local head. As `costs.gather_bytes`, without a state dict."""
    modules = [*part.layers, *([] if part.head_name.startswith("heads.") else [part.head])]
    parameters = sum(each.numel() * each.element_size() for module in modules for each in module.parameters())
    buffers = sum(each.numel() * each.element_size() for module in modules for each in module.buffers())
    return parameters * (1 + MOMENTS + ema) + buffers


def _saved_by_layer(flow: Flow, batch_size: int) -> dict[str, Saved]:
    with without_memory():
        latent = torch.empty(batch_size, *flow.shape)
        by_layer, holding = {}, []
        for name, layer in flow.named_layers():
            own = latent
            (by_layer[name], held), latent = _run(layer, own)
            holding.append(held)  # a storage that is freed would give its number to another
    return by_layer


def _run(layer: nn.Module, latent: Tensor) -> tuple[tuple[Saved, list], Tensor]:
    outputs: list[Tensor] = []
    saved, held = _keeping(layer, lambda: outputs.extend(layer(latent)))
    return (saved, held), outputs[0]


def _keeping(module: nn.Module, run: Callable[[], object]) -> tuple[Saved, list]:
    weights = {tensor.untyped_storage()._cdata for tensor in [*module.parameters(), *module.buffers()]}
    saved: Saved = {}
    held = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
            held.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held.append(run())
    return saved, held


def _union(several: Iterable[Saved]) -> int:
    together: Saved = {}
    for saved in several:
        together.update(saved)
    return sum(together.values())
