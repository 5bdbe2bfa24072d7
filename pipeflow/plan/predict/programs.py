"""Programs: the operations of each worker in order, for each schedule. Time is in simulate.py.

With two parts, and two micro-batches for the pipelines (F forward, B backward, U update):

    concurrent   F0 BU0 F1 BU1 ...        alternate,     F0 F1 ...             GPipe  F0.0 F0.1           B0.0 B0.1 U0
                    F0  BU0 F1 ...        part 1's turn     F0 BU0 F1 BU1 ...              F0.0 F0.1 B0.0 B0.1 U0

1F1B does each backward as soon as it can, so that worker k of K holds at most K - k micro-batches.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pipeflow.plan.predict.simulate import Awaited, Message, Operation


@dataclass(frozen=True)
class PartCosts:
    """Seconds of a part on a batch, or on one micro-batch of it, and bytes of the latent that it hands on."""

    forward: float
    """Seconds of a forward, the same whether or not a backward follows."""
    backward: float
    update: float
    sent: float
    """Bytes of the latent; 0 for the last part."""
    owner: int = 0
    """Worker that holds the part."""
    reducing: float = 0.0
    """Seconds that averaging gradients with other workers adds to the backward before an update."""
    returned: float = 0.0
    """Bytes of the latent's gradient, where it goes back: in a pipeline."""


Handling = Callable[[float], float]
"""Seconds that a message of so many bytes takes of the worker that sends it, and of the one that receives it."""


def local_programs(
    parts: Sequence[PartCosts],
    training: Collection[int],
    num_batches: int,
    handling: Handling,
    num_micro: int = 1,
    is_averaged: bool = False,
) -> list[list[Operation]]:
    """Isolated parts: each hands its latent on, then trains if it is its turn; nothing comes back.

    Args:
        parts: seconds and bytes of one of the `num_micro` micro-batches in which each batch is taken.
        training: the parts whose turn it is; those behind the last of them do not run.
        is_averaged: whether averaged weights make the latents, in another forward of a part that trains.
    """
    programs: list[list[Operation]] = [[] for _ in range(max(part.owner for part in parts) + 1)]
    last = max(training)
    for batch, micro in itertools.product(range(num_batches), range(num_micro)):
        name = f"{batch}.{micro}" if num_micro > 1 else str(batch)
        for index, part in enumerate(parts[: last + 1]):
            seconds = part.forward * (2 if is_averaged and index in training and index < last else 1)
            receives: tuple[Awaited, ...] = ()
            sends: tuple[Message, ...] = ()
            if index > 0 and (before := parts[index - 1]).owner != part.owner:
                seconds += handling(before.sent)
                receives = (Awaited(before.owner, f"{index - 1}.{name}"),)
            if index < last and (after := parts[index + 1]).owner != part.owner:
                seconds += handling(part.sent)
                sends = (Message(after.owner, f"{index}.{name}", part.sent),)
            programs[part.owner].append(Operation(f"F{name}", seconds, receives, sends))
            if index in training and micro < num_micro - 1:
                programs[part.owner].append(Operation(f"B{name}", part.backward))
            elif index in training:
                programs[part.owner].append(Operation(f"BU{name}", part.backward + part.reducing + part.update))
    return programs


def gpipe_order(num_micro: int, index: int, num_workers: int) -> list[str]:
    """All forwards, then all backwards."""
    return [f"F{micro}" for micro in range(num_micro)] + [f"B{micro}" for micro in range(num_micro)]


def one_f_one_b_order(num_micro: int, index: int, num_workers: int) -> list[str]:
    """As many forwards as there are workers from this one on, then one backward and one forward in turn."""
    ahead = min(num_micro, num_workers - index)
    order = [f"F{micro}" for micro in range(ahead)]
    for micro in range(num_micro):
        order.append(f"B{micro}")
        if ahead + micro < num_micro:
            order.append(f"F{ahead + micro}")
    return order


ORDERS = {"gpipe": gpipe_order, "1f1b": one_f_one_b_order}


def pipeline_programs(
    kind: str, parts: Sequence[PartCosts], num_micro: int, num_batches: int, handling: Handling
) -> list[list[Operation]]:
    """A pipeline that is trained end to end, a worker a part: latents forward, their gradients back.

    parts: seconds and bytes of one micro-batch; all of a batch's micro-batches come before its update.
    """
    programs: list[list[Operation]] = []
    last = len(parts) - 1
    for index, part in enumerate(parts):
        program = []
        before = parts[index - 1]  # of the first, nobody's
        for batch in range(num_batches):
            for step in ORDERS[kind](num_micro, index, len(parts)):
                is_forward, name = step[0] == "F", f"{step[0]}{batch}.{step[1:]}"
                seconds = part.forward if is_forward else part.backward
                in_front = before.sent if is_forward else before.returned
                behind = part.sent if is_forward else part.returned
                seconds += handling(in_front) if index else 0.0
                seconds += handling(behind) if index < last else 0.0
                source, target = (index - 1, index + 1) if is_forward else (index + 1, index - 1)
                receives = (Awaited(source, name),) if 0 <= source <= last else ()
                sends = (Message(target, name, behind if is_forward else in_front),) if 0 <= target <= last else ()
                program.append(Operation(name, seconds, receives, sends))
            program.append(Operation(f"U{batch}", part.reducing + part.update))
        programs.append(program)
    return programs
