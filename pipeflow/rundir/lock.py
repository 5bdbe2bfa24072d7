"""One run at a time in a run folder: a lock of the operating system, held by rank 0 for as long as it lives.

A `flock` on the file `run.lock` keeps a second run out, not the file itself. The kernel releases it when the process ends,
however it ends, so a killed run never blocks its own resume. The file's content serves the error message only.

Between hosts the lock holds as far as the folder's file system passes locks on. NFS does, unless mounted with `nolock` or
`local_lock`; after a crash of the whole host an NFS server keeps its locks until their lease ends, about 90 s. On a file
system without locks the run says so and goes on.
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
"""How long `take` waits for a run that was killed a moment ago and is still ending."""

_FILE = "run.lock"
_TRY_EVERY = 0.2
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class RunLock:
    """The lock of one run folder."""

    def __init__(self, folder: Path):
        self.path = folder / _FILE
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process holds the lock."""
        return self._file is not None

    def take(self, patience: float = PATIENCE_SECONDS) -> str | None:
        """Takes the lock; returns a note where the file system has no locks.

        Raises CheckpointError, which names the run that holds the lock, and OSError where the folder cannot be written.
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
            os.close(file)  # the folder was moved aside meanwhile, with this file in it

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
