"""SIGTERM as a notice: the machine is wanted back, the run saves itself and leaves.

    SIGTERM at any worker -> [its monitor tells the others'] -> the worker in front stops before its next batch and says so
    down the links, behind its last latent -> everybody has trained the same batches -> checkpoint -> exit code 75

Nobody has to agree on a batch: a worker behind the front one hears of the stop in the order of the latents, and a worker
that does not depend on it has nothing to do in this phase. A second thread ends the process when the time is over.
"""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pipeflow.errors import PREEMPTED_EXIT_CODE

_LAST_WORDS_SECONDS = 5.0


class Notice:
    """Whether the run was asked to leave, by a signal or by another worker."""

    def __init__(self, rank: int):
        self.rank = rank
        self.from_rank: int | None = None
        """The worker that got the signal first, as far as this one knows; None without a notice."""
        self.is_of_a_loss: Callable[[], bool] = lambda: False
        """Whether a SIGTERM comes from the launcher, which ends the workers that a lost one leaves. Must not wait."""
        self._events: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """Tells the grace thread: False for a notice, True for the end. Unlike an Event, a signal handler may use it."""

    def __bool__(self) -> bool:
        return self.from_rank is not None

    def give(self, from_rank: int) -> None:
        """Asks the run to leave."""
        if self.from_rank is None:
            self.from_rank = from_rank
            self._events.put(False)

    @contextmanager
    def listening(self, grace_s: float, last_good: Callable[[], str]) -> Iterator[None]:
        """Takes SIGTERM as a notice inside the block; a process that is still in it `grace_s` seconds later is ended.

        A thread that is not the main one cannot listen to signals: there SIGTERM stays what it was, and only the notices of
        other workers count. After a loss the launcher's SIGTERM is no notice: the monitor ends this worker.

        Args:
            grace_s: seconds from the notice to the end of the process.
            last_good: names the checkpoint to resume from, for the message.
        """
        is_main_thread = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, self._take_signal) if is_main_thread else None
        threading.Thread(target=self._end_late, args=(grace_s, last_good), name="pipeflow-grace", daemon=True).start()
        try:
            yield
        except BaseException:
            if is_main_thread:
                _end_after_last_words()
            raise
        else:
            if is_main_thread:
                signal.signal(signal.SIGTERM, before)
        finally:
            self._events.put(True)

    def _take_signal(self, *_: object) -> None:
        if not self.is_of_a_loss():
            self.give(self.rank)

    def _end_late(self, grace_s: float, last_good: Callable[[], str]) -> None:
        """Waits for a notice, then ends the process after `grace_s` seconds, unless the block ends before."""
        if self._events.get():
            return
        end = time.monotonic() + grace_s
        while (left := end - time.monotonic()) > 0:
            with suppress(queue.Empty):
                if self._events.get(timeout=left):
                    return
        if self.rank in (0, self.from_rank):
            print(
                f"preempted: worker {self.rank} could not save the run within {grace_s:g} s (checkpoint.grace_s) of the "
                f"SIGTERM: {last_good()}, what was trained after it is lost. Start the same command again to resume.",
                file=sys.stderr,
                flush=True,
            )
        os._exit(PREEMPTED_EXIT_CODE)


def _end_after_last_words() -> None:
    """From now on a SIGTERM ends the process only after the seconds that its own error needs to be printed.

    A worker that is lost makes the launcher end all others, which would fall silent while they tell why.
    """
    terminated: queue.SimpleQueue[None] = queue.SimpleQueue()

    def end() -> None:
        terminated.get()
        time.sleep(_LAST_WORDS_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=end, name="pipeflow-last-words", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: terminated.put(None))
