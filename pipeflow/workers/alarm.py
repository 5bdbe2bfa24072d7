"""An alarm that every wait of a worker listens to."""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch.distributed as dist

from pipeflow.errors import PipeflowError, WorkerError
from pipeflow.workers import parent

BEAT_SECONDS = 1.0
QUIET_SECONDS = 3.0
"""Without a beat for so long a worker is not believed to do what it did."""
_PATIENCE_SECONDS = 2 * QUIET_SECONDS
UNHEARD_SECONDS = 5.0
"""An alarm that no wait has heard for so long is one that the computing thread cannot hear."""
_POLL_SECONDS = 0.2


class Alarm:
    """The first error that any thread of this worker runs into; what waits, waits through it."""

    def __init__(self) -> None:
        self.doing = "computed"
        """What the computing thread does, in the words of a message: \"worker 0 <doing>\"."""
        self.doing_of: Callable[[int], str] = lambda other: ""
        """What another worker does, as far as this one knows; empty where it does not."""
        self._error: PipeflowError | None = None
        self._tripped_at = 0.0
        self._heard = False
        self._lock = threading.Lock()

    def trip(self, error: PipeflowError) -> None:
        """Makes every wait end with this error, unless one came before."""
        with self._lock:
            if self._error is None:
                self._error, self._tripped_at = error, time.monotonic()

    def unheard(self) -> PipeflowError | None:
        """The error that has been waiting for somebody to check for longer than it should."""
        late = self._error is not None and time.monotonic() - self._tripped_at > UNHEARD_SECONDS
        return self._error if late and not self._heard else None

    def check(self) -> None:
        """Raises the error the alarm was tripped with."""
        if self._error is not None:
            self._heard = True
            raise self._error

    def wait(self, seconds: float) -> None:
        """Waits for an error that may come, and raises it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            time.sleep(_POLL_SECONDS)

    def too_late(self, peer: int, text: str) -> str:
        """The words for a peer that was waited for in vain.

        One that waits itself is not the cause: it is given some seconds to tell of it, which raises what it tells.
        """
        end = time.monotonic() + _PATIENCE_SECONDS
        while (doing := self.doing_of(peer)).startswith("waited"):
            if time.monotonic() > end:
                return f"{text} Worker {peer} itself {doing}."
            self.wait(_POLL_SECONDS)
        return text

    @contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """What the computing thread does in the block; after an error it stays what it was about."""
        before, self.doing = self.doing, doing
        yield
        self.doing = before

    def get(
        self, source: queue.Queue, timeout: float | None, late: Callable[[], str], doing: str = "waited for another"
    ) -> Any:
        """The next item of a queue; WorkerError with the text of `late` after `timeout` seconds (None: never).

        doing: what for, should an error come from elsewhere meanwhile.
        """
        return self._wait(lambda: source.get(timeout=_POLL_SECONDS), timeout, late, doing)

    def put(
        self,
        target: queue.Queue,
        item: Any,
        timeout: float | None,
        late: Callable[[], str],
        doing: str = "waited for another",
    ) -> None:
        """Adds to a bounded queue, waiting for room as `get` waits for an item."""
        self._wait(lambda: target.put(item, timeout=_POLL_SECONDS), timeout, late, doing)

    def _wait(self, attempt: Callable[[], Any], timeout: float | None, late: Callable[[], str], doing: str) -> Any:
        start = time.monotonic()
        with self.telling(doing):
            while True:
                self.check()
                try:
                    return attempt()
                except (queue.Empty, queue.Full):
                    if timeout is not None and time.monotonic() - start > timeout:
                        raise WorkerError(late()) from None


def guard(rank: int, alarm: Alarm, closed: threading.Event) -> None:
    """Watches the launcher, and that alarms are heard; for a thread, until it is closed."""
    while not closed.wait(BEAT_SECONDS):
        if parent.is_gone():
            alarm.trip(
                WorkerError(
                    f"worker {rank}: the launcher (process {parent.PROCESS}) is gone, while worker {rank} {alarm.doing}. "
                    f"Start the same command again to resume."
                )
            )
        error = alarm.unheard()
        if error is not None:
            end_process(error)


def end_process(error: PipeflowError) -> NoReturn:
    """Ends a process whose computing thread is beyond reach."""
    try:
        if not error.reported:
            print(f"error: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def is_broken_connection(error: RuntimeError) -> bool:
    """Whether torch says with it that another process, or the way to it, is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of a C++ error, without the place in torch where it was thrown."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.split("] ", 1)[-1][:160]
