"""The alarm of a worker: the first error of any thread, which every wait listens to and raises.

A wait inside torch (an all-reduce with a worker that stands still, the making of a group) cannot listen. Where nobody has
heard the alarm for some seconds, a guard prints the error and ends the process.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch.distributed as dist

from pipeflow.errors import PipeflowError, WorkerError
from pipeflow.output import end_with
from pipeflow.workers import parent

T = TypeVar("T")

POLL_SECONDS = 0.2
_GUARD_SECONDS = 1.0
_UNHEARD_SECONDS = 5.0
"""The computing thread cannot hear an alarm that no wait has raised for so long."""
_CULPRIT_SECONDS = 6.0
"""A peer that is itself waiting gets so long to report the real failure."""


class Alarm:
    """The first error of any thread of this worker. Every wait goes through it."""

    def __init__(self, rank: int = 0) -> None:
        """rank: this worker's, for messages."""
        self.rank = rank
        self.doing = "computed"
        """The computing thread's activity, in the words of a message: "worker 0 <doing>"."""
        self.doing_of: Callable[[int], str] = lambda other: ""
        """The activity of another worker, empty where it is not known."""
        self.about: Callable[[int], str] = lambda other: ""
        """Another worker's parts and position, in brackets behind its number; empty where they are not known."""
        self.watches: list[Callable[[], None]] = []
        """Called by the guard once a second, to trip the alarm."""
        self._error: PipeflowError | None = None
        self._tripped_at = 0.0
        self._heard = False
        self._lock = threading.Lock()

    def trip(self, error: PipeflowError) -> None:
        """Makes every wait raise this error, unless another one came first."""
        with self._lock:
            if self._error is None:
                self._error, self._tripped_at = error, time.monotonic()

    def trip_loss(self, event: str) -> None:
        """Trips with the WorkerError of `loss`."""
        self.trip(self.loss(event))

    def loss(self, event: str, detail: str = "") -> WorkerError:
        """The error of a lost worker: the event, what this worker did meanwhile, a detail in brackets, and what to do."""
        trouble = parent.trouble()
        if trouble:  # who is lost beside it was lost with it
            event, detail = f"worker {self.rank}: {trouble}", ""
        detail = f" ({detail})" if detail else ""
        error = WorkerError(
            f"{event}, while worker {self.rank} {self.doing}{detail}. Start the same command again to resume."
        )
        error.reported = parent.is_said_elsewhere()
        return error

    @property
    def error(self) -> PipeflowError | None:
        """The error that the alarm was tripped with."""
        return self._error

    def check(self) -> None:
        """Raises the error that the alarm was tripped with."""
        if self._error is not None:
            self._heard = True
            raise self._error

    def listen(self, seconds: float) -> None:
        """Waits for an error that may come within these seconds, and raises it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            time.sleep(POLL_SECONDS)

    def get(self, source: "queue.Queue[T] | queue.SimpleQueue[T]", doing: str = "waited for another") -> T:
        """The next item of a queue, however long it takes. doing: the activity to report if an error comes meanwhile."""
        return self.keep_trying(lambda seconds: source.get(timeout=seconds), doing)

    def keep_trying(
        self, attempt: Callable[[float], T], doing: str, timeout: float | None = None, late: Callable[[], str] = str
    ) -> T:
        """Repeats an attempt on a queue until it succeeds; its result.

        Args:
            attempt: gets from or puts into a queue, and waits for at most the seconds that it is given.
            doing: the activity to report if an error comes meanwhile.
            timeout: seconds after which a WorkerError with the text of `late` is raised; None for never.
            late: makes the text when it is needed.
        """
        waited, last = 0.0, time.monotonic()
        with self.telling(doing):
            while True:
                self.check()
                try:
                    return attempt(POLL_SECONDS)
                except (queue.Empty, queue.Full):
                    now = time.monotonic()
                    # A process that was stopped (SIGSTOP, Ctrl-Z) and continued has not waited meanwhile.
                    waited, last = waited + min(now - last, _GUARD_SECONDS), now
                    if timeout is not None and waited > timeout:
                        raise WorkerError(late()) from None

    def call(self, operation: Callable[[], T], doing: str) -> T:
        """The result of what blocks inside torch, and so hears neither errors nor signals: it runs in a thread."""
        answer: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answer.put((operation(), None))
            except Exception as error:
                answer.put((None, error))

        threading.Thread(target=run, name="pipeflow-call", daemon=True).start()
        result, error = self.get(answer, doing)
        if error is not None:
            raise error
        return cast(T, result)

    def wait_for_culprit(self, peer: int, text: str) -> str:
        """The text of the error for a peer that was waited for in vain.

        A peer that is itself waiting is not the culprit. It gets a few seconds to report the real failure, which is then
        raised here.
        """
        end = time.monotonic() + _CULPRIT_SECONDS
        while (doing := self.doing_of(peer)).startswith("waited"):
            if time.monotonic() > end:
                return f"{text} Worker {peer} itself {doing}."
            self.listen(POLL_SECONDS)
        return text

    @contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """Sets the activity for the block. After an error it stays, for the message."""
        before, self.doing = self.doing, doing
        yield
        self.doing = before

    def start_guard(self) -> threading.Event:
        """Starts the thread that watches the launcher, and that alarms are heard. Setting the event ends it."""
        ended = threading.Event()
        threading.Thread(target=self._guard, args=(ended,), name="pipeflow-guard", daemon=True).start()
        return ended

    def _guard(self, ended: threading.Event) -> None:
        last = time.monotonic()
        while not ended.wait(_GUARD_SECONDS):
            if parent.is_gone():
                self.trip_loss("the launcher is gone")
            now = time.monotonic()
            was_stopped, last = now - last > 2 * _GUARD_SECONDS, now
            for watch in self.watches if not was_stopped else []:  # the threads that they watch have been stopped too
                watch()
            tripped = self._error
            if tripped is not None and not self._heard and time.monotonic() - self._tripped_at > _UNHEARD_SECONDS:
                end_with(1, f"error: {tripped}", quiet=tripped.reported)


def is_broken_connection(error: Exception) -> bool:
    """Whether this is an error of torch that says that another process, or the connection to it, is gone."""
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error))
