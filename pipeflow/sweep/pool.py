"""Runs processes, as many at once as there is room for, and says how each ended."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

STARTED = "started: "
"""Before each command in a log, which all starts of a run share."""
_GRACE = 10.0
"""Seconds that a process gets beyond its own time to save itself, before it is killed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command, and the file that takes what it prints."""

    name: str
    command: Sequence[str]
    log: Path
    grace_s: float
    """Seconds from SIGTERM to its end."""


def room_for(workers: int, most: int, jobs: int | None = None, gpus: int = 0) -> list[dict[str, str]]:
    """Room for runs of so many workers each: a core a worker or, where there are GPUs, one of those.

    Returns, for each run that there is room for at a time, what is put over this process's environment.

    most: runs that there are; jobs: at a time, instead of as many as the cores or GPUs are enough for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(1, min(most, jobs or (gpus or cores) // workers))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // (count * workers))))
    environments = [{"OMP_NUM_THREADS": threads} for _ in range(count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # numbers as nvidia-smi has them, or names of GPUs or their parts
    names = [str(gpu) for gpu in range(gpus)] if visible is None else [each.strip() for each in visible.split(",")]
    for place, environment in enumerate(environments if gpus else []):
        of_its_own = [names[(place * workers + worker) % gpus] for worker in range(min(workers, gpus))]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(of_its_own)
    return environments


class Pool:
    """Runs jobs in a room. `stop` has those that are running end, and starts no others."""

    def __init__(self, room: Sequence[Mapping[str, str]]):
        """room: of `room_for`."""
        self._places: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
        for environment in room:
            self._places.put(environment)
        self._size = len(room)
        self._running: dict[subprocess.Popen[bytes], float] = {}
        self._lock, self.is_stopped = threading.Lock(), False

    def run(self, jobs: Sequence[Job], ended: Callable[[Job, str | None], None]) -> None:
        """Runs all of them in their order. ended: is told of each that has ended, with its error if it failed."""
        with ThreadPoolExecutor(self._size) as executor:
            futures = {executor.submit(self.run_job, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    ended(futures[future], future.result())
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """SIGTERM for all, on which a run saves itself; SIGKILL for those that do not end."""
        with self._lock:
            self.is_stopped = True
            running = dict(self._running)
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process, grace in running.items():
            try:
                process.wait(grace + _GRACE)
            except subprocess.TimeoutExpired:
                process.kill()

    def run_job(self, job: Job) -> str | None:
        """Runs one as soon as there is a place for it; its error. Threads may call it at a time."""
        environment = self._places.get()
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with open(job.log, "a") as log:
                print(f"{STARTED}{' '.join(job.command)}", file=log, flush=True)
                with self._lock:
                    if self.is_stopped:
                        return "not started"
                    # In a group of its own: Ctrl-C is this process's alone, which then stops the others once.
                    process = subprocess.Popen(
                        job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                        env={**os.environ, **environment}, process_group=0,
                    )  # fmt: skip
                    self._running[process] = job.grace_s
            code = process.wait()
            with self._lock:
                del self._running[process]
            return None if code == 0 else _error(job, code)
        except OSError as error:
            return f"{error.filename or job.log}: {error.strerror}"
        finally:
            self._places.put(environment)


def _error(job: Job, code: int) -> str:
    """Why a process failed: the last error that it said."""
    output = job.log.read_text(errors="replace").rpartition(STARTED)[2]
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    if errors:
        return errors[-1].removeprefix("error: ")
    ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{ending}, see {job.log}"


def python(*words: str, workers: int = 1) -> list[str]:
    """The command of a Python module on one worker, or under torchrun on several."""
    if workers == 1:
        return [sys.executable, "-m", *words]
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", f"--nproc_per_node={workers}"]
    return [sys.executable, "-m", *torchrun, "-m", *words]
