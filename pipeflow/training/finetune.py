"""The gather, and end-to-end training after it.

The parts' parameters, optimizer states and averages go to rank 0, by their global names, so that gathering is loading.
There the whole flow is one part: the same worker loop trains it. Data-parallel, every worker then holds all of it, rank
0 hands out the images of each batch, and torch's DistributedDataParallel averages the gradients.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow import Flow, split_flow
from pipeflow.flow.layers import Shape
from pipeflow.training.control import Control
from pipeflow.training.graphs import make_trainer
from pipeflow.training.images import share_of
from pipeflow.training.schedule import Schedule
from pipeflow.training.trainer import PartTrainer
from pipeflow.training.world import World

_SECTIONS = {"model": "parameters", "ema": "ema"}
"""Kind under which a section of a trainer's tensors is counted; all else is the optimizer's."""

State = tuple[dict[str, Tensor], dict[str, list[int]]]
"""A trainer's tensors and counts."""


def state_of(trainers: Sequence[PartTrainer]) -> State:
    """What several parts hold, as one; heads that do not belong to the flow included."""
    tensors: dict[str, Tensor] = {}
    counts: dict[str, list[int]] = {}
    for trainer in trainers:
        tensors.update(trainer.tensors())
        counts.update(trainer.counts())
    return tensors, counts


def without_heads(state: State) -> State:
    """The flow's own part of a state: heads are thrown away at the gather."""
    tensors, counts = state
    return (
        {key: value for key, value in tensors.items() if not key.split("/", 1)[1].startswith("heads.")},
        {owner: count for owner, count in counts.items() if not owner.startswith("heads.")},
    )


def gather(state: State, control: Control) -> State:
    """All workers' states on rank 0, its own alone elsewhere. Counted as `parameters`, `optimizer` and `ema`."""
    tensors, counts = state
    layout = [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in tensors.items()]
    everyone = control.gather({"layout": layout, "counts": counts}, "the layout of its parts")
    if control.rank != 0:
        for key, value in tensors.items():
            control.send(value, 0, _kind(key), f"{key} at the gather")
        return state
    for source, theirs in enumerate(everyone[1:], start=1):
        counts = {**counts, **theirs["counts"]}
        for key, shape, dtype in theirs["layout"]:
            tensors[key] = control.receive(
                torch.empty(shape, dtype=getattr(torch, dtype)), source, f"{key} at the gather"
            )
    return tensors, counts


def spread(state: State, control: Control) -> State:
    """Rank 0's state on every rank, counted as `gather` does."""
    tensors, counts = state
    layout = [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in tensors.items()]
    shared = control.broadcast({"layout": layout, "counts": counts}, "the layout of the flow")
    if control.rank == 0:
        for value_of in shared["layout"]:
            for target in range(1, control.world_size):
                control.send(tensors[value_of[0]], target, _kind(value_of[0]), value_of[0])
        return state
    tensors = {
        key: control.receive(torch.empty(shape, dtype=getattr(torch, dtype)), 0, key)
        for key, shape, dtype in shared["layout"]
    }
    return tensors, shared["counts"]


def _kind(key: str) -> str:
    return _SECTIONS.get(key.split("/", 1)[0], "optimizer")


def is_data_parallel(config: Config, world: World) -> bool:
    """Whether end-to-end epochs run on all workers."""
    return config.finetune.parallel == "ddp" and world.size > 1


def whole_flow_trainer(flow: Flow, config: Config, schedule: Schedule, world: World) -> PartTrainer:
    """A trainer of the whole flow, data-parallel where `finetune.parallel` says so and there are workers for it."""
    whole = split_flow(flow, [], activations=config.memory.activations)[0]
    lr = config.finetune.lr if config.finetune.lr is not None else config.optim.lr
    num_updates = schedule.num_finetune_updates()
    if not is_data_parallel(config, world):
        return make_trainer(whole, world.device, config, lr, num_updates)
    trainer = DataParallelTrainer(whole, world.device, config, lr, num_updates)
    trainer.join(world, config)
    return trainer


class DataParallelTrainer(PartTrainer):
    """A whole flow on each worker, trained on its share of the batch with averaged gradients."""

    def join(self, world: World, config: Config) -> None:
        """Wraps the forward. All workers hold the same weights by then, or load them before the first batch.

        Raises ConfigError where there are more workers than images in a batch.
        """
        batch_size = config.optim.batch_size
        if batch_size < world.size:
            raise ConfigError(
                f"optim.batch_size: {batch_size} images cannot be shared by {world.size} workers (finetune.parallel ddp)."
            )
        share = share_of(batch_size, world.size, world.rank)
        # DDP averages over workers, so shares of unequal size are weighted back to a mean over images.
        self._weight = (share.stop - share.start) * world.size / batch_size
        # Buffers never change here. torch 2.15 renamed the option that keeps them from being sent in every forward.
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        no_buffers = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        self._module = DistributedDataParallel(
            self.part, process_group=world.gradient_group(), init_sync=False, **no_buffers
        )
        self._settle_buckets((share.stop - share.start, *self.part.input_shape), world.device)
        num_values = sum(parameter.numel() for parameter in self.part.parameters())
        # A ring all-reduce sends 2 (n - 1) / n of the gradients from each of n workers; rank 0 counts for all.
        self._ring_bytes = 2 * (world.size - 1) * num_values * 4 if world.rank == 0 else 0
        self._traffic = world.traffic
        self._alarm = world.alarm

    def _settle_buckets(self, shape: Shape, device: torch.device) -> None:
        """One forward and backward for nothing.

        After its first backward DDP regroups the gradients, and so sums them in another order. It shall do so before the
        first update, else a resumed run would do it later than one that was never interrupted, and differ in last bits.
        """
        self.part.loss(self._module(torch.zeros(shape, device=device))).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def update(self, loss: Tensor) -> None:
        with self._alarm.telling(f"waited for the others' gradients of end-to-end batch {self.updates}"):
            super().update(loss * self._weight)
        if self._ring_bytes:
            self._traffic.add("gradients", 0, 0, self._ring_bytes)
