"""An object in a process of its own that stays alive and does what it is told over a pipe, and nothing in between.

So systems can take turns: each keeps its flow, its optimizer and what it has compiled, and none computes beside another.
"""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from pipeflow.device import keep_freed_memory

LIMIT_S = 900.0
"""Seconds after which a call is given up: compiling a large flow takes minutes, nothing else should."""


class OutOfMemory(RuntimeError):
    """The GPU has no room for what was asked."""


class Held:
    """A process that holds `factory(*arguments)`; `call(name, ...)` calls a method of it there and waits.

    factory and arguments are pickled: things of a module's top level. The process has an empty cache of compiled code. It
    is forked from a server that has imported torch and nothing else, which saves each of them some seconds.
    """

    def __init__(self, threads: int, factory: Callable, *arguments: Any):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch"])
        self._connection, theirs = context.Pipe()
        self._caches = tempfile.mkdtemp(prefix="pipeflow-step-")
        self._process = context.Process(target=_hold, args=(theirs, threads, self._caches, factory, arguments))
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def call(self, name: str, *arguments: Any) -> Any:
        """The method's result.

        Raises OutOfMemory, RuntimeError with the other process's traceback, or TimeoutError after LIMIT_S.
        """
        self._connection.send((name, arguments))
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()  # it reads the end of the pipe, and ends
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        shutil.rmtree(self._caches, ignore_errors=True)

    def _answer(self) -> Any:
        if not self._connection.poll(LIMIT_S):
            self._process.kill()
            raise TimeoutError(f"a measuring process gave no answer for {LIMIT_S:.0f} s")
        try:
            kind, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"a measuring process ended (exit code {self._process.exitcode}): no memory left?"
            ) from None
        if kind == "memory":
            raise OutOfMemory(value)
        if kind == "error":
            raise RuntimeError(value)
        return value


def _hold(connection: Connection, threads: int, caches: str, factory: Callable, arguments: tuple) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = caches
    torch.set_num_threads(threads)
    keep_freed_memory()  # as pipeflow does, for whatever system
    with contextlib.suppress(EOFError, BrokenPipeError):
        subject = _answered(connection, factory, arguments)
        while subject is not None:
            name, arguments = connection.recv()
            _answered(connection, getattr(subject, name), arguments, send_value=True)


def _answered(connection: Connection, function: Callable, arguments: tuple, send_value: bool = False) -> Any:
    """Calls, and sends what came of it; None where that was an error."""
    try:
        value = function(*arguments)
    except torch.OutOfMemoryError as error:
        connection.send(("memory", str(error).splitlines()[0]))
    except Exception:
        connection.send(("error", traceback.format_exc()))
    else:
        connection.send(("value", value if send_value else None))
        return value
    return None
