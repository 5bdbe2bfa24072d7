"""The processes of the workers on this machine: one that has ended is seen at once, whatever the others wait for.

A launcher that has lost a worker ends the others with SIGTERM, which is also the signal of a preemption. Whether a process
has ended tells the two apart.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


class LocalProcesses:
    """The other workers on this machine, as far as they have written into the store."""

    def __init__(self, store: "Store", rank: int, world_size: int):
        """store: of one attempt of the launcher, so that nobody mistakes processes of the one before for these."""
        self._store = store
        self._here = this_machine()
        self._unknown = {other for other in range(world_size) if other != rank}
        self._processes: dict[int, int] = {}
        store.set(f"process/{rank}", json.dumps([self._here, os.getpid()]))

    def meet(self) -> None:
        """Reads the processes of those who have come since the last call."""
        for other in [*self._unknown]:
            if self._store.check([f"process/{other}"]):
                self._unknown.remove(other)
                where, pid = json.loads(self._store.get(f"process/{other}"))
                if where and where == self._here:
                    # Replaced, not changed: a signal handler may read it at any moment.
                    self._processes = {**self._processes, other: pid}

    def ended(self) -> dict[int, int]:
        """Ranks and processes of those that have ended. Waits for nothing, since a signal handler asks."""
        return {rank: pid for rank, pid in self._processes.items() if state_of(pid) in ("Z", "X")}


def this_machine() -> str:
    """The machine since it was booted and its process namespace; empty where they cannot be read."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def state_of(pid: int) -> str:
    """The letter that Linux has for the state of a process, such as T for a stopped one; `X` where there is none.

    Empty where it may not be looked at.
    """
    try:
        return _stat(pid)[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    except OSError:
        return ""


def started_at(pid: int) -> str:
    """When a process began, in Linux's ticks since the boot. Empty where that cannot be known."""
    try:
        return _stat(pid)[19]
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat of a process, from its state on, which is number 3 in proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
