"""How long each kind of layer must take in a training step, and how long it takes: what is left, and where.

The least seconds of a kind are the longer of its operations at the device's matrix rate (two for a multiply-add, three
times for forward, gradient of the input and gradient of the weights) and of its bytes at the device's bandwidth. Bytes are
the fewest that a kind by itself can move: each input, output, gradient and weight once in the forward and once in the
backward. A kind that is folded into its neighbour can take less than that.

Measured is each kind by itself, in the step's shapes, forward and backward together, times how often a step has it; once
as the reference computes it (channels first, torch's default optimizer) and once with the layout and the optimizer of the
fast step (channels last, fused). A kind by itself finds its inputs in the caches where they are small.
"""

import copy
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.step.limits import DTYPES, seconds_of
from benchmarks.step.systems import Case, Images, configuration
from pipeflow.device import choose_device
from pipeflow.flow import ActNorm, Coupling, FactorOut, Flow, FlowStep, Layer, Squeeze, build_flow

_SECONDS, _LEAST_CALLS, _MOST_CALLS = 0.2, 5, 100
"""Seconds for which a kind is timed, and how often; on a slow device ten times the seconds are enough for fewer calls."""
_VALUE = 4
"""Bytes of a float32: of latents, parameters and their gradients in any case."""


@dataclass(frozen=True)
class Kind:
    """One computation of a flow, at one shape."""

    name: str
    count: int
    """How often a step has it."""
    multiply_adds: int
    """Multiply-adds of one forward of one image."""
    bytes: int
    """The fewest bytes of one forward and backward of the batch."""
    dtype: str
    """Type of its products."""
    module: nn.Module
    shape: tuple[int, ...]
    """Shape of one image's input."""

    def least_seconds(self, batch_size: int, limits: dict) -> float:
        """Least seconds in a step; limits: as `Limits.measure` gives them."""
        return self.count * max(
            operations(self.multiply_adds, batch_size) / limits["flops"][self.dtype], self.bytes / limits["bytes"]
        )

    def is_bound_by_memory(self, batch_size: int, limits: dict) -> bool:
        """Whether its bytes take longer than its operations."""
        products = operations(self.multiply_adds, batch_size) / limits["flops"][self.dtype]
        return self.bytes / limits["bytes"] > products


def operations(multiply_adds: int, batch_size: int) -> int:
    """Operations of forward and backward of a batch, from the multiply-adds of one forward of one image."""
    return 2 * 3 * multiply_adds * batch_size


def layer_kinds(flow: Flow, batch_size: int, dtype: str) -> list[Kind]:
    """Kinds of the flow's layers, in their order; layers of one shape are one kind.

    dtype: that the coupling nets run in, a key of DTYPES.
    """
    groups: dict[tuple, list[Layer]] = {}
    for (_, layer), shape in zip(flow.named_layers(), flow.shapes):
        groups.setdefault((type(layer), shape), []).append(layer)
    kinds: list[Kind] = []
    for (_, shape), layers in groups.items():
        kinds += _kinds_of(layers[0], shape, len(layers), batch_size, dtype)
    return kinds


def _kinds_of(layer: Layer, shape: tuple[int, ...], count: int, batch_size: int, dtype: str) -> Iterator[Kind]:
    values = batch_size * math.prod(shape)
    at = "x".join(map(str, shape))
    if isinstance(layer, FlowStep):
        yield Kind(f"ActNorm, {at}", count, 0, 5 * _VALUE * values, "float32", layer.actnorm, shape)
        yield Kind(
            f"invertible 1x1, {at}", count, layer.invconv.multiply_adds(shape),
            5 * _VALUE * values + 3 * _bytes_of(layer.invconv), "float32", layer.invconv, shape,
        )  # fmt: skip
        yield from _coupling_kinds(layer.coupling, shape, count, batch_size, dtype)
    elif isinstance(layer, Squeeze):
        yield Kind(f"squeeze, {at}", count, 0, 4 * _VALUE * values, "float32", layer, shape)
    elif isinstance(layer, FactorOut):
        # Read in both directions, its gradient written; the prior's outputs have as many values, there and back.
        moved = 5 * _VALUE * values + 3 * _bytes_of(layer)
        yield Kind(f"factor-out, {at}", count, layer.multiply_adds(shape), moved, "float32", layer, shape)
    else:
        raise TypeError(f"no roofline for a {type(layer).__name__}")


def _coupling_kinds(
    coupling: Coupling, shape: tuple[int, ...], count: int, batch_size: int, dtype: str
) -> Iterator[Kind]:
    net, (_, height, width) = coupling.net, shape
    pixels = height * width
    value = DTYPES[dtype].itemsize
    convolutions = [("3x3 in", net.conv_in, net.conv_in), ("1x1", net.conv_mid, net.conv_mid)]
    convolutions.append(("3x3 out", net.conv_out.conv, net.conv_out))
    for name, conv, module in convolutions:
        # Input: in the forward and in the backward, and its gradient; output: written, and its gradient read.
        latents = value * batch_size * pixels * (3 * conv.in_channels + 2 * conv.out_channels)
        yield Kind(
            f"{name}, {conv.in_channels} to {conv.out_channels}, {height}x{width}", count,
            conv.weight.numel() * pixels, latents + 3 * _bytes_of(conv), dtype, module,
            (conv.in_channels, height, width),
        )  # fmt: skip
    hidden = (net.conv_mid.out_channels, height, width)
    yield Kind(
        f"hidden ActNorm and ReLU, {hidden[0]}x{height}x{width}", 2 * count, 0,
        5 * value * batch_size * math.prod(hidden), dtype, _HiddenNorm(net.norm_mid), hidden,
    )  # fmt: skip
    outputs = net.conv_out.conv.out_channels
    changed = shape[0] - coupling.num_kept
    # Forward: the changed half and the net's outputs read, the half written; backward: its gradient read as well, and
    # the gradients of both written. What is kept need not move.
    moved = _VALUE * batch_size * pixels * ((2 * changed + outputs) + (3 * changed + 2 * outputs))
    alone = copy.deepcopy(coupling)
    alone.net = _Given(torch.randn(batch_size, outputs, height, width))
    yield Kind(f"coupling, elementwise, {'x'.join(map(str, shape))}", count, 0, moved, "float32", alone, shape)


