"""The workers of this machine, by their processes: one that has ended is seen at once, whatever the others wait for.

A launcher that has lost a worker ends the others with SIGTERM, the signal of a preemption too: which of the two it is, the
processes tell.
"""

import json
import os
from pathlib import Path

import torch.distributed as dist


class Siblings:
    """Who runs on this machine besides this worker, as far as the store has told so far."""

    def __init__(self, store: dist.Store, rank: int, world_size: int):
        """store: of one attempt of the launcher, so that nobody takes the processes of the one before for these."""
        self._store = store
        self._here = _this_machine()
        self._unknown = [other for other in range(world_size) if other != rank]
        self._processes: dict[int, int] = {}
        store.set(f"process/{rank}", json.dumps([self._here, os.getpid()]))

    def meet(self) -> None:
        """Looks who has come since the last call."""
        for other in [*self._unknown]:
            if self._store.check([f"process/{other}"]):
                self._unknown.remove(other)
                where, pid = json.loads(self._store.get(f"process/{other}"))
                if where and where == self._here:
                    self._processes = {**self._processes, other: pid}

    def gone(self) -> dict[int, int]:
        """Ranks and processes of those that have ended. Waits for nothing: a signal handler may ask."""
        return {rank: pid for rank, pid in self._processes.items() if not _is_alive(pid)}


def _this_machine() -> str:
    """The machine since it was started, and which of its processes can be seen; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:  # it can be seen, and not looked at
        return True
    return state not in "ZX"
