"""What trainers hold, and how it gets from worker to worker: to rank 0 at the gather, and to replicas at their start.

Everything goes by its global name, so that gathering is loading: after it the whole flow is one part, and the same worker
loop trains it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeflow.training.trainer import PartTrainer
from pipeflow.workers.control import Control
from pipeflow.workers.replicas import Replicas

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


def spread(state: State, control: Control, replicas: Replicas, kind: str | None = None) -> State:
    """The first replica's state on all of them, counted as `kind`, or as `gather` does."""
    tensors, counts = state
    if replicas.is_first:
        layout = [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in tensors.items()]
        for target in replicas.ranks[1:]:
            control.send_json({"layout": layout, "counts": counts}, target, "the layout of what it holds")
            for key, value in tensors.items():
                control.send(value, target, kind or _kind(key), key)
        return state
    source = replicas.ranks[0]
    shared = control.receive_json(source, "the layout of what this worker holds")
    tensors = {
        key: control.receive(torch.empty(shape, dtype=getattr(torch, dtype)), source, key)
        for key, shape, dtype in shared["layout"]
    }
    return tensors, shared["counts"]


def _kind(key: str) -> str:
    return _SECTIONS.get(key.split("/", 1)[0], "optimizer")
