"""One run at a time in a run folder: a lock of the operating system, held by rank 0 for as long as it lives.

What keeps a second run out is `flock` on the file `run.lock`, not the file: the kernel lets go of it when the process ends,
however it ends, so that what a killed run leaves never blocks its resume. What stands in the file is for the message only.

Between hosts it holds as far as the folder's file system passes locks on. NFS does, unless mounted with `nolock` or
`local_lock`; after a crash of the whole host an NFS server keeps its locks until their lease ends, about 90 s. Where a
file system has no locks at all the run says so and goes on without.
"""

import errno
import fcntl
import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path

from pipeflow.errors import CheckpointError

PATIENCE_SECONDS = 5.0
"""A run that was killed a moment ago, or whose launcher was, may still be ending."""

_FILE = "run.lock"
_TRY_EVERY = 0.2
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class RunLock:
    """The lock of one run folder."""

    def __init__(self, folder: Path):
        self.path = folder / _FILE
        self._file: int | None = None

    def take(self, patience: float = PATIENCE_SECONDS) -> str | None:
        """Takes the lock, waiting a little for a run that is ending; a note where the file system has no locks.

        Raises CheckpointError that names the run that holds it, OSError where the folder cannot be written.
        """
        end = time.monotonic() + patience
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                held_by = os.pread(file, 4096, 0)
                os.close(file)
                if error.errno in _NO_LOCKS:
                    return f"the file system of {self.path.parent} has no locks: do not start a second run in it"
                if error.errno not in _HELD:
                    raise
                if time.monotonic() > end:
                    raise self._refused(held_by) from None
                time.sleep(_TRY_EVERY)
                continue
            if self._is_in_place(file):
                self._file = file
                self._sign(file)
                return None
            os.close(file)  # of a folder that was moved aside meanwhile

    def release(self) -> None:
        """Lets the next run in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _is_in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _sign(self, file: int) -> None:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode(), 0)

    def _refused(self, held_by: bytes) -> CheckpointError:
        try:
            holder = json.loads(held_by)
            who = f"process {holder['pid']} on {holder['host']} trains in it since {holder['since']}"
            ending = f"end that process on {holder['host']}"
        except (ValueError, KeyError, TypeError):
            who, ending = "another run holds its lock", "end that run"
        return CheckpointError(
            f"run.dir: {self.path.parent} is in use: {who}. Wait for its end, {ending}, or choose another run.dir."
        )
