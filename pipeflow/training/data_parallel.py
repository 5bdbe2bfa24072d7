"""Workers that hold the same layers and share each batch: replicas of a part, and after the gather of the whole flow.

    3 parts x 2 replicas       replica 0   replica 1
                    part 0         0           1       0 and 1 share each batch, and average their gradients
                    part 1         2           3       latents go from 0 to 2 to 4, and from 1 to 3 to 5
                    part 2         4           5       nothing else is sent: no gradient leaves a row

Neighbouring ranks are replicas of one part. Launchers give neighbouring ranks to one machine, and gradients are most of
what replicas send: so they stay inside it, where there are as many GPUs, and between machines go latents alone.
"""

import contextlib
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow.layers import Shape
from pipeflow.flow.part import PartOutput
from pipeflow.training.trainer import PartTrainer
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.replicas import Replicas
from pipeflow.workers.traffic import Traffic


class DataParallelTrainer(PartTrainer):
    """One replica of a part or of the whole flow, trained on its share of the batch with averaged gradients."""

    def join(self, replicas: Replicas, config: Config, device: torch.device, traffic: Traffic, alarm: Alarm) -> None:
        """Wraps the forward. All replicas call this together, and hold the same weights before the first batch.

        Raises ConfigError where there are more replicas than images in a batch.
        """
        batch_size = config.optim.batch_size
        if batch_size < replicas.size:
            raise ConfigError(f"optim.batch_size: {batch_size} images cannot be shared by {replicas.size} workers.")
        share = replicas.share(batch_size)
        # DDP averages over workers, so shares of unequal size are weighted back to a mean over images.
        self._weight = (share.stop - share.start) * replicas.size / batch_size
        # Buffers change with the first batch at most, before replicas get the first one's state. torch 2.15 renamed the
        # option that keeps them from being sent in every forward.
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        no_buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        wrapped = DistributedDataParallel(self.part, process_group=replicas.group, init_sync=False, **no_buffers)
        self._module = self._wrapped = wrapped
        # Two of a 1x1 kernel's four strides say nothing, and DDP takes their difference for another layout.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        largest = -(-(share.stop - share.start) // config.memory.micro_batches)
        self._settle_buckets((largest, *self.part.input_shape), device)
        num_values = sum(parameter.numel() for parameter in self.part.parameters())
        # A ring all-reduce sends 2 (n - 1) / n of the gradients from each of n workers; the first counts for all.
        self._ring_bytes = 2 * (replicas.size - 1) * num_values * 4 if replicas.is_first else 0
        self._replicas = replicas
        self._traffic = traffic
        self._alarm = alarm

    def _settle_buckets(self, shape: Shape, device: torch.device) -> None:
        """Runs one forward and backward whose gradients are thrown away.

        After its first backward DDP regroups the gradients, and so sums them in another order. That has to happen before
        the first update, else a resumed run would differ in last bits from one that was never interrupted. What layers
        of other libraries take from their first batch is thrown away too.
        """
        before = {name: value.clone() for name, value in self.part.state_dict().items()}
        labels = torch.zeros(shape[0], dtype=torch.int64, device=device)
        torch.autograd.backward(self.part.loss(self._module(torch.zeros(shape, device=device), labels)))
        self.optimizer.zero_grad(set_to_none=True)
        self.part.load_state_dict(before)
        self.part.reconstruction_error = None

    def forward(self, latent: Tensor, is_last: bool = True, labels: Tensor | None = None) -> tuple[PartOutput, Tensor]:
        # Gradients travel once a batch, with those of its last micro-batch.
        with contextlib.nullcontext() if is_last else self._wrapped.no_sync():
            return super().forward(latent, labels=labels)

    def accumulate(self, loss: Tensor) -> None:
        super().accumulate(loss * self._weight)

    def update(self, loss: Tensor) -> None:
        others = [rank for rank in self._replicas.ranks if rank != self._replicas.rank]
        of = f"worker{'s' * (len(others) > 1)} {', '.join(map(str, others))}"
        with self._alarm.telling(f"waited for the gradients of update {self.updates} of {of}"):
            super().update(loss * self._weight)
        if self._ring_bytes:
            self._traffic.add("gradients", 0, 0, self._ring_bytes)
