"""Schedules as data: which parts train on which batches, and the coordinator's decision of what comes next.

With three parts, epochs to the right, `#` trains, `.` runs forward only, blank does not run:

    sequential  part 0  ##                 alternate  part 0  # . # .         concurrent  part 0  ####
                part 1    ##                          part 1   #. #.                      part 1  ####
                part 2      ##                        part 2    #  #                      part 2  ####

Nothing here knows of processes: a `Phase` can be printed, compared and sent as JSON.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pipeflow.config import FINETUNE, Config
from pipeflow.flow import Part
from pipeflow.flow.balance import owners_of
from pipeflow.rundir.records import Epoch, Manifest, Mode

DIVERGED_BY = 5.0
"""Bits per dimension by which a part's training loss may rise over its first epoch's before the run is stopped."""


@dataclass(frozen=True)
class Phase:
    """One pass over the data, and what is done after it.

    Batch `step` trains the parts of turn `(first_turn + step // turn_steps)` of a rotation over `turns`, so that a phase
    with a turn in each batch is as small a message as one with a single turn.
    """

    epoch: int
    mode: Mode
    """`sequential`, `alternate`, `concurrent`, or of the gathered flow `finetune`, `end_to_end`."""
    steps: int
    turns: tuple[tuple[int, ...], ...]
    turn_steps: int
    offset: int = 0
    """Batches by which the rotation is ahead at the phase's first batch."""
    evaluate: bool = False
    checkpoint: bool = False
    initialize: tuple[int, ...] = ()
    """Parts that train for the first time, behind parts that have trained. They take the initial values of their layers
    anew from the latents that they get by now."""
    is_averaged: bool = False
    """Whether parts hand on what their averaged weights make of a batch."""

    @property
    def is_local(self) -> bool:
        """Whether parts train by themselves, before the gather."""
        return self.mode not in FINETUNE

    def training(self, step: int) -> tuple[int, ...]:
        """The parts that train on this batch."""
        return self.turns[(self.offset + step) // self.turn_steps % len(self.turns)]

    @property
    def trained(self) -> list[int]:
        """All parts that train at some batch of the phase."""
        turns = {self.training(step) for step in self._turn_starts()}
        return sorted({part for turn in turns for part in turn})

    def count_training(self, part: int) -> int:
        """Batches of the phase that train this part: its updates."""
        return self._count(lambda turn: part in turn)

    def count_training_in_front(self, part: int) -> int:
        """Batches that train this part and another one behind it."""
        return self._count(lambda turn: part in turn and part < max(turn))

    def count_running(self, part: int) -> int:
        """Batches on which this part runs at all: the others end before it."""
        return self._count(lambda turn: part <= max(turn))

    def count_sent(self, part: int) -> int:
        """Batches that this part hands on: those on which the next part runs too."""
        return self._count(lambda turn: part < max(turn))

    def _turn_starts(self) -> list[int]:
        first_end = self.turn_steps - self.offset % self.turn_steps
        return [0, *range(first_end, self.steps, self.turn_steps)]

    def _count(self, holds: Callable[[tuple[int, ...]], bool]) -> int:
        starts = self._turn_starts()
        lengths = [end - start for start, end in zip(starts, [*starts[1:], self.steps])]
        return sum(length for start, length in zip(starts, lengths) if holds(self.training(start)))

    def to_json(self) -> dict[str, Any]:
        """The phase as plain values, for the control group."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Phase":
        """The phase that `to_json` wrote."""
        turns = tuple(tuple(turn) for turn in values["turns"])
        return cls(**{**values, "turns": turns, "initialize": tuple(values["initialize"])})


@dataclass(frozen=True)
class Stop:
    """The coordinator's answer that ends a run before its time."""

    reason: str


class Schedule:
    """All phases of a run, from its configuration, its number of parts and of batches in an epoch."""

    def __init__(
        self, config: Config, num_parts: int, steps_per_epoch: int, epoch: int = 0, trained: Collection[int] = ()
    ):
        """epoch: the first to come. trained: the parts that have had updates before it, maybe under another schedule."""
        self.config = config
        self.num_parts = num_parts
        self.steps_per_epoch = steps_per_epoch
        self._epoch = epoch
        self._trained = trained

    def phases(self) -> list[Phase]:
        """Every phase from the first to the last, one for each epoch."""
        return [self.phase(epoch) for epoch in range(self.config.num_epochs)]

    def phase(self, epoch: int) -> Phase:
        """The phase that is this epoch's."""
        initialize = tuple(part for part, its_epoch in self.initialized_later.items() if its_epoch == epoch)
        return dataclasses.replace(self._phase(epoch), initialize=initialize)

    @functools.cached_property
    def initialized_later(self) -> dict[int, int]:
        """The parts that train for the first time behind parts that have trained, and the epoch in which they do."""
        first = dict.fromkeys(self._trained, -1)
        for epoch in range(self._epoch, self.config.num_local_epochs):
            for part in self._phase(epoch).trained:
                first.setdefault(part, epoch)
            if len(first) == self.num_parts:
                break
        found = sorted(first.items())
        return {part: epoch for part, epoch in found if any(first.get(each, epoch) < epoch for each in range(part))}

    def _phase(self, epoch: int) -> Phase:
        mode: Mode = self.config.schedule.mode
        steps = turn_steps = self.steps_per_epoch
        everyone = tuple(range(self.num_parts))
        turns: tuple[tuple[int, ...], ...] = (everyone,)
        offset = 0
        if epoch >= self.config.num_local_epochs:
            mode = "end_to_end" if mode == "end_to_end" else "finetune"
        elif mode == "sequential":
            turns = ((self._sequential_part(epoch),),)
        elif mode == "alternate":
            turns = tuple((part,) for part in everyone)
            turn_steps, offset = self._alternate(epoch)
        last = epoch == self.config.num_epochs - 1 or epoch == self.config.num_local_epochs - 1
        return Phase(
            epoch=epoch,
            mode=mode,
            steps=steps,
            turns=turns,
            turn_steps=turn_steps,
            offset=offset,
            is_averaged=mode not in FINETUNE and self.config.parts.latents == "averaged",
            evaluate=last or (epoch + 1) % self.config.eval.every_epochs == 0,
            checkpoint=last or (epoch + 1) % self.config.checkpoint.every_epochs == 0,
        )

    def next_phase(self, history: Sequence[Epoch]) -> Phase | Stop | None:
        """The phase that follows on the epochs of `history`; None when the run is at its end.

        Stops a run in which a part's training loss has risen by `DIVERGED_BY` over that of the first epoch it trained
        in, or the gathered flow's over the test bits/dim before: its first epoch may be the one that breaks it.
        """
        for part, loss in history[-1].train_loss.items() if history else ():
            last = history[-1]
            first = next(
                each.train_loss[part] for each in history if part in each.train_loss and each.is_local == last.is_local
            )
            measured = [each.test_bpd for each in history[:-1] if each.test_bpd is not None]
            if measured and not last.is_local:
                first = min(first, measured[-1])
            if not loss < first + DIVERGED_BY:
                return Stop(
                    f"the training loss of part {part} rose to {loss:.2f} bits/dim in epoch {last.epoch}, "
                    f"from {first:.2f} before"
                )
        return self.phase(len(history)) if len(history) < self.config.num_epochs else None

    def num_updates(self, part: int) -> int:
        """Updates of a part in all local epochs, over which its learning rate decays."""
        return sum(self.phase(epoch).count_training(part) for epoch in range(self.config.num_local_epochs))

    def num_finetune_updates(self) -> int:
        """Updates of the whole flow after the gather."""
        return (self.config.num_epochs - self.config.num_local_epochs) * self.steps_per_epoch

    def _sequential_part(self, epoch: int) -> int:
        """Equal shares of the local epochs, the remainder to the first part."""
        share, remainder = divmod(self.config.num_local_epochs, self.num_parts)
        return 0 if epoch < share + remainder else (epoch - remainder) // share

    def _alternate(self, epoch: int) -> tuple[int, int]:
        """Length of a turn in batches, and where in the rotation the epoch begins: the last turn is the last part's."""
        number, unit = self.config.schedule.turn
        turn_steps = number * self.steps_per_epoch if unit == "epochs" else number
        num_turns = math.ceil(self.config.num_local_epochs * self.steps_per_epoch / turn_steps)
        first_turn = -num_turns % self.num_parts
        return turn_steps, first_turn * turn_steps + epoch * self.steps_per_epoch


def resumed_at(manifest: Manifest | None, parts: Sequence[Part]) -> tuple[int, list[int]]:
    """The first epoch to come, and the parts of which a layer has had updates before it. manifest: None of a new run."""
    if manifest is None:
        return 0, []
    updates = {owner: count for owner, (count, _) in manifest.counts.items()}
    return manifest.epoch, [part.index for part in parts if any(updates.get(name) for name in part.names)]


def training_macs(phase: Phase, parts: Sequence[Part], batch_size: int) -> int:
    """Multiply-adds of a phase's training, with the heads' in a local one: a backward counts as two forwards, a part that
    only runs as one forward, and the latents of averaged weights as another one of a part that trains."""
    return batch_size * sum(
        part.multiply_adds(phase.is_local) * (phase.count_running(part.index) + 2 * phase.count_training(part.index))
        + part.multiply_adds() * phase.is_averaged * phase.count_training_in_front(part.index)
        for part in parts
    )


def epoch_cost(config: Config, phase: Phase, parts: Sequence[Part], num_workers: int) -> float:
    """A number that a phase's seconds grow with: the multiply-adds an image of the busiest of all workers."""
    macs = [training_macs(phase, [part], 1) for part in parts]
    replicas = config.parts.replicas
    is_pipelined = config.is_pipelined and num_workers > replicas
    if not phase.is_local and not is_pipelined:
        return max(1, sum(macs)) / (1 if config.finetune.parallel == "single" else num_workers)
    owners = owners_of([max(1, part.multiply_adds()) for part in parts], num_workers // replicas)
    by_worker = Counter[int]()
    for owner, each in zip(owners, macs):
        by_worker[owner] += each
    cost = max(1, *by_worker.values()) / replicas
    if not phase.is_local:  # the slices at which a worker waits for the first to come and for the last to go back
        slices = config.finetune.micro_batches
        cost *= (slices + len(by_worker) - 1) / slices
    return cost
