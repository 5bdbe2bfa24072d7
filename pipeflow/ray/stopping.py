"""Ctrl-C in the driver, or `ray job stop`, as a wish that the workers save the run and leave.

    driver: Ctrl-C -> [the actor Wish] -> a thread in each worker -> `train(stop=...)` -> checkpoint -> Preempted -> driver

Ray Train by itself kills the workers, and what was trained since the newest checkpoint is lost. A second Ctrl-C does that.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

T = TypeVar("T")


class _Wish:
    """Whether the driver wants the run to end. An actor, since driver and workers share nothing but the cluster."""

    def __init__(self) -> None:
        self._given = asyncio.Event()
        self._is_heard = False

    async def wait(self) -> None:
        """Until it is given."""
        self._is_heard = True
        await self._given.wait()

    async def give(self) -> bool:
        """Whether there are workers that hear of it."""
        self._given.set()
        return self._is_heard


def make_wish() -> Any:
    """The actor by which the driver reaches the workers; it ends with the driver."""
    return ray.remote(num_cpus=0)(_Wish).remote()


def heard(wish: Any) -> Callable[[], bool]:
    """A function that tells, without waiting, whether the wish was given."""
    given = threading.Event()

    def wait() -> None:
        with suppress(RayError):  # the driver is gone
            ray.get(wish.wait.remote())
            given.set()

    threading.Thread(target=wait, name="pipeflow-wish", daemon=True).start()
    return given.is_set


def give(wish: Any) -> bool:
    """Asks the workers to save the run and leave; whether there are any that hear of it."""
    return bool(ray.get(wish.give.remote()))


def run_until_stopped(fit: Callable[[], T], ask_to_stop: Callable[[], bool]) -> T:
    """Returns or raises what `fit` does. After the first Ctrl-C `fit` is asked to stop, and goes on to its end.

    `fit` runs in a thread, where Ray Train leaves signals alone.

    Args:
        fit: trains.
        ask_to_stop: makes `fit` end soon; False where it cannot.

    Raises KeyboardInterrupt at the second Ctrl-C, or at the first where `fit` cannot be asked.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(fit())
        except BaseException as error:
            done.set_exception(error)

    with _termination_as_interrupt():
        try:
            threading.Thread(target=run, name="pipeflow-fit", daemon=True).start()
            return done.result()
        except KeyboardInterrupt:
            if not ask_to_stop():
                raise
        print("stopping: the workers save the run. Once more ends them at once.", file=sys.stderr, flush=True)
        return done.result()


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Inside the block SIGTERM, by which `ray job stop` ends a driver, raises KeyboardInterrupt as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
