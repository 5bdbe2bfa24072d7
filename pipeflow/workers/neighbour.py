"""The worker with the next rank, whose end is seen at once on whatever machine it ran, though nobody waits for it.

    worker 0 listens to worker 1, worker 1 to worker 2, the last one to worker 0

A receive from that worker waits for the whole run, in a thread and a gloo group of its own. The kernel of a machine whose
process has ended closes its connections, which ends the receive. One word, at the end of the run, ends it too.
"""

import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

_PARTING_SECONDS = 0.5
"""Workers that leave together do so within this time."""


class Neighbour:
    """This worker's watch over the next one."""

    def __init__(self, rank: int, world_size: int, group: dist.ProcessGroup, lost: Callable[[int], None]):
        """lost: is called with the rank of a worker that has ended before the run."""
        self._next, self._before = (rank + 1) % world_size, (rank - 1) % world_size
        self._group = group
        self._lost = lost
        self._is_over = False
        threading.Thread(target=self._listen, name="pipeflow-neighbour", daemon=True).start()

    def say_end(self) -> None:
        """Tells the worker that watches this one that it ends as it should. All workers are still there."""
        self._is_over = True
        dist.send(torch.zeros(1), self._before, group=self._group)

    def abandon(self) -> None:
        """Ends the watch."""
        self._is_over = True

    def _listen(self) -> None:
        try:
            dist.recv(torch.empty(1), self._next, group=self._group)
        except RuntimeError:
            time.sleep(_PARTING_SECONDS)
            if not self._is_over:
                self._lost(self._next)
