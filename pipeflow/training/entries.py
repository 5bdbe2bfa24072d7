"""How rank 0 hears that the files of a checkpoint are on the disk: through the launcher's store.

It does not look at the disk: on a network file system others may see a file half a minute after it was written.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeflow.rundir.records import File
from pipeflow.workers.traffic import Traffic

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


class Entries:
    """One worker's view of the files that all workers have written."""

    def __init__(self, store: "Store | None", rank: int, traffic: Traffic):
        """store: a connection that nothing else uses; None where there is one worker."""
        self._store = store
        self._rank = rank
        self._traffic = traffic
        self._mine: dict[str, File] = {}

    def tell(self, checkpoint: str, file: File) -> None:
        """Says that this worker's file of a checkpoint is on the disk."""
        if self._rank == 0 or self._store is None:
            self._mine = {checkpoint: file}
            return
        key, value = self._key(checkpoint, self._rank), json.dumps(file.to_json())
        self._store.set(key, value)
        self._traffic.add("control", self._rank, 0, len(key) + len(value))

    def collect(self, checkpoint: str, ranks: Sequence[int]) -> list[File] | None:
        """The files of all these workers, once, on rank 0; None as long as one is missing."""
        keys = {rank: self._key(checkpoint, rank) for rank in ranks if rank != 0}
        files = {0: self._mine[checkpoint]} if 0 in ranks else {}
        if keys and self._store is not None:
            if not self._store.check(list(keys.values())):
                return None
            for rank, key in keys.items():
                files[rank] = File.from_json(json.loads(self._store.get(key)))
                self._store.delete_key(key)
        return [files[rank] for rank in ranks]

    def _key(self, checkpoint: str, rank: int) -> str:
        return f"saved/{checkpoint}/{rank}"
