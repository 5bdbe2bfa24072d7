"""Initial values that layers take from data: before the run, and again before a part's first turn behind others' turns.

A part's inputs have changed by then, so that values from before the run no longer normalise them. A layer's flag
`initialized` stays false until it has the values that it is trained from.
"""

from collections.abc import Collection, Sequence

from pipeflow.training.schedule import Phase
from pipeflow.training.trainer import PartTrainer
from pipeflow.training.worker import Worker


def before_the_run(
    worker: Worker, num_parts: int, layers: bool, heads: Collection[str], initialized_later: Collection[int]
) -> None:
    """Initialises parts on the images, all workers together.

    Args:
        num_parts: of the flow.
        layers: whether all layers are to be initialised.
        heads: names of the heads that are.
        initialized_later: indices of the parts whose values are for evaluations alone, before their first turn.
    """
    parts = [trainer.part for trainer in worker.trainers]
    later = [flag for part in parts if part.index in initialized_later for flag in part.uninitialized()]
    indices = [part.index for part in parts]
    worker.initialize(
        indices if layers else [], [part.index for part in parts if part.head_name in heads], last=num_parts - 1
    )
    for flag in later:
        flag.fill_(False)


def before_their_turn(worker: Worker, phase: Phase, trainers: Sequence[PartTrainer]) -> None:
    """Initialises `trainers` on the latents that the parts before them give by now, all workers together."""
    indices = [trainer.part.index for trainer in trainers]
    worker.initialize(indices, indices, max(phase.initialize), phase.epoch, phase.is_averaged)
    for trainer in trainers:
        trainer.start_averages()


def are_final(worker: Worker) -> None:
    """Sets the flags of all layers, where the whole flow trains."""
    for trainer in worker.trainers:
        for flag in trainer.part.uninitialized():
            flag.fill_(True)
