"""Measures how fast processes exchange messages: the first two of them, and all in an all-reduce."""

import time
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

_SMALL, _LARGE = 1_000, 4_000_000
"""Bytes of the messages."""
_RESOLVED = 0.1
"""Share of a measured time from which on it tells of a speed: what is left of less is noise."""
_NUM_MESSAGES = 30
_MICRO_BATCHES = (2, 16)
_PIPELINE_ROUNDS = 12
_REDUCE_ROUNDS = 6


def measure_links(rank: int, workers: int, num_parameters: int) -> dict[str, Any]:
    """The fields of `Machines` that are about messages; every worker calls this, and the first one's numbers are right."""
    return link_fields(
        small=_message_seconds(rank, _SMALL),
        large=_message_seconds(rank, _LARGE),
        hops=2 * (workers - 1),
        reduced_bits=8 * 2 * (workers - 1) / workers * 4 * num_parameters,
        reduce_seconds=_reduce_seconds(num_parameters),
        micro_batch_seconds=_micro_batch_seconds(rank),
    )


def link_fields(
    small: tuple[float, float],
    large: tuple[float, float],
    hops: int,
    reduced_bits: float,
    reduce_seconds: float,
    micro_batch_seconds: float,
) -> dict[str, Any]:
    """Fields of `Machines` from what was measured.

    Differences of times that are no longer than their own noise tell nothing. A speed is then that of the whole message,
    which is a lower bound, a time is 0, and the field is named in `faster_than_measured`.

    Args:
        small, large: seconds until a message is there, and processor seconds of an end.
        hops: messages that a worker sends in an all-reduce, each taking at least as long as a small one.
    """
    bounds: list[str] = []

    def speed(name: str, bits: float, seconds: float, others: float) -> float:
        """Bits a second of a transfer, without the `others` of its seconds."""
        if seconds - others >= _RESOLVED * seconds:
            return bits / (seconds - others)
        bounds.append(name)
        return bits / seconds

    def time_of(name: str, seconds: float) -> float:
        if seconds <= 0:
            bounds.append(name)
        return max(0.0, seconds)

    bandwidth = speed("bandwidth", 8 * (_LARGE - _SMALL), large[0], small[0])
    byte_seconds = time_of("byte_seconds", (large[1] - small[1]) / (_LARGE - _SMALL))
    # A message is two: the header and the latent.
    message_seconds = time_of("message_seconds", 2 * (small[1] - _SMALL * byte_seconds))
    return {
        "bandwidth": bandwidth,
        "latency": time_of("latency", small[0] - 8 * _SMALL / bandwidth),
        "message_seconds": message_seconds,
        "byte_seconds": byte_seconds,
        "reduce_bandwidth": speed("reduce_bandwidth", reduced_bits, reduce_seconds, hops * small[0]),
        # An empty stage has a forward and a backward for each micro-batch, each with a message at one end.
        "pass_seconds": time_of("pass_seconds", micro_batch_seconds / 2 - message_seconds),
        "faster_than_measured": bounds,
    }


def _message_seconds(rank: int, num_bytes: int) -> tuple[float, float]:
    """Seconds until a message is there, and processor seconds of an end, of messages back and forth."""
    payload = torch.zeros(num_bytes, dtype=torch.uint8)
    times = []
    dist.barrier()
    for index in range(3 * _NUM_MESSAGES):
        if index == _NUM_MESSAGES:  # those before it warm up
            busy = time.process_time()
        begin = time.perf_counter()
        if rank == 0:
            dist.send(payload, 1)
            dist.recv(payload, 1)
        elif rank == 1:
            dist.recv(payload, 0)
            dist.send(payload, 0)
        times.append((time.perf_counter() - begin) / 2)
    return median(times[_NUM_MESSAGES:]), (time.process_time() - busy) / (2 * 2 * _NUM_MESSAGES)


def _reduce_seconds(num_parameters: int) -> float:
    gradients = torch.zeros(num_parameters)
    times = []
    for _ in range(_REDUCE_ROUNDS):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(gradients)
        times.append(time.perf_counter() - begin)
    return median(times[1:])


class _EmptyStage(nn.Module):
    """Hands on what a stage of a flow does, a latent and a log-density, and computes next to nothing."""

    def __init__(self, is_last: bool):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.is_last = is_last

    def forward(self, latent: Tensor, log_density: Tensor | None = None) -> tuple[Tensor, Tensor] | Tensor:
        latent = latent * self.scale
        total = latent.sum(1).double()
        total = total if log_density is None else total + log_density
        return total if self.is_last else (latent, total)


def _micro_batch_seconds(rank: int) -> float:
    """Seconds that torch's GPipe between the first two workers takes longer for each micro-batch more; 0 in the others.

    It is the slope between two numbers of micro-batches, so that what a step costs by itself is not in it.
    """
    group = dist.new_group([0, 1])
    if rank > 1 or isinstance(group, int):
        return 0.0
    stage = PipelineStage(_EmptyStage(rank == 1), rank, 2, torch.device("cpu"), group=group)
    few, many = (ScheduleGPipe(stage, num, loss_fn=lambda total, _: total.mean()) for num in _MICRO_BATCHES)
    slopes = []
    for _ in range(_PIPELINE_ROUNDS):
        less = _pipeline_step(few, rank, _MICRO_BATCHES[0])
        slopes.append((_pipeline_step(many, rank, _MICRO_BATCHES[1]) - less) / (_MICRO_BATCHES[1] - _MICRO_BATCHES[0]))
    return max(0.0, median(slopes[1:]))


def _pipeline_step(schedule: ScheduleGPipe, rank: int, num_micro: int) -> float:
    """Seconds of the second of two steps on one image a micro-batch."""
    inputs = [torch.ones(num_micro, 1)] if rank == 0 else []
    for _ in range(2):
        begin = time.perf_counter()
        schedule.step(*inputs, target=torch.zeros(num_micro), losses=[], return_outputs=False)
        seconds = time.perf_counter() - begin
    return seconds
