"""Runs in slices: each row is a process that resumes by itself, and is stopped when the slice is over.

RUNS/ROW/                  the run folder
RUNS/ROW/stops/064.json    the summary of the run as it stopped after 64 epochs
RUNS/ROW.log               what it printed
RUNS/slices.jsonl          a line for each process that was started: the row, the machine, how many ran beside it
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe_machine
from pipeflow.errors import CheckpointError

POLL_S = 0.1
TERMINATE_S = 10.0
"""Seconds that a process gets to end after SIGTERM. It saves nothing: a run loses the work after its last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A stretch of a run, up to a number of epochs."""

    row: str
    epochs: int
    runs: Path
    arguments: tuple[str, ...]
    """Arguments of pipeflow.launch, without the run folder."""

    @property
    def folder(self) -> Path:
        """The run's, shared by all its legs."""
        return self.runs / self.row

    @property
    def log(self) -> Path:
        """The file of its output, beside the run folder."""
        return self.runs / f"{self.row}.log"

    @property
    def kept(self) -> Path:
        """The file that keeps the summary at the end of the leg when the run goes on."""
        return kept_summary(self.folder, self.epochs)

    def start(self, num_threads: int) -> subprocess.Popen:
        """The process, from wherever the run is."""
        self.runs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pipeflow.launch", *self.arguments, "--run.dir", str(self.folder)]
        with open(self.log, "a") as log:
            print(f"{STARTED}{' '.join(command)}", file=log, flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def keep(self) -> None:
        """Copies the summary of a process that has ended well.

        Raises CheckpointError where the run is already beyond this leg.
        """
        summary = self.folder / "summary.json"
        reached = json.loads(summary.read_text())["num_epochs"]
        if reached != self.epochs:
            raise CheckpointError(
                f"{self.folder} has {reached} epochs, and its summary after {self.epochs} was never kept: it is of an "
                f"older list of rows. Move it away, or choose another folder with --runs."
            )
        self.kept.parent.mkdir(exist_ok=True)
        partial = self.kept.with_suffix(".partial")
        shutil.copyfile(summary, partial)
        partial.replace(self.kept)

    def error(self, code: int) -> str:
        """Why the process failed: its last message."""
        output = self.log.read_text().rpartition(STARTED)[2]
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        return errors[-1].removeprefix("error: ") if errors else f"exit code {code}, see {self.log}"


STARTED = "started: "
"""Before each command in a log: a run that is interrupted says a command too."""


def kept_summary(folder: Path, epochs: int) -> Path:
    """The file that keeps a run's summary after this many epochs."""
    return folder / "stops" / f"{epochs:03}.json"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One call's share of the work."""

    jobs: int
    """Rows at a time."""
    num_threads: int
    """Threads of each row."""
    is_over: Callable[[], bool]

    def run(self, rows: Mapping[str, Sequence[Leg]]) -> dict[str, str]:
        """Runs what is missing of the rows, in their order, until the slice is over; errors by row.

        A row that fails ends there, the others go on.
        """
        queues = {name: deque(leg for leg in legs if not leg.kept.exists()) for name, legs in rows.items()}
        waiting = deque(name for name, legs in queues.items() if legs)
        running: dict[str, subprocess.Popen] = {}
        errors: dict[str, str] = {}
        machine = describe_machine()
        try:
            while (running or waiting) and not self.is_over():
                while waiting and len(running) < self.jobs:
                    name = waiting.popleft()
                    leg = queues[name][0]
                    print(f"{name}: up to {leg.epochs} epochs, log in {leg.log}", flush=True)
                    running[name] = leg.start(self.num_threads)
                    note = {"row": name, "jobs": self.jobs, "threads": self.num_threads, "machine": machine}
                    with open(leg.runs / "slices.jsonl", "a") as notes:
                        print(json.dumps(note), file=notes)
                for name, process in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[name]
                    leg = queues[name].popleft()
                    if code != 0:
                        errors[name] = leg.error(code)
                        print(f"{name}: {errors[name]}", flush=True)
                        continue
                    leg.keep()
                    if queues[name]:
                        waiting.appendleft(name)
                time.sleep(POLL_S)
        finally:
            _stop(running.values())
        return errors


def _stop(processes: Collection[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(TERMINATE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
