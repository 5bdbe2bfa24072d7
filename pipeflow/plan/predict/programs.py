"""Programs: what each worker does, in order, for each schedule. Time is in simulate.py.

With two parts, and two micro-batches for the pipelines (F forward, B backward, U update):

    concurrent   F0 BU0 F1 BU1 ...        alternate,     F0 F1 ...             GPipe  F0.0 F0.1           B0.0 B0.1 U0
                    F0  BU0 F1 ...        part 1's turn     F0 BU0 F1 BU1 ...              F0.0 F0.1 B0.0 B0.1 U0

1F1B does each backward as soon as it can, so that worker k of K holds at most K - k micro-batches.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeflow.plan.predict.simulate import Awaited, Message, Operation


@dataclass(frozen=True)
class Stage:
    """A part on a batch, or on one micro-batch of it: seconds, and bytes of what it hands on."""

    forward: float
    """With gradients to come, or without: the same work."""
    backward: float
    update: float
    sent: float
    """0 for the last."""
    owner: int = 0
    """Worker that holds it."""


@dataclass(frozen=True)
class Handling:
    """What a message costs the worker that sends it, and the one that receives it, while it could compute."""

    message_seconds: float = 0.0
    byte_seconds: float = 0.0

    def seconds(self, num_bytes: float) -> float:
        """Of one end."""
        return self.message_seconds + self.byte_seconds * num_bytes


def local_programs(
    stages: Sequence[Stage], training: Collection[int], num_batches: int, handling: Handling
) -> list[list[Operation]]:
    """pipeflow's parts: each hands its latent on, then trains if it is its turn; nothing comes back.

    training: the parts whose turn it is; those behind the last of them do not run.
    """
    programs: list[list[Operation]] = [[] for _ in range(max(stage.owner for stage in stages) + 1)]
    last = max(training)
    for batch in range(num_batches):
        for index, stage in enumerate(stages[: last + 1]):
            before, after = index > 0, index < last
            receives = before and stages[index - 1].owner != stage.owner
            sends = after and stages[index + 1].owner != stage.owner
            seconds = stage.forward
            seconds += handling.seconds(stages[index - 1].sent) if receives else 0.0
            seconds += handling.seconds(stage.sent) if sends else 0.0
            programs[stage.owner].append(
                Operation(
                    f"F{batch}",
                    seconds,
                    (Awaited(stages[index - 1].owner, f"{index - 1}.{batch}"),) if receives else (),
                    (Message(stages[index + 1].owner, f"{index}.{batch}", stage.sent),) if sends else (),
                )
            )
            if index in training:
                programs[stage.owner].append(Operation(f"BU{batch}", stage.backward + stage.update))
    return programs


def gpipe_order(num_micro: int, index: int, num_stages: int) -> list[str]:
    """All forwards, then all backwards."""
    return [f"F{micro}" for micro in range(num_micro)] + [f"B{micro}" for micro in range(num_micro)]


def one_f_one_b_order(num_micro: int, index: int, num_stages: int) -> list[str]:
    """As many forwards as there are stages from here on, then one backward and one forward in turn."""
    ahead = min(num_micro, num_stages - index)
    order = [f"F{micro}" for micro in range(ahead)]
    for micro in range(num_micro):
        order.append(f"B{micro}")
        if ahead + micro < num_micro:
            order.append(f"F{ahead + micro}")
    return order


ORDERS = {"gpipe": gpipe_order, "1f1b": one_f_one_b_order}


def pipeline_programs(
    kind: str, stages: Sequence[Stage], num_micro: int, num_batches: int, handling: Handling
) -> list[list[Operation]]:
    """A pipeline that is trained end to end, a worker a stage: latents forward, gradients of the same size back.

    stages: seconds and bytes of one micro-batch; all of a batch's micro-batches come before its update.
    """
    programs: list[list[Operation]] = []
    last = len(stages) - 1
    for index, stage in enumerate(stages):
        program = []
        before = stages[index - 1].sent if index else 0.0
        for batch in range(num_batches):
            for step in ORDERS[kind](num_micro, index, len(stages)):
                tag = f"{batch}.{step[1:]}"
                forward = step[0] == "F"
                seconds = stage.forward if forward else stage.backward
                seconds += handling.seconds(before) if index else 0.0
                seconds += handling.seconds(stage.sent) if index < last else 0.0
                source, target = (index - 1, index + 1) if forward else (index + 1, index - 1)
                program.append(
                    Operation(
                        f"{step[0]}{tag}",
                        seconds,
                        (Awaited(source, f"{step[0]}{tag}"),) if 0 <= source <= last else (),
                        (Message(target, f"{step[0]}{tag}", stage.sent if forward else before),)
                        if 0 <= target <= last
                        else (),
                    )
                )
            program.append(Operation(f"U{batch}", stage.update))
        programs.append(program)
    return programs
