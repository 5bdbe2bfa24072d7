"""Local SGD: each worker trains its copy by itself and all average their weights every so many steps, with torch's
post_localSGD_hook, PostLocalSGDOptimizer and PeriodicModelAverager."""

import time
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.utils import average_parameters
from torch.distributed.optim import PostLocalSGDOptimizer

from benchmarks.pipelines.data_parallel import DataParallel
from benchmarks.pipelines.measure import Clock, Sent, ring_bytes


class _ObservedAverager(PeriodicModelAverager):
    """Counts what it reduces, and takes the time of an averaging out of the update's."""

    def __init__(self, period: int, warmup_steps: int, sent: Sent, clock: Clock):
        super().__init__(period, warmup_steps)
        self._sent, self._clock = sent, clock

    def average_parameters(self, params: Iterable[dict[str, nn.Parameter]]) -> None:
        groups = list(params)
        if self.step >= self.warmup_steps and (self.step - self.warmup_steps) % self.period == 0:
            num_bytes = sum(parameter.nbytes for group in groups for parameter in group["params"])
            self._sent.backward += ring_bytes(num_bytes, dist.get_world_size())
        start = time.perf_counter_ns()
        super().average_parameters(groups)
        self._clock.waited(time.perf_counter_ns() - start)


class LocalSGD(DataParallel):
    """Plain data parallelism for `start` steps, then an average of the weights every `period` steps."""

    def __init__(self, *arguments: Any, start: int, period: int):
        super().__init__(*arguments)
        self._start, self._steps = start, 0
        # Workers of one machine form a subgroup by default and would reduce gradients in every step, as DDP does.
        state = PostLocalSGDState(
            process_group=None, subgroup=None, start_localSGD_iter=start, post_local_gradient_allreduce=False
        )
        self.module.register_comm_hook(state, post_localSGD_hook)
        averager = _ObservedAverager(period, start, self.sent, self.clock)
        self.optimizer = PostLocalSGDOptimizer(self.optimizer, averager)

    def count_gradients(self) -> None:
        """Gradients travel in the first `start` steps only."""
        if self._steps < self._start:
            super().count_gradients()
        self._steps += 1

    def prepare_evaluation(self) -> None:
        """The averaged model is what local SGD ends with."""
        average_parameters(iter(self.parameters), dist.group.WORLD)
