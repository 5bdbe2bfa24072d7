"""The way of checkpoint files' entries to rank 0."""

import json
from collections.abc import Sequence

import torch.distributed as dist

from pipeflow.workers.traffic import Traffic


class Entries:
    """The way of the files' entries to rank 0: through the launcher's store, over a connection of its own.

    Not over the disk: on a network file system a file may be seen by others half a minute after it was written.
    """

    def __init__(self, store: dist.Store | None, rank: int, traffic: Traffic):
        """store: None where there is but one worker."""
        self._store = store
        self._rank = rank
        self._traffic = traffic
        self._mine: dict[str, dict] = {}

    def tell(self, checkpoint: str, entry: dict) -> None:
        """This worker's file of a checkpoint is on the disk."""
        if self._rank == 0:
            self._mine = {checkpoint: entry}
            return
        key, value = self._key(checkpoint, self._rank), json.dumps(entry)
        self._store.set(key, value)
        self._traffic.add("control", self._rank, 0, len(key) + len(value))

    def collect(self, checkpoint: str, ranks: Sequence[int]) -> list[dict] | None:
        """On rank 0: the entries of all these workers, once; None as long as there are not all of them."""
        others = {rank: self._key(checkpoint, rank) for rank in ranks if rank != 0}
        if others and not self._store.check(list(others.values())):
            return None
        entries = [self._mine[checkpoint] if rank == 0 else json.loads(self._store.get(others[rank])) for rank in ranks]
        for key in others.values():
            self._store.delete_key(key)
        return entries

    def _key(self, checkpoint: str, rank: int) -> str:
        return f"saved/{checkpoint}/{rank}"
