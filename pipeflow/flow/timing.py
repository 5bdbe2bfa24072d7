"""How long each layer trains, measured: what a balanced cut evens out where multiply-adds do not tell."""

import copy
import statistics
import time

import torch

from pipeflow.flow.flow import Flow
from pipeflow.flow.layers import Layer, Shape

_REPEATS = 5


def layer_seconds(flow: Flow, device: torch.device, batch_size: int) -> list[float]:
    """Seconds of a forward and backward of each layer on random latents, the median of a few.

    Layers are copied to the device one by one: the flow stays as it is and where it is.
    """
    return [
        _time(copy.deepcopy(layer).to(device), shape, device, batch_size)
        for (_, layer), shape in zip(flow.named_layers(), flow.shapes)
    ]


def _time(layer: Layer, shape: Shape, device: torch.device, batch_size: int) -> float:
    latent = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        output, contribution, *_ = layer(latent)
        (output.sum() + contribution.sum()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one warms up
