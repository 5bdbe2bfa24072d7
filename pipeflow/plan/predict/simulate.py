"""Workers that do their operations in order, and links between them: when everything begins and ends.

    worker 0  F0 B0 F1 B1 F2 B2             an operation begins when the worker is free and all it receives is there
                \\\\    \\\\    \\\\              a message travels while both workers go on
    worker 1      .F0 B0 F1 B1 F2 B2

A link sends one message after the other, `bytes / bytes_per_second` each, and each arrives `latency` later. With a
`depth` it is pipeflow's: that many messages wait at each end at most, and a worker whose message finds no room waits too.

    put -> [depth] -> taken -> sent, once there is room behind -> arrived -> [depth] -> consumed

Nothing is random, and nothing knows of models or schedules: those are programs (see programs.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Message(NamedTuple):
    """What an operation sends once it has ended."""

    target: int
    tag: str
    num_bytes: float


class Awaited(NamedTuple):
    """What must have arrived before an operation begins. Between two workers messages are received as they were sent."""

    source: int
    tag: str


@dataclass(frozen=True)
class Operation:
    """One thing that a worker computes."""

    name: str
    seconds: float
    receives: tuple[Awaited, ...] = ()
    sends: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Link:
    """Of any worker to any other, each pair and direction by itself."""

    bytes_per_second: float = float("inf")
    latency: float = 0.0
    depth: int | None = None
    """Messages that may wait at each end; None: as many as there are."""


class Span(NamedTuple):
    """An operation, when it was done."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What each worker did when."""

    workers: list[list[Span]]

    def first(self, share: float) -> "Timeline":
        """This share of each worker's operations: of programs that repeat, its first batches."""
        return Timeline([spans[: round(len(spans) * share)] for spans in self.workers])

    @property
    def seconds(self) -> float:
        """Until the last operation has ended."""
        return max((span.end for spans in self.workers for span in spans), default=0.0)

    def busy(self) -> list[float]:
        """Seconds in which each worker computed."""
        return [sum(span.end - span.begin for span in spans) for spans in self.workers]

    @property
    def idle(self) -> float:
        """Share of all workers' time in which they did not compute."""
        return 1 - sum(self.busy()) / (len(self.workers) * self.seconds) if self.seconds else 0.0


@dataclass
class _Channel:
    """The messages of one worker to another, in order, and the times they passed each stage."""

    link: Link
    tags: list[str] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    consumed: list[float] = field(default_factory=list)
    put: list[float] = field(default_factory=list)

    def has_room(self) -> bool:
        """Whether it is known when the next message can be put."""
        depth = self.link.depth
        return depth is None or len(self.put) < depth or len(self.taken) > len(self.put) - depth

    def add(self, message: Message, time: float) -> float:
        """When the message was put, which is when its sender goes on."""
        depth = self.link.depth
        if depth is not None and len(self.put) >= depth:
            time = max(time, self.taken[len(self.put) - depth])
        self.tags.append(message.tag)
        self.sizes.append(message.num_bytes)
        self.put.append(time)
        self.advance()
        return time

    def advance(self) -> None:
        """Takes and sends all messages of which it is known when that happens."""
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
            self.sent.append(begin + self.sizes[index] / self.link.bytes_per_second)

    def arrival(self) -> float | None:
        """When the next message is there, None where that is not known yet."""
        index = len(self.consumed)
        return self.sent[index] + self.link.latency if index < len(self.sent) else None


def simulate(programs: Sequence[Sequence[Operation]], link: Link = Link()) -> Timeline:
    """When each worker does each operation of its program.

    Raises ValueError where workers wait for each other for ever, or receive in another order than was sent.
    """
    channels: dict[tuple[int, int], _Channel] = {}
    free = [0.0] * len(programs)
    done: list[list[Span]] = [[] for _ in programs]
    unsent = [0] * len(programs)
    """Messages of a worker's last operation that are still to be put, from the end."""

    def channel(source: int, target: int) -> _Channel:
        way = channels.get((source, target))
        if way is None:
            way = channels[source, target] = _Channel(link)
        return way

    def step(worker: int) -> bool:
        """One operation, or one message, further; whether that could be done."""
        if unsent[worker]:
            operation = programs[worker][len(done[worker]) - 1]
            message = operation.sends[-unsent[worker]]
            way = channel(worker, message.target)
            if not way.has_room():
                return False
            free[worker] = way.add(message, free[worker])
            unsent[worker] -= 1
            return True
        if len(done[worker]) == len(programs[worker]):
            return False
        operation = programs[worker][len(done[worker])]
        ways = [channel(awaited.source, worker) for awaited in operation.receives]
        arrivals = [way.arrival() for way in ways]
        if None in arrivals:
            return False
        begin = max([free[worker], *arrivals])
        for way, awaited in zip(ways, operation.receives):
            tag = way.tags[len(way.consumed)]
            if tag != awaited.tag:
                raise ValueError(f"worker {worker}, {operation.name}: awaits {awaited.tag!r}, but {tag!r} comes first")
            way.consumed.append(begin)
            way.advance()
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
            raise ValueError(f"worker {worker} waits for ever before {program[len(done[worker])].name}")
    return Timeline(done)
