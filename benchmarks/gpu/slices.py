"""Slices of a measurement that has only some minutes at a time: each a process, the next call goes on where one ended.

STATE/state.json   how far each slice has come, and what made it fail
STATE/NAME.log     what it printed
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DONE, FAILED, CUT_OFF = "done", "failed", "cut off"
MOST_ATTEMPTS = 2
"""How often a slice may fail, or be cut off, before calls leave it alone."""
ALL_DONE = "left: nothing"
MINUTES = "MINUTES"
"""Stands in a slice's arguments for what is left of the call."""
_KEPT_CHARACTERS = 3000
_TERMINATE_S = 10.0
_MARGIN_S = 20.0
"""Seconds that a slice which ends by itself before the call does gets for writing its results."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One thing to measure: `main(arguments)` of a module, in a process of its own."""

    name: str
    title: str
    module: str
    arguments: tuple[str, ...] = ()
    least_s: float = 20.0
    """It is not begun with less time left than this."""
    limit_s: float = 300.0
    """It has failed after this."""
    resumes: bool = False
    """Whether it goes on where its last process ended, and prints ALL_DONE once there is nothing left to go on with."""


@dataclass(kw_only=True)
class Progress:
    """A slice's progress."""

    status: str = ""
    """DONE, FAILED, CUT_OFF, or nothing yet."""
    attempts: int = 0
    """How often it failed or was cut off."""
    seconds: float = 0.0
    """Seconds of all its processes."""
    error: str = ""
    """The end of the last output of one that failed: its traceback."""


class State:
    """The slices' progress on the disk."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._path = folder / "state.json"
        found = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.slices = {name: Progress(**each) for name, each in found.items()}

    def of(self, name: str) -> Progress:
        """A slice's progress, to be changed and saved."""
        return self.slices.setdefault(name, Progress())

    def save(self) -> None:
        """Writes it whole or not at all."""
        found = {name: asdict(each) for name, each in self.slices.items()}
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(found, indent=1) + "\n")
        new.replace(self._path)

    def left(self, slices: Sequence[Slice]) -> list[Slice]:
        """Those that are to be run: first what has never failed, in its order, then what has."""
        open_ones = [each for each in slices if self.of(each.name).status != DONE]
        open_ones = [each for each in open_ones if self.of(each.name).attempts < MOST_ATTEMPTS]
        return sorted(open_ones, key=lambda each: self.of(each.name).status == FAILED)


def run(slices: Sequence[Slice], state: State, end: float, is_over: Callable[[], bool] = lambda: False) -> None:
    """Runs what is left of the slices, each once, as far as there is time.

    end: of the call, on the clock of `time.monotonic`. is_over: ends it before.
    """
    for each in state.left(slices):
        left = end - time.monotonic()
        if is_over():
            break
        if left < each.least_s:
            print(f"{each.name}: not begun with {max(left, 0):.0f} s left", flush=True)
            continue
        print(f"{each.name}: {each.title}, log in {state.folder / each.name}.log", flush=True)
        _run_one(each, state, end, is_over)
        progress = state.of(each.name)
        print(f"{each.name}: {progress.status or 'not done yet'} ({progress.seconds:.0f} s)", flush=True)


def _run_one(each: Slice, state: State, end: float, is_over: Callable[[], bool]) -> None:
    progress, log = state.of(each.name), state.folder / f"{each.name}.log"
    began = time.monotonic()
    left = end - began
    minutes = f"{(left - min(_MARGIN_S, left / 4)) / 60:.3f}"
    arguments = [minutes if word == MINUTES else word for word in each.arguments]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "benchmarks.gpu.processes"])  # torch and pipeflow are imported once
    process = context.Process(target=_work, args=(each.module, arguments, str(log)))
    process.start()
    limit = min(end, began + each.limit_s)
    while process.is_alive() and time.monotonic() < limit and not is_over():
        process.join(0.2)
    was_cut = process.is_alive()
    if was_cut:
        _end(process)
    progress.seconds += time.monotonic() - began
    output = log.read_text(errors="replace") if log.exists() else ""
    if process.exitcode == 0 and not was_cut:
        progress.status = DONE if not each.resumes or ALL_DONE in output else ""
    elif was_cut and time.monotonic() < began + each.limit_s:
        progress.status, progress.attempts = CUT_OFF, progress.attempts + (not each.resumes)
    else:
        why = f"given up after {each.limit_s:.0f} s" if was_cut else f"exit code {process.exitcode}"
        progress.status, progress.attempts = FAILED, progress.attempts + 1
        progress.error = f"{output[-_KEPT_CHARACTERS:]}\n{why}".strip()
    state.save()


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """Ends the process and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.join(_TERMINATE_S)
    process.kill()
    process.join()


def _work(module: str, arguments: list[str], log: str) -> None:
    """Runs in the slice's process: makes it the head of a group of its own, with its output in a file."""
    os.setpgid(0, 0)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout.reconfigure(line_buffering=True)
    print(" ".join(["python -m", module, *arguments]))
    code: Any
    try:
        code = importlib.import_module(module).main(arguments) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        print(error)
    except BaseException:
        code = 1
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)
