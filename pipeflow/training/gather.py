"""The state of trainers, and its way from worker to worker: to rank 0 at the gather, and to replicas at their start.

Everything goes by its global name, so that gathering is loading: after it the whole flow is one part, and the same worker
loop trains it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeflow.flow.part import is_head
from pipeflow.training.trainer import PartTrainer
from pipeflow.workers.control import Control
from pipeflow.workers.replicas import Replicas

_SECTIONS = {"model": "parameters", "ema": "ema"}
"""Kind under which a section of a trainer's tensors is counted; all else is the optimizer's."""

Counts = Mapping[str, Sequence[int]]
"""By layer and head: updates in this stage, and the optimizer's own count since the beginning."""


class State(NamedTuple):
    """All that is saved of some trainers."""

    tensors: dict[str, Tensor]
    counts: Counts


NOTHING = State({}, {})


def state_of(trainers: Sequence[PartTrainer]) -> State:
    """The state of several parts as one, with heads that do not belong to the flow."""
    tensors: dict[str, Tensor] = {}
    counts: dict[str, Sequence[int]] = {}
    for trainer in trainers:
        tensors.update(trainer.tensors())
        counts.update(trainer.counts())
    return State(tensors, counts)


def without_heads(state: State) -> State:
    """The flow's own share of a state: heads are thrown away at the gather."""
    return State(
        {key: value for key, value in state.tensors.items() if not is_head(key.split("/", 1)[1])},
        {owner: count for owner, count in state.counts.items() if not is_head(owner)},
    )


def gather(state: State, control: Control) -> State:
    """All workers' states on rank 0, its own alone elsewhere. Counted as `parameters`, `optimizer` and `ema`."""
    if control.rank != 0:
        _send(state, 0, control, "at the gather")
        return state
    tensors, counts = dict(state.tensors), dict(state.counts)
    for source in range(1, control.world_size):
        theirs = _receive(source, control, "at the gather")
        tensors |= theirs.tensors
        counts |= theirs.counts
    return State(tensors, counts)


def spread(state: State, control: Control, replicas: Replicas, kind: str | None = None) -> State:
    """The first replica's state on all of them, counted as `kind`, or as `gather` does."""
    if not replicas.is_first:
        return _receive(replicas.ranks[0], control, "at the start")
    for target in replicas.ranks[1:]:
        _send(state, target, control, "at the start", kind)
    return state


def _send(state: State, target: int, control: Control, when: str, kind: str | None = None) -> None:
    layout = [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.tensors.items()]
    control.send_json({"layout": layout, "counts": state.counts}, target, f"the layout of its parts {when}")
    for key, value in state.tensors.items():
        control.send(value, target, kind or _SECTIONS.get(key.split("/", 1)[0], "optimizer"), f"{key} {when}")


def _receive(source: int, control: Control, when: str) -> State:
    shared = control.receive_json(source, f"the layout of its parts {when}")
    tensors = {
        key: control.receive(torch.empty(shape, dtype=getattr(torch, dtype)), source, f"{key} {when}")
        for key, shape, dtype in shared["layout"]
    }
    return State(tensors, shared["counts"])