def _bytes_of(module: nn.Module) -> int:
    return _VALUE * sum(parameter.numel() for parameter in module.parameters())


class _HiddenNorm(nn.Module):
    """The layers between two convolutions of a coupling net."""

    def __init__(self, norm: ActNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm.normalize(x))


class _Given(nn.Module):
    """Stands in for a coupling net: its outputs are there already, and take a gradient."""

    def __init__(self, outputs: Tensor):
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, _: Tensor) -> Tensor:
        return self.outputs


class Roofline:
    """The kinds of a case's step, timed by themselves."""

    def __init__(self, case: Case, seconds: float = _SECONDS):
        """seconds: for which each kind is timed, about."""
        self._seconds_a_kind = min(seconds, _SECONDS)
        self._device = choose_device(case.device)
        self._case = case
        self._images = Images(configuration(case, {}), self._device)
        self._flow = build_flow(configuration(case, {}), self._images.batches.data.shape)

    def measure(self, dtype: str, limits: dict) -> list[dict]:
        """A row for each kind: its least seconds in a step, and those measured both ways.

        dtype: of the coupling nets; limits: as `Limits.measure` gives them.
        """
        batch_size = self._case.batch_size
        rows = []
        for kind in layer_kinds(self._flow, batch_size, dtype):
            rows.append(
                {
                    "kind": kind.name,
                    "count": kind.count,
                    "multiply_adds": kind.multiply_adds,
                    "bytes": kind.bytes,
                    "least_s": kind.least_seconds(batch_size, limits),
                    "bound": "memory" if kind.is_bound_by_memory(batch_size, limits) else "products",
                    "reference_s": kind.count * self._seconds(kind, torch.contiguous_format),
                    "fast_s": kind.count * self._seconds(kind, torch.channels_last),
                }
            )
        return [*rows, *self._update_rows(limits)]

    def _seconds(self, kind: Kind, layout: torch.memory_format) -> float:
        """Seconds of one forward and backward."""
        dtype = DTYPES[kind.dtype]
        module = copy.deepcopy(kind.module).to(self._device, dtype, memory_format=layout)
        x = torch.randn(self._case.batch_size, *kind.shape, device=self._device, dtype=dtype)
        x = x.to(memory_format=layout).requires_grad_()
        wanted = [x, *module.parameters()]

        def outputs() -> list[Tensor]:
            made = module(x)
            return [made] if isinstance(made, Tensor) else [each for each in made[:2] if each.requires_grad]

        gradients = [torch.randn_like(each) for each in outputs()]
        return self._median(lambda: torch.autograd.grad(outputs(), wanted, gradients, allow_unused=True))

    def _update_rows(self, limits: dict) -> Iterator[dict]:
        """Rows of the work beside the layers: images, clipping, optimizer."""
        batches = self._images.batches
        values = self._case.batch_size * math.prod(batches.data.shape)
        parameters = [nn.Parameter(torch.randn_like(each, device=self._device)) for each in self._flow.parameters()]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        num_bytes = _VALUE * sum(parameter.numel() for parameter in parameters)
        optimizers = [torch.optim.Adam(parameters), torch.optim.Adam(parameters, fused=True)]
        dequantize = [lambda: batches.train(0, 0).to(self._device)] * 2
        clip = [lambda: nn.utils.clip_grad_norm_(parameters, 1.0)] * 2
        for name, moved, runs in [
            ("dequantization", (1 + _VALUE) * values, dequantize),
            ("clipping", 3 * num_bytes, clip),  # the norm, and gradients read and written
            ("optimizer", 7 * num_bytes, [each.step for each in optimizers]),  # gradient; values and moments, twice
        ]:
            reference, fast = (self._median(run) for run in runs)
            yield {
                "kind": name,
                "count": 1,
                "multiply_adds": 0,
                "bytes": moved,
                "least_s": moved / limits["bytes"],
                "bound": "memory",
                "reference_s": reference,
                "fast_s": fast,
            }

    def _median(self, run: Callable) -> float:
        """Seconds of a call: the median of enough of them that a process which gets in between does not count."""
        seconds_of(run, self._device)  # warms up
        times: list[float] = []
        while (len(times) < _LEAST_CALLS and sum(times) < 10 * _SECONDS) or (
            len(times) < _MOST_CALLS and sum(times) < self._seconds_a_kind
        ):
            times.append(seconds_of(run, self._device))
        return statistics.median(times)
