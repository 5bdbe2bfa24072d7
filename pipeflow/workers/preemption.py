"""SIGTERM, SIGINT (Ctrl-C) and SIGHUP as a notice: the run saves itself and leaves.

    signal at any worker -> [its monitor tells the others'] -> the worker in front stops before its next batch and says so
    down the links, behind its last latent -> everybody has trained the same batches -> checkpoint -> exit code 75

Nobody has to agree on a batch: a worker behind the front one hears of the stop in the order of the latents, and a worker
that does not depend on it has nothing to do in this phase. A second thread ends the process when the time is over.

A second Ctrl-C ends the process at once. torchrun's agent passes the first one on as SIGINT and the second as SIGTERM,
to workers that are in sessions of their own. A signal that repeats the first, which schedulers send to the agent and to
the workers alike, is no second one.
"""

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from pipeflow.errors import PREEMPTED_EXIT_CODE, Preempted
from pipeflow.output import end_with
from pipeflow.workers import parent

NOTICES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LAST_WORDS_SECONDS = 5.0
_HELD_SECONDS = 2.5
"""A loss is known to the workers of all machines within this time."""
_REPEATED_SECONDS = 1.0
"""A second SIGINT within this time comes from whoever sent the first, by another way."""


class _Deadline(NamedTuple):
    """When and how the grace thread ends the process."""

    seconds: float
    code: int
    message: Callable[[], str] = str


STOP = "stop()"
"""Stands for a signal where the caller of `train` asked the run to leave."""


class Notice:
    """Whether the run was asked to leave, by a signal or by another worker."""

    def __init__(self, rank: int):
        self.rank = rank
        self.from_rank: int | None = None
        """The worker that got the signal first, as far as this one knows; None without a notice."""
        self.signal = ""
        """Name of that signal, or `STOP`."""
        self.is_asked: Callable[[], bool] = lambda: False
        """Whether the caller of `train` asks the run to leave. Must not wait."""
        self.is_of_a_loss: Callable[[], bool] = lambda: False
        """Whether a SIGTERM comes from the launcher, which ends the workers that a lost one leaves. Must not wait."""
        self.hears_late = False
        """Whether a worker may be lost elsewhere, and this one hears of it after the launcher's SIGTERM."""
        self._held_since: float | None = None
        """When a SIGTERM came that may still turn out to be no notice."""
        self._given_at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._has_failed = False
        self._grace: _Deadline | None = None
        self._events: queue.SimpleQueue[_Deadline | None] = queue.SimpleQueue()
        """For the grace thread: deadlines, and None for the end. Unlike an Event, a signal handler may use it."""

    def __bool__(self) -> bool:
        if self.from_rank is None and self.is_asked():
            self.give(self.rank, STOP)
        return self.from_rank is not None

    def __str__(self) -> str:
        """The notice at the begin of a message: `interrupted (SIGINT at worker 0)`."""
        kind = "interrupted" if self.signal in ("SIGINT", STOP) else "preempted"
        # Without a sender this worker was stopped before it was told by whom, and another one says it.
        return kind if self.from_rank is None else f"{kind} ({self.signal} at worker {self.from_rank})"

    def give(self, from_rank: int, name: str) -> None:
        """Asks the run to leave. name: of the signal that `from_rank` got."""
        if self.from_rank is None:
            self.signal, self._given_at, self.from_rank = name, time.monotonic(), from_rank
            # Nobody kills a process that was interrupted by hand: it takes the time it needs.
            if self._grace is not None and not (name in ("SIGINT", STOP) and "RANK" not in os.environ):
                self._events.put(self._grace)

    @contextmanager
    def listening(self, grace_s: float, last_good: Callable[[], str]) -> Iterator[None]:
        """Takes signals as notices inside the block; a process that is still in it `grace_s` seconds later is ended.

        After an error in the block the handlers stay until `close`, so that the error can be told: a SIGTERM ends the
        process some seconds later. A thread that is not the main one cannot listen to signals: there they stay what they
        were, and only the notices of other workers count. After a loss the launcher's SIGTERM is no notice: the monitor
        ends this worker. With several machines a SIGTERM is held back for as long as word of a loss may take. A signal
        that the process was started to ignore, as by nohup, stays ignored.

        Args:
            grace_s: seconds from the notice to the end of the process.
            last_good: names the checkpoint to resume from, for the message.
        """

        def late() -> str:
            return (
                f"preempted: worker {self.rank} could not save the run within {grace_s:g} s (checkpoint.grace_s) of the "
                f"{self.signal}: {last_good()}, what was trained after it is lost. {parent.how_to_resume()}"
            )

        self._grace = _Deadline(grace_s, PREEMPTED_EXIT_CODE, late)
        threading.Thread(target=self._end_late, name="pipeflow-grace", daemon=True).start()
        if self:  # another worker was quicker
            self._events.put(self._grace)
        if threading.current_thread() is threading.main_thread():
            for number in NOTICES:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._take_signal)
        try:
            yield
        except BaseException as error:
            self._has_failed = not isinstance(error, Preempted)
            raise
        else:
            self.close()

    def close(self) -> None:
        """Gives the signals back, and ends the thread."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._events.put(None)

    def _take_signal(self, number: int, *_: object) -> None:
        if self._is_second(number):
            before = self._before.get(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
            signal.raise_signal(signal.SIGINT)
        elif self._has_failed:
            self._events.put(_Deadline(_LAST_WORDS_SECONDS, 128 + number))
        elif number == signal.SIGTERM and self.hears_late:
            self._held_since = self._held_since or time.monotonic()
        elif number != signal.SIGTERM or not self.is_of_a_loss():
            self.give(self.rank, signal.Signals(number).name)

    def settle(self) -> None:
        """Takes a SIGTERM that was held back as a notice, unless a loss was heard of meanwhile."""
        if self._held_since is not None and time.monotonic() - self._held_since > _HELD_SECONDS:
            if not self.is_of_a_loss():
                self.give(self.rank, "SIGTERM")
            self._held_since = None

    def _is_second(self, number: int) -> bool:
        """Whether this is a person's wish to wait no longer."""
        if not self and not self._has_failed:
            return False
        if number == signal.SIGINT:
            return not parent.is_torchrun() or time.monotonic() - self._given_at > _REPEATED_SECONDS
        return number == signal.SIGTERM and self.signal == "SIGINT" and parent.is_torchrun()

    def _end_late(self) -> None:
        """Waits for a deadline, then for its time, and ends the process, unless the run ends before."""
        deadline = self._events.get()
        if deadline is None:
            return
        end = time.monotonic() + deadline.seconds
        while (left := end - time.monotonic()) > 0:
            with suppress(queue.Empty):
                if self._events.get(timeout=left) is None:
                    return
        end_with(deadline.code, deadline.message(), quiet=self.rank not in (0, self.from_rank))
