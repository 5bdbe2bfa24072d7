"""SIGTERM as a notice: the machine is wanted back, the run saves what it has and leaves.

    SIGTERM at any worker -> [its monitor tells the others'] -> the worker in front stops before its next batch and says so
    down the links, behind its last latent -> everybody has trained the same batches -> checkpoint -> exit code 75

Nobody has to agree on a batch: whoever computes later than the worker in front gets its word in the order of the latents,
and whoever does not depend on it has nothing to do in this phase. A second thread ends the process when the time is over.
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

LAST_WORDS_SECONDS = 5.0


class Notice:
    """Whether the run has been asked to leave. Given once, by a signal or by another worker."""

    def __init__(self, rank: int):
        self.rank = rank
        self.from_rank: int | None = None
        """Of the worker that got the signal first, as far as this one knows."""
        self.is_of_a_loss: Callable[[], bool] = lambda: False
        """Whether a SIGTERM is the launcher's, who ends what a lost worker has left; it must not wait for anything."""
        self._is_over: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """What the guard hears: False for a notice, True for the end. A signal handler may put into it, unlike an Event."""

    def __bool__(self) -> bool:
        return self.from_rank is not None

    def give(self, from_rank: int) -> None:
        """The run is to end."""
        if self.from_rank is None:
            self.from_rank = from_rank
            self._is_over.put(False)

    @contextmanager
    def listening(self, grace_s: float, last_good: Callable[[], str]) -> Iterator[None]:
        """Takes SIGTERM as a notice inside the block; a process that is still in it `grace_s` seconds later is ended.

        last_good: what there is to resume from, in words. A thread that is not the main one cannot listen to signals:
        there SIGTERM stays what it was, and the notices of other workers are followed. After a loss the launcher's
        SIGTERM is no notice: the monitor ends this worker.
        """
        is_main_thread = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, self._take_signal) if is_main_thread else None
        threading.Thread(target=self._guard, args=(grace_s, last_good), name="pipeflow-grace", daemon=True).start()
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
            self._is_over.put(True)

    def _take_signal(self, *_: object) -> None:
        # After a loss there is nothing to save with the others, and the monitor ends this worker for it.
        if not self.is_of_a_loss():
            self.give(self.rank)

    def _guard(self, grace_s: float, last_good: Callable[[], str]) -> None:
        if self._is_over.get():
            return
        end = time.monotonic() + grace_s
        while (left := end - time.monotonic()) > 0:
            with suppress(queue.Empty):
                if self._is_over.get(timeout=left):
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
    """From now on a SIGTERM ends the process, but only once the error that it is about to say must have been said.

    What one worker has lost makes the launcher end all others: they would fall silent in the middle of telling why.
    """
    terminated: queue.SimpleQueue[None] = queue.SimpleQueue()

    def end() -> None:
        terminated.get()
        time.sleep(LAST_WORDS_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=end, name="pipeflow-last-words", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: terminated.put(None))
