"""A part's training step as two CUDA graphs: its thousands of kernels are launched as two, without Python between them.

    batch 0 .. 2   as ever, on a stream beside the main one, so that libraries and optimizer set up what they need
    batch 3        forward and loss are recorded, then backward, clipping and the optimizer's step
    from then on   the latent is copied to where the recording reads it, and what was recorded runs again

What a recording returns lies where the next batch will write, so that what leaves the trainer is a copy.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeflow.config import Config
from pipeflow.flow.part import Part, PartOutput
from pipeflow.training.trainer import PartTrainer

_WARM_UP = 3
"""Batches before the recording."""


class Recorder(Protocol):
    """Runs work once to set things up, or takes it down to be run again and again."""

    def warm_up(self, work: Callable[[], Any]) -> Any:
        """Runs the work, and returns what it does."""

    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """Takes the work down without running it; each call of what is returned runs it, and returns what it does."""


class CudaRecorder:
    """Records CUDA graphs that share their memory: they must run in the order in which they were recorded."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], Any]) -> Any:
        """On the stream of the recordings."""
        main = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            result = work()
        main.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """The tensors that the work returns are the same at every run, with other values."""
        graph = torch.cuda.CUDAGraph()
        # Links and images copy from threads of their own meanwhile, which only this mode allows.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = work()

        def run() -> Any:
            graph.replay()
            return result

        return run


class GraphedTrainer(PartTrainer):
    """A trainer that records its step. All batches have one shape; each `forward` is followed by its `update`."""

    def __init__(
        self,
        part: Part,
        device: torch.device,
        config: Config,
        lr: float,
        num_updates: int,
        recorder: Recorder | None = None,
    ):
        """recorder: of CUDA graphs where none is given."""
        super().__init__(part, device, config, lr, num_updates)
        self._recorder = CudaRecorder(device) if recorder is None else recorder
        self._warm_ups_left = _WARM_UP
        self._input = torch.empty(0)
        self._loss = torch.empty(0)
        self._recorded_forward: Callable[[], tuple[PartOutput, Tensor]] | None = None
        self._recorded_step: Callable[[], None] | None = None
        for (
            group
        ) in self.optimizer.param_groups:  # its step count and rate on the device, where the recording reads them
            group["capturable"] = True
            group["lr"] = torch.tensor(lr, device=device)

    def forward(self, latent: Tensor) -> tuple[PartOutput, Tensor]:
        if self._warm_ups_left > 0:
            output, self._loss = self._recorder.warm_up(lambda: PartTrainer.forward(self, latent))
            return output, self._loss
        if self._recorded_forward is None:
            self._input = latent.clone()
            self._recorded_forward = self._recorder.record(lambda: PartTrainer.forward(self, self._input))
        self._input.copy_(latent)
        output, self._loss = self._recorded_forward()
        return PartOutput(*(each.detach().clone() for each in output)), self._loss.detach().clone()

    def _set_rate(self, group: dict, rate: float) -> None:
        group["lr"].fill_(rate)

    def _step(self, loss: Tensor) -> None:
        if self._warm_ups_left > 0:
            self._warm_ups_left -= 1
            self._recorder.warm_up(lambda: PartTrainer._step(self, loss))
            return
        if self._recorded_step is None:
            self._recorded_step = self._recorder.record(lambda: PartTrainer._step(self, self._loss))
        self._recorded_step()


def make_trainer(part: Part, device: torch.device, config: Config, lr: float, num_updates: int) -> PartTrainer:
    """A trainer for one part, or the whole flow, on one device; one that records its step with `precision.graphs`."""
    kind = GraphedTrainer if config.precision.graphs else PartTrainer
    return kind(part, device, config, lr, num_updates)
