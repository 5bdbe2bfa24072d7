"""Where a run was interrupted, and where one that is resumed goes on inside an epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeflow.rundir.records import Carried, Manifest, Position
from pipeflow.training.losses import Losses
from pipeflow.training.schedule import Phase
from pipeflow.training.stages import Stages


@dataclass(frozen=True)
class Inside:
    """Where a phase was interrupted: before batch `step`, or during evaluation if `step == phase.steps`."""

    phase: Phase
    step: int
    losses: Losses
    """This worker's losses, up to here."""
    carried: Carried | None
    """Seconds and bytes of the epoch so far, on rank 0."""


class Interrupted(Exception):
    """The run was asked to leave, and all workers know it at the same point. `inside` is None between phases."""

    def __init__(self, inside: Inside | None = None):
        super().__init__(inside)
        self.inside = inside


class GoesOn(NamedTuple):
    """Where in its epoch a run goes on. A whole epoch begins with these defaults."""

    step: int = 0
    losses: Mapping[str, Sequence[float]] = {}
    """This worker's losses of the batches before, by part."""
    carried: Carried | None = None
    """Seconds and bytes that the epoch's record carries over."""


def position_of(inside: Inside, losses: Sequence[Mapping[str, Sequence[float]]], stages: Stages) -> Position | None:
    """The point of an interruption as a checkpoint keeps it; None at the begin of an epoch. losses: each worker's."""
    if inside.step == 0:
        return None
    kept = tuple({part: tuple(values) for part, values in each.items()} for each in losses)
    return Position(step=inside.step, losses=kept, replicas=stages.replicas.size, carried=inside.carried)


def resume_inside(manifest: Manifest | None, stages: Stages) -> GoesOn:
    """Where the first epoch goes on after the checkpoint.

    Losses of parts that were cut otherwise, or of another share of each batch, are not this run's.
    """
    if manifest is None or manifest.position is None:
        return GoesOn()
    position, replicas = manifest.position, stages.replicas
    cuts = tuple(part.names[0] for part in stages.parts[1:])
    if (manifest.cuts, manifest.stage, position.replicas) != (cuts, stages.name, replicas.size):
        return GoesOn(position.step, carried=position.carried)
    held = stages.own_losses
    mine = [losses for rank, losses in enumerate(position.losses) if rank % replicas.size == replicas.index]
    losses = {part: values for each in mine for part, values in each.items() if part in held}
    return GoesOn(position.step, losses, position.carried)
