"""Runs in slices: each row is a process that resumes by itself, and is stopped when the slice is over.

RUNS/ROW/                  the run folder
RUNS/ROW/stops/064.json    the summary of the run as it stopped after 64 epochs
RUNS/ROW.log               what it printed
RUNS/slices.jsonl          a line for each process that was started: the row, the machine, how many ran beside it
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe_machine
from pipeflow.errors import CheckpointError
from pipeflow.sweep.pool import Job, Pool, python

POLL_S = 0.1
GRACE_S = 30.0
"""Seconds that a run gets to save itself after SIGTERM."""


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

    def job(self) -> Job:
        """Its process, which goes on from wherever the run is."""
        command = python("pipeflow.launch", *self.arguments, "--run.dir", str(self.folder))
        return Job(name=self.row, command=command, log=self.log, grace_s=GRACE_S)

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
        missing = {name: [leg for leg in legs if not leg.kept.exists()] for name, legs in rows.items()}
        pool = Pool([{"OMP_NUM_THREADS": str(self.num_threads)}] * self.jobs)
        with ThreadPoolExecutor(self.jobs) as executor:
            futures = {name: executor.submit(self._run_row, pool, legs) for name, legs in missing.items() if legs}
            try:
                while not self.is_over():
                    done, running = wait(futures.values(), POLL_S)
                    if not running or any(each.exception() for each in done):
                        break
            finally:
                pool.stop()
        ended = {name: future.result() for name, future in futures.items()}
        return {name: error for name, error in ended.items() if error is not None}

    def _run_row(self, pool: Pool, legs: Sequence[Leg]) -> str | None:
        """One leg after the other; the error of the one that failed by itself."""
        for leg in legs:
            if pool.is_stopped:
                return None
            print(f"{leg.row}: up to {leg.epochs} epochs, log in {leg.log}", flush=True)
            leg.runs.mkdir(parents=True, exist_ok=True)
            note = {"row": leg.row, "jobs": self.jobs, "threads": self.num_threads, "machine": describe_machine()}
            with open(leg.runs / "slices.jsonl", "a") as notes:
                print(json.dumps(note), file=notes)
            error = pool.run_job(leg.job())
            if pool.is_stopped:
                return None
            if error is not None:
                print(f"{leg.row}: {error}", flush=True)
                return error
            leg.keep()
        return None
