"""Measured seconds of each layer, which a balanced cut can even out where multiply-adds mislead."""

import copy
import statistics
import time

import torch

from pipeflow.flow.flow import Flow
from pipeflow.flow.labels import example_labels
from pipeflow.flow.layers import Layer, Shape

_REPEATS = 5


def layer_seconds(flow: Flow, device: torch.device, batch_size: int) -> list[float]:
    """Seconds of a forward and backward of each layer on random latents, the median of five.

    Each layer is copied to the device in turn, so the flow neither moves nor changes.
    """
    layers = (copy.deepcopy(layer).to(device) for _, layer in flow.named_layers())
    return [_time(layer, shape, device, batch_size) for layer, shape in zip(layers, flow.shapes)]


def _time(layer: Layer, shape: Shape, device: torch.device, batch_size: int) -> float:
    latent = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    given = example_labels(layer, batch_size, device)
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        output, contribution, *_ = layer(latent, **given)
        torch.autograd.backward(output.sum() + contribution.sum())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first repeat warms up
