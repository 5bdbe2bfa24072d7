"""The flow end to end over torch.distributed.pipelining, as its documentation has it: stages, a schedule, `schedule.step`.

A stage takes and returns (latent, what the layers so far added to log p(x)); the last one adds the prior and returns
log p(x). With two stages a worker they lie in a loop or in a V:

    loop   worker 0: stages 0 2      V   worker 0: stages 0     3
           worker 1: stages 1 3          worker 1: stages   1 2

torch's own split of a backward into inputs and weights, which the zero-bubble schedules are for, fails on a flow:
parameters that act on the latent and on the density, as those of an ActNorm or a 1x1 convolution do, land in two of its
groups of parameters, and the second group is run over a graph that the first has freed (pytorch/pytorch#180952 is of the
same code). So here these schedules get the `dw_builder` that torch has for splits of one's own, and it leaves nothing for
later: a whole backward runs in the slot for inputs, nothing in the slot for weights. `torch_split` takes torch's split all
the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from benchmarks.pipelines.measure import Clock, Sent
from pipeflow.config import Config
from pipeflow.data import Batches
from pipeflow.flow import Flow, Part, cut_names, split_flow
from pipeflow.flow.flow import PRIOR
from pipeflow.training.trainer import make_optimizer
from pipeflow.use.likelihood import exit_bits_per_dim, sum_over_batches


@dataclass(frozen=True)
class Kind:
    """A schedule of torch and how its stages lie."""

    schedule: type
    stages_per_worker: int = 1
    is_v: bool = False
    splits_backward: bool = False
    """Whether the schedule sets the gradients of weights apart from those of inputs, to fill bubbles with them."""

    def owners(self, world_size: int) -> list[int]:
        """The rank that holds each stage."""
        if self.is_v:
            return [*range(world_size), *reversed(range(world_size))]
        return [index % world_size for index in range(self.stages_per_worker * world_size)]


KINDS = {
    "gpipe": Kind(ScheduleGPipe),
    "1f1b": Kind(Schedule1F1B),
    "interleaved_1f1b": Kind(ScheduleInterleaved1F1B, 2),
    "interleaved_zero_bubble": Kind(ScheduleInterleavedZeroBubble, 2, splits_backward=True),
    "zbv_zero_bubble": Kind(ScheduleZBVZeroBubble, 2, is_v=True, splits_backward=True),
}


class Stage(nn.Module):
    """A part's layers, and the flow's prior behind the last. `wire`: the type in which latents, and gradients, travel."""

    def __init__(self, part: Part, wire: torch.dtype):
        super().__init__()
        self.layers = part.layers
        self.prior = part.head if part.head_name == PRIOR else None
        self.wire = wire

    def forward(self, latent: Tensor, log_density: Tensor | None = None) -> tuple[Tensor, Tensor] | Tensor:
        """latent: [batch, ...]; log_density: [batch], float64, None in the first stage."""
        latent = latent.float()
        total = torch.zeros(len(latent), dtype=torch.float64, device=latent.device)
        total = total if log_density is None else log_density
        for layer in self.layers:
            latent, contribution, *_ = layer(latent)
            total = total + contribution.double()
        if self.prior is not None:
            return total + self.prior.log_prob(latent).double()
        # The density stays float64: 8 bytes an image, and its gradient is the same for all images.
        return latent.to(self.wire), total


def _nothing_left() -> Callable[[], None]:
    """Does nothing in a slot for weights, because the slot for inputs has done it all."""
    return lambda: None


class TorchPipeline:
    """One worker's stages under a schedule."""

    def __init__(
        self,
        kind: Kind,
        flow: Flow,
        batches: Batches | None,
        config: Config,
        num_microbatches: int,
        wire: torch.dtype,
        device: torch.device,
        torch_split: bool = False,
    ):
        """batches: on rank 0, which holds the first stage.

        Raises ValueError where the batch cannot be shared out evenly, or where torch's schedule refuses.
        """
        if config.optim.batch_size % num_microbatches:
            raise ValueError(f"{config.optim.batch_size} images are no {num_microbatches} micro-batches of equal size")
        self.clock, self.sent = Clock(), Sent()
        self._batches, self._device = batches, device
        rank, owners = dist.get_rank(), kind.owners(dist.get_world_size())
        parts = split_flow(flow, cut_names(flow, config.parts.split, len(owners)))
        mine = [part.to(device) for part, owner in zip(parts, owners) if owner == rank]
        self._mine, self._batch_size = mine, config.optim.batch_size
        self._values = parts[0].values
        self._initialize(mine, owners, config.optim.batch_size)
        modules = [Stage(part, wire) for part in mine]
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.optimizer = make_optimizer(self.parameters, config, config.optim.lr)
        nats_per_bit_per_dim = parts[0].values.nats_per_bit_per_dim

        def loss_function(log_density: Tensor, _: Tensor) -> Tensor:
            with self.clock.span("loss"):
                return 8 - log_density.mean() / nats_per_bit_per_dim

        dw_builder = _nothing_left if kind.splits_backward and not torch_split else None
        stages = [
            self._observe(PipelineStage(module, part.index, len(parts), device, dw_builder=dw_builder))
            for module, part in zip(modules, mine)
        ]
        self.schedule = kind.schedule(
            stages if kind.stages_per_worker > 1 else stages[0], num_microbatches, loss_fn=loss_function
        )
        self._is_last = any(stage.is_last for stage in stages)
        # Nothing to compare with: torch's schedules ask for a target, split as the batch is.
        self._target = torch.zeros(config.optim.batch_size, device=device) if self._is_last else None

    def _initialize(self, mine: Sequence[Part], owners: Sequence[int], batch_size: int) -> None:
        """Data-dependent initialisation, part after part, as pipeflow's workers do it."""
        rank, latent = dist.get_rank(), None
        for part in mine:
            source = owners[part.index - 1] if part.index else None
            if source is None:
                latent = self._batches.initial().to(self._device)
            elif source != rank:
                latent = torch.empty((batch_size, *part.input_shape), device=self._device)
                dist.recv(latent, source)
            latent = part.initialize(latent)
            target = owners[part.index + 1] if part.index + 1 < len(owners) else rank
            if target != rank:
                dist.send(latent, target)

    def _observe(self, stage: PipelineStage) -> PipelineStage:
        """Times what the schedule lets a stage compute, and counts the tensors that it hands over to be sent."""
        for name, attribute in [
            ("forward", "forward_one_chunk"),
            ("backward", "backward_one_chunk"),
            ("weights", "backward_weight_one_chunk"),
            ("scale", "scale_grads"),
        ]:
            setattr(stage, attribute, self.clock.timed(f"{name} {stage.stage_index}", getattr(stage, attribute)))
        stage.get_fwd_send_ops = self._counted("forward", stage.get_fwd_send_ops)
        stage.get_bwd_send_ops = self._counted("backward", stage.get_bwd_send_ops)
        return stage

    def _counted(self, direction: str, send_operations: Callable) -> Callable:
        def run(*arguments: Any) -> list[dist.P2POp]:
            operations = send_operations(*arguments)
            num_bytes = sum(operation.tensor.nbytes for operation in operations)
            setattr(self.sent, direction, getattr(self.sent, direction) + num_bytes)
            return operations

        return run

    def step(self, epoch: int, step: int, rate: float) -> Tensor | None:
        """One update; the batch's loss in bits/dim on the worker of the last stage."""
        inputs = []
        if self._batches is not None:
            with self.clock.span("images"):
                inputs = [self._batches.train(epoch, step).to(self._device)]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        self.schedule.step(*inputs, target=self._target, losses=losses, return_outputs=False)
        with self.clock.span("update"):
            self.optimizer.step()
        return torch.stack([loss.detach() for loss in losses]).mean() if self._is_last else None

    def prepare_evaluation(self) -> None:
        """Every stage is where it was trained."""

    def evaluate(self) -> float:
        """Bits/dim of all test images, on every worker; latents go forward as float32. One stage a worker."""
        num_images = torch.tensor(0 if self._batches is None else len(self._batches.data.test), device=self._device)
        dist.broadcast(num_images, 0)
        (part,), rank, last = self._mine, dist.get_rank(), dist.get_world_size() - 1

        def hand_on(_: int, step: int, latent: Tensor) -> Tensor:
            if rank < last:
                dist.send(latent.contiguous(), rank + 1)
            return latent

        sums = sum_over_batches([part], self._test_batches(part, int(num_images)), hand_on)
        mine = torch.tensor(sums[part.index], dtype=torch.float64, device=self._device)
        everyone = [torch.empty_like(mine) for _ in range(last + 1)]
        dist.all_gather(everyone, mine)
        return exit_bits_per_dim([each.tolist() for each in everyone], int(num_images), self._values)[-1]

    def _test_batches(self, part: Part, num_images: int) -> Iterator[Tensor]:
        """What the stage takes of the test images: they themselves, or latents from the worker before."""
        if self._batches is not None:
            yield from (images.to(self._device) for images in self._batches.test_batches(None, self._batch_size))
            return
        for start in range(0, num_images, self._batch_size):
            size = min(self._batch_size, num_images - start)
            latent = torch.empty((size, *part.input_shape), device=self._device)
            dist.recv(latent, dist.get_rank() - 1)
            yield latent
