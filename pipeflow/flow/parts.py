"""Parts: where to cut a flow, what a part is trained on, and what it costs.

    layers   squeeze steps.0 steps.1 | steps.2 steps.3 factor_out squeeze ... | ...
    parts    ------- part 0 -------- | ------------- part 1 --------------- | part 2
    priors                     head 0                                  head 1   the flow's own top prior

A cut is written as the name of the layer it falls before, and the head of the part in front of it bears that name too.
"""

import difflib
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeflow.errors import ConfigError
from pipeflow.flow.flow import PRIOR, Flow
from pipeflow.flow.inverting import run_inverting
from pipeflow.flow.layers import Layer
from pipeflow.flow.priors import PRIORS, Prior


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


def split_flow(flow: Flow, cuts: Sequence[str], head: str = "gaussian", activations: str = "keep") -> list[Part]:
    """The flow's parts, cut before each of the named layers; no cuts give one part, the whole flow.

    activations: as of `Part`.

    Raises ConfigError for a cut that cannot be made.
    """
    _check_cuts(flow, cuts)
    bounds = [0, *(flow.names.index(cut) for cut in cuts), len(flow.names)]
    parts = []
    for index, (first, last) in enumerate(zip(bounds, bounds[1:])):
        is_last = last == len(flow.names)
        prior = None if is_last else PRIORS[head](flow.shapes[last])
        parts.append(Part(flow, index, first, last, prior, activations))
    return parts


def cut_names(
    flow: Flow, split: str | Sequence[str], num: int | None = None, costs: Sequence[float] | None = None
) -> list[str]:
    """The cuts of a kind of split (`blocks`, `across`, `balanced`) into `num` parts, or a list of names, checked.

    costs: of each layer, which `balanced` evens out; None: multiply-adds.

    Raises ConfigError saying which cut cannot be made and why.
    """
    if split == "blocks":
        cuts = _between_blocks(flow)
    elif split == "across":
        cuts = _across_blocks(flow, num or 1)
    elif split == "balanced":
        cuts = _balanced(flow, num or 1, multiply_adds(flow) if costs is None else costs)
    else:
        cuts = [split] if isinstance(split, str) else list(split)
    _check_cuts(flow, cuts)
    if num is not None and len(cuts) != num - 1:
        raise ConfigError(f"parts.num: {num} does not agree with parts.split, which gives {len(cuts) + 1} parts.")
    return cuts


def balance(costs: Sequence[float], num: int) -> list[int]:
    """First index of each of `num` runs of consecutive items whose most expensive run is as cheap as can be.

    Of several such ways, the one with the smallest sum of squared costs. E.g. `balance([3, 1, 1, 1], 2) == [0, 1]`.
    """
    total = [0]
    for cost in costs:
        total.append(total[-1] + cost)
    largest = _least_largest(total, num)
    # ways[end]: the least sum of squares of the runs so far, which end there, and where the last of them begins.
    ways: dict[int, tuple[float, int]] = {0: (0, 0)}
    by_run = []
    for run in range(num):
        longer: dict[int, tuple[float, int]] = {}
        for first, (value, _) in ways.items():
            for end in range(first + 1, len(costs) - (num - run - 1) + 1):
                cost = total[end] - total[first]
                if cost > largest:
                    break
                candidate = value + cost * cost
                if end not in longer or candidate < longer[end][0]:
                    longer[end] = (candidate, first)
        by_run.append(longer)
        ways = longer
    end, starts = len(costs), []
    for ways in reversed(by_run):
        end = ways[end][1]
        starts.append(end)
    return starts[::-1]


def _least_largest(total: Sequence[float], num: int) -> float:
    """Cost of the most expensive of `num` runs at best, by bisection; total: costs of the items before each."""
    candidates = sorted({last - first for index, first in enumerate(total) for last in total[index + 1 :]})

    def is_enough(bound: float) -> bool:
        """Whether runs that are filled up to the bound are no more than `num`: then there are `num` of them."""
        start = 0
        for _ in range(num):
            start = bisect_right(total, bound, lo=start + 1, key=lambda until, before=total[start]: until - before) - 1
            if start == len(total) - 1:
                return True
        return False

    return candidates[bisect_left(candidates, True, key=is_enough)]


def _blocks(flow: Flow) -> dict[str, list[str]]:
    """Names of layers by block, for layers called `blocks.B.*`."""
    blocks: dict[str, list[str]] = {}
    for name in flow.names:
        match = re.match(r"(blocks\.\d+)\.", name)
        if match is None:
            raise ConfigError(
                f"parts.split: 'blocks' and 'across' need layers called blocks.B.*, this flow has {name!r}: "
                f"use 'balanced' or names of layers."
            )
        blocks.setdefault(match[1], []).append(name)
    return blocks


def _between_blocks(flow: Flow) -> list[str]:
    return [names[0] for names in _blocks(flow).values()][1:]


def _across_blocks(flow: Flow, num: int) -> list[str]:
    """Cut i in the middle of block i, before step `num_steps // 2`."""
    blocks = list(_blocks(flow).values())
    if num - 1 > len(blocks):
        raise ConfigError(
            f"parts.num: {num} parts across blocks need {num - 1} blocks to cut in, this flow has {len(blocks)}."
        )
    steps = [[name for name in names if ".steps." in name] for names in blocks[: num - 1]]
    if not all(steps):
        raise ConfigError("parts.split: 'across' needs layers called blocks.B.steps.S: use 'balanced' or layer names.")
    return [names[len(names) // 2] for names in steps]


def multiply_adds(flow: Flow) -> list[int]:
    """Of one forward of one image through each layer."""
    return [layer.multiply_adds(shape) for (_, layer), shape in zip(flow.named_layers(), flow.shapes)]


def _balanced(flow: Flow, num: int, costs: Sequence[float]) -> list[str]:
    starts = [index for index in range(len(flow.names)) if _obstacle(flow, index) is None]
    starts = [0, *starts]
    if num > len(starts):
        raise ConfigError(f"parts.num: {num} parts, but this flow can be cut into {len(starts)} at most.")
    groups = [sum(costs[first:last]) for first, last in zip(starts, [*starts[1:], len(costs)])]
    return [flow.names[starts[group]] for group in balance(groups, num)[1:]]


def _obstacle(flow: Flow, index: int) -> str | None:
    """Why no cut may fall before this layer, None where it may."""
    layers = list(flow.named_layers())
    name, layer = layers[index]
    if index == 0:
        return "nothing stands before it, the part would be empty"
    before_name, before = layers[index - 1]
    if before.stays_with_next:
        return f"{before_name!r} belongs to the layer behind it, cut before {before_name!r}"
    if layer.stays_with_previous:
        behind = f", cut before {layers[index + 1][0]!r}" if index + 1 < len(layers) else ""
        return f"{name!r} belongs to the layer before it{behind}"
    return None


def _check_cuts(flow: Flow, cuts: Sequence[str]) -> None:
    last = 0
    for cut in cuts:
        if cut not in flow.names:
            close = difflib.get_close_matches(cut, flow.names, n=3)
            near = f"near it are {', '.join(close)}" if close else f"they are {flow.names[0]} to {flow.names[-1]}"
            raise ConfigError(f"parts.split: cannot cut before {cut!r}: there is no such layer; {near}.")
        index = flow.names.index(cut)
        obstacle = _obstacle(flow, index)
        if obstacle is not None:
            raise ConfigError(f"parts.split: cannot cut before {cut!r}: {obstacle}.")
        if index <= last:
            raise ConfigError(f"parts.split: cannot cut before {cut!r} again or behind a later cut: go in layer order.")
        last = index
