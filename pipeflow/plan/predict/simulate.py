"""Workers that do their operations in order, and links between them: when everything begins and ends.

    worker 0  F0 B0 F1 B1 F2 B2             an operation begins when the worker is free and all it receives is there
                \\\\    \\\\    \\\\              a message travels while both workers go on
    worker 1      .F0 B0 F1 B1 F2 B2

A link sends one message after the other, `bytes / bytes_per_second` each, and each arrives `latency` later. With a
`depth` it is pipeflow's: that many messages wait at each end at most, and a worker whose message finds no room waits too.

    put -> [depth] -> taken -> sent, once there is room behind -> arrived -> [depth] -> consumed

Nothing is random, and nothing knows of models or schedules: those are programs (see programs.py).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Message(NamedTuple):
    """A message that an operation sends once it has ended."""

    target: int
    tag: str
    num_bytes: float


class Awaited(NamedTuple):
    """A message that must have arrived before an operation begins; messages arrive in the order they were sent."""

    source: int
    tag: str


@dataclass(frozen=True)
class Operation:
    """Something that a worker computes."""

    name: str
    seconds: float
    receives: tuple[Awaited, ...] = ()
    sends: tuple[Message, ...] = ()


@dataclass(frozen=True)
class SimulatedLink:
    """The link between any two workers, each pair and direction by itself."""

    bytes_per_second: float = float("inf")
    latency: float = 0.0
    depth: int | None = None
    """Messages that may wait at each end; None: as many as there are."""
    meets: bool = False
    """Whether a message leaves only when its receiver has come to where it awaits it, as with torch's send and recv: its
    request takes a latency, and the receiver idles while the message travels."""


class Span(NamedTuple):
    """An operation, and when it was done."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class SimulatedTimeline:
    """The operations of each worker, and when it did them."""

    workers: list[list[Span]]

    def first(self, share: float) -> "SimulatedTimeline":
        """This share of each worker's operations: the first batches of programs that repeat."""
        return SimulatedTimeline([spans[: round(len(spans) * share)] for spans in self.workers])

    @property
    def seconds(self) -> float:
        """Seconds until the last operation has ended."""
        return max((span.end for spans in self.workers for span in spans), default=0.0)

    def busy(self) -> list[float]:
        """Seconds in which each worker computed."""
        return [sum(span.end - span.begin for span in spans) for spans in self.workers]

    def share_alone(self) -> float:
        """Share of the time in which one worker computes and no other does."""
        changes = sorted(
            (time, change)
            for spans in self.workers
            for span in spans
            for time, change in ((span.begin, 1), (span.end, -1))
        )
        alone, running, before = 0.0, 0, 0.0
        for time, change in changes:
            alone += (time - before) * (running == 1)
            running, before = running + change, time
        return alone / self.seconds if self.seconds else 0.0


@dataclass
class _Channel:
    """The messages of one worker to another, in order, and the times at which each was put, taken, sent and consumed."""

    link: SimulatedLink
    messages: list[Message] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    consumed: list[float] = field(default_factory=list)
    put: list[float] = field(default_factory=list)

    def has_room(self) -> bool:
        """Whether it is known when the next message can be put."""
        depth = self.link.depth
        return depth is None or len(self.put) < depth or len(self.taken) > len(self.put) - depth

    def add(self, message: Message, time: float) -> float:
        """Puts the message, and returns when that was, which is when its sender goes on."""
        depth = self.link.depth
        if depth is not None and len(self.put) >= depth:
            time = max(time, self.taken[len(self.put) - depth])
        self.messages.append(message)
        self.put.append(time)
        self.advance()
        return time

    def advance(self) -> None:
        """Takes and sends all messages whose times are known by now."""
        depth = self.link.depth
        while len(self.sent) < len(self.put):
            index = len(self.sent)
            if len(self.taken) == index:
                self.taken.append(max(self.put[index], self.sent[-1] if self.sent else 0.0))
            begin = self.taken[index]
            if depth is not None and index >= depth:
                if len(self.consumed) <= index - depth:
                    return
                begin = max(begin, self.consumed[index - depth])
            self.sent.append(begin + self._seconds(index))

    def _seconds(self, index: int) -> float:
        return self.messages[index].num_bytes / self.link.bytes_per_second

    def arrival(self, awaited_from: float) -> float | None:
        """Time at which the next message is there; None where that is not known yet."""
        index = len(self.consumed)
        if index >= len(self.sent):
            return None
        if self.link.meets:
            asked = max(self.put[index], awaited_from + self.link.latency)
            return asked + self._seconds(index) + self.link.latency
        return self.sent[index] + self.link.latency


def simulate(programs: Sequence[Sequence[Operation]], link: SimulatedLink = SimulatedLink()) -> SimulatedTimeline:
    """Runs each worker's program over links of one kind.

    Raises ValueError where workers wait for each other for ever, or receive in another order than was sent.
    """
    channels: dict[tuple[int, int], _Channel] = defaultdict(lambda: _Channel(link))
    free = [0.0] * len(programs)
    done: list[list[Span]] = [[] for _ in programs]
    unsent = [0] * len(programs)
    """Messages of a worker's last operation that are still to be put, from the end."""

    def step(worker: int) -> bool:
        """Goes one operation or one message further; returns whether that could be done."""
        if unsent[worker]:
            operation = programs[worker][len(done[worker]) - 1]
            message = operation.sends[-unsent[worker]]
            channel = channels[worker, message.target]
            if not channel.has_room():
                return False
            free[worker] = channel.add(message, free[worker])
            unsent[worker] -= 1
            return True
        if len(done[worker]) == len(programs[worker]):
            return False
        operation = programs[worker][len(done[worker])]
        begin = free[worker]
        for awaited in operation.receives:
            arrival = channels[awaited.source, worker].arrival(free[worker])
            if arrival is None:
                return False
            begin = max(begin, arrival)
        for awaited in operation.receives:
            channel = channels[awaited.source, worker]
            tag = channel.messages[len(channel.consumed)].tag
            if tag != awaited.tag:
                raise ValueError(f"worker {worker}, {operation.name}: awaits {awaited.tag!r}, but {tag!r} comes first")
            channel.consumed.append(begin)
            channel.advance()
        free[worker] = begin + operation.seconds
        done[worker].append(Span(operation.name, begin, free[worker]))
        unsent[worker] = len(operation.sends)
        return True

    moved = True
    while moved:
        moved = False
        for worker in range(len(programs)):
            while step(worker):
                moved = True
    for worker, program in enumerate(programs):
        if len(done[worker]) < len(program):
            raise ValueError(f"worker {worker} waits forever before {program[len(done[worker])].name}")
    return SimulatedTimeline(done)
