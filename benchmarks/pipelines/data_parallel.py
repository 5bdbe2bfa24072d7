"""The whole flow on each worker under torch's DistributedDataParallel, plain or with one of its communication hooks."""

import inspect
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.pipelines.measure import Clock, Sent, ring_bytes
from pipeflow.config import Config
from pipeflow.data import Batches, dequantize
from pipeflow.flow import Flow, Values, split_flow
from pipeflow.training.trainer import make_optimizer
from pipeflow.workers.replicas import share_of


class DataParallel:
    """One worker's copy of the flow, trained on its share of each batch."""

    bucket_options: dict[str, int] = {}
    """Options of torch's wrapper."""

    def __init__(self, flow: Flow, batches: Batches, config: Config, device: torch.device):
        """All workers hold the same images and the same initial values."""
        self.clock, self.sent = Clock(), Sent()
        self._batches, self._device = batches, device
        self._world_size = dist.get_world_size()
        self.part = split_flow(flow, [])[0].to(device)
        self.part.initialize(batches.initial().to(device))
        self.parameters = list(self.part.parameters())
        # Buffers never change here. torch 2.15 renamed the option that keeps them from being sent in every forward.
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        self.module = DistributedDataParallel(
            self.part, **{"forward_sync_buffers" if renamed else "broadcast_buffers": False}, **self.bucket_options
        )
        self.optimizer = make_optimizer(self.parameters, config, config.optim.lr)
        self._share = share_of(config.optim.batch_size, self._world_size, dist.get_rank())
        # DDP averages over workers, so shares of unequal size are weighted back to a mean over images.
        self._weight = (self._share.stop - self._share.start) * self._world_size / config.optim.batch_size
        self._last_gradient = 0
        for parameter in self.part.layers[: self._first_with_parameters() + 1].parameters():
            parameter.register_post_accumulate_grad_hook(self._note_gradient)

    def _first_with_parameters(self) -> int:
        return next(index for index, layer in enumerate(self.part.layers) if any(True for _ in layer.parameters()))

    def _note_gradient(self, _: Tensor) -> None:
        """Backward ends in the first layer: what a backward does after its gradients is to wait for the all-reduce."""
        self._last_gradient = time.perf_counter_ns()

    def step(self, epoch: int, step: int, rate: float) -> Tensor:
        """One update; the loss of this worker's share, in bits/dim."""
        with self.clock.span("images"):
            images, noise = self._batches.train_images(epoch, step), self._batches.train_noise(epoch, step)
            images = dequantize(images[self._share], noise[self._share]).to(self._device)
        with self.clock.span("forward"):
            loss = self.part.loss(self.module(images))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with self.clock.span("backward"):
            (loss * self._weight).backward()
            self.clock.waited(time.perf_counter_ns() - self._last_gradient)
        self.count_gradients()
        with self.clock.span("update"):
            self.optimizer.step()
        return loss.detach() + 8

    def count_gradients(self) -> None:
        """Counts what plain DDP reduced in this step: all gradients, float32."""
        self.sent.backward += ring_bytes(sum(parameter.nbytes for parameter in self.parameters), self._world_size)

    def prepare_evaluation(self) -> None:
        """All workers hold the same weights."""

    @torch.no_grad()
    def evaluate(self) -> float:
        """Bits/dim of all test images."""
        total = 0.0
        for images in self._batches.test_batches(None, self._batches.batch_size):
            output = self.part(images.to(self._device))
            total += float((output.contribution + output.log_head).sum())
        return Values(self._batches.data.shape).bits_per_dim(total / len(self._batches.data.test))


class CompressedDataParallel(DataParallel):
    """With bf16_compress_hook, or with powerSGD_hook after `start` steps. Counts the bytes that the hooks reduce."""

    def __init__(self, *arguments: Any, compress: str, start: int, power_rank: int):
        """start: at least 2, as DDP settles its buckets before."""
        if compress == "powersgd":
            # The hook of one bucket starts collectives while that of the next does: gloo's must start in one order.
            self.bucket_options = {"bucket_cap_mb": 1024}
        super().__init__(*arguments)
        if compress == "bf16":
            self.module.register_comm_hook(None, self._bf16)
        else:
            # Gradients of the zero-initialised layers have columns of zeros: hence the epsilon, as torch advises.
            state = PowerSGDState(
                process_group=None,
                matrix_approximation_rank=power_rank,
                start_powerSGD_iter=start,
                orthogonalization_epsilon=1e-8,
            )
            self.module.register_comm_hook(state, self._power_sgd)

    def count_gradients(self) -> None:
        """The hooks have counted."""

    def _bf16(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.sent.backward += ring_bytes(2 * bucket.buffer().numel(), self._world_size)
        return bf16_compress_hook(state, bucket)

    def _power_sgd(self, state: PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buffer, before = bucket.buffer(), state.total_numel_after_compression
        compresses = state.iter >= state.start_powerSGD_iter
        reduced = powerSGD_hook(state, bucket)
        num_values = state.total_numel_after_compression - before if compresses else buffer.numel()
        self.sent.backward += ring_bytes(num_values * buffer.element_size(), self._world_size)
        return reduced
