"""Measurements that a process takes of itself: compute time, bytes sent, bytes at the network interfaces, memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Clock:
    """The spans in which this process computes; what lies between them is waiting, or the library's own bookkeeping."""

    def __init__(self) -> None:
        self.spans: list[dict] = []
        """`name`, `start` (time.time_ns) and `duration` (ns) of each, without what was waited inside it."""
        self._waited = 0

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Computing happens in here."""
        waited, began, start = self._waited, time.time_ns(), time.perf_counter_ns()
        yield
        duration = time.perf_counter_ns() - start - (self._waited - waited)
        self.spans.append({"name": name, "start": began, "duration": duration})

    def timed(self, name: str, function: Callable) -> Callable:
        """The function, each call a span `name N`, where N is its first argument."""

        def run(number: int, *arguments: Any, **named: Any) -> Any:
            with self.span(f"{name} {number}"):
                return function(number, *arguments, **named)

        return run

    def waited(self, nanoseconds: int) -> None:
        """So much of the span that is open was no computing."""
        self._waited += nanoseconds

    def busy_seconds(self) -> float:
        """Seconds of all spans."""
        return sum(span["duration"] for span in self.spans) / 1e9

    def reset(self) -> None:
        """Forgets all spans."""
        self.spans = []


@dataclass
class Sent:
    """Bytes that this process has sent. What is all-reduced counts as backward, by the ring formula."""

    forward: int = 0
    backward: int = 0

    def reset(self) -> None:
        """To zero."""
        self.forward = self.backward = 0


def ring_bytes(num_bytes: int, world_size: int) -> int:
    """Bytes that each of `world_size` workers sends in a ring all-reduce of `num_bytes`."""
    return 2 * (world_size - 1) * num_bytes // world_size


def interface_bytes() -> dict[str, int]:
    """Bytes that each network interface of this machine (or network namespace) has sent so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return {line.split(":")[0].strip(): int(line.split(":")[1].split()[8]) for line in lines}


def peak_memory(pid: int | str = "self") -> int:
    """Largest resident memory of a process so far, in bytes; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
