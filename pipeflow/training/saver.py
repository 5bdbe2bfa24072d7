"""Writes checkpoints beside the training, which waits for a copy of its tensors in memory and not for the disk.

    every worker's training   copies its tensors -> trains on ...
    its thread                                      writes, hashes and syncs its file -> entry to rank 0
    rank 0's thread                                 ... once it has everybody's: manifest, and the folder gets its name

The next checkpoint waits for the one before, the end of a run and a preemption for the last one. A thread that cannot
write trips the alarm, which ends the run at its next batch.
"""

import os
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

from torch import Tensor

from pipeflow.errors import CheckpointError
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.rundir.records import Manifest
from pipeflow.training.entries import Entries
from pipeflow.training.snapshot import Snapshot
from pipeflow.workers.alarm import Alarm, is_broken_connection

_LOWEST_PRIORITY = 19
"""Nice value of the writing threads: where all cores compute, hashing gets about a hundredth of one of them."""
_POLL_SECONDS = 0.05
_CLOSING_SECONDS = 5.0
"""Seconds that a run which ends with an error gives the checkpoint that it was writing."""


class Saver:
    """One worker's share of the checkpoints of a run, one checkpoint at a time."""

    def __init__(self, checkpoints: Checkpoints, rank: int, entries: Entries, alarm: Alarm):
        self._checkpoints = checkpoints
        self._rank = rank
        self._entries = entries
        self._alarm = alarm
        self._snapshot = Snapshot()
        self._job: _Job | None = None

    def copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies what is to be saved, after the checkpoint before has been written."""
        self.wait()
        self._snapshot.take(tensors)

    def save(
        self,
        epoch: int,
        step: int,
        writers: Sequence[int] = (),
        manifest: Manifest | None = None,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins to write the copy, and returns.

        writers: ranks that have a file. manifest: on rank 0, all but the files. before_commit: is called by the writing
        thread before the manifest is written.
        """
        self._job = _Job(self._steps(epoch, step, writers, manifest, before_commit), self._failed(epoch))

    def _steps(
        self,
        epoch: int,
        step: int,
        writers: Sequence[int],
        manifest: Manifest | None,
        before_commit: Callable[[], None],
    ) -> Generator[float | None, None, None]:
        """Does the work piece by piece, and gives the seconds to wait before the next."""
        name = f"{epoch}-{step}"
        file = yield from self._checkpoints.write(epoch, self._rank, self._snapshot.chunks(), step)
        self._entries.tell(name, file)
        if manifest is None:
            return
        while (files := self._entries.collect(name, writers)) is None:
            yield _POLL_SECONDS
        before_commit()
        self._checkpoints.commit(files, manifest)

    def _failed(self, epoch: int) -> Callable[[Exception], None]:
        def failed(error: Exception) -> None:
            if isinstance(error, CheckpointError):
                self._alarm.trip(error)
            elif not is_broken_connection(error):
                # A bug, as like as not; the run must not go on unsaved. A broken store is the monitor's to tell of.
                self._alarm.trip(self._checkpoints.not_written(epoch, error))

        return failed

    def wait(self) -> None:
        """Waits until what was begun is done: this worker's file on the disk, on rank 0 the checkpoint whole.

        Raises what kept it from being so.
        """
        job = self._job
        if job is None:
            return
        job.hurry()
        error = self._alarm.get(job.ended)
        self._job = None
        if error is not None:
            self._alarm.check()
            raise error

    def close(self) -> None:
        """Ends the writing. A run that failed still gets the checkpoint that it was writing, if that takes few seconds."""
        job, self._job = self._job, None
        if job is not None:
            job.hurry()
            job.leave(_CLOSING_SECONDS)


class _Job:
    """Work in small pieces, begun by a thread of low priority. If someone waits, a normal-priority thread finishes it."""

    def __init__(self, steps: Iterator[float | None], failed: Callable[[Exception], None]):
        self.ended: queue.Queue[Exception | None] = queue.Queue()
        """Gets the error that ended the work, or None."""
        self._steps = steps
        self._failed = failed
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._start(self._run_beside)

    def hurry(self) -> None:
        """Starts the second thread: somebody waits now, and a thread's priority may be lowered but not raised again."""
        self._start(self._run)

    def leave(self, seconds: float) -> None:
        """Waits so long, then leaves the work at the piece it is at."""
        self._over.wait(seconds)
        self._over.set()

    def _start(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name="pipeflow-checkpoint", daemon=True).start()

    def _run_beside(self) -> None:
        if sys.platform == "linux":  # where threads have a priority each
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        self._run()

    def _run(self) -> None:
        while not self._over.is_set():
            with self._lock:
                if self._over.is_set():
                    return
                pause = self._next()
            if pause:
                self._over.wait(pause)

    def _next(self) -> float:
        try:
            return next(self._steps) or 0.0
        except StopIteration:
            self._end(None)
        except Exception as error:  # any: nobody else would hear of it
            self._failed(error)
            self._end(error)
        return 0.0

    def _end(self, error: Exception | None) -> None:
        self._over.set()
        self.ended.put(error)
