"""Starts the processes of a system on this machine, waits for them, and watches a pipeflow run from outside."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pipelines.measure import interface_bytes, peak_memory
from benchmarks.pipelines.systems import WATCHED, System

_LOOK_EVERY_S = 0.05
ROOT = Path(__file__).parents[2]


class LaunchError(RuntimeError):
    """A process ended with an error; the message has the end of its output."""


def launch(system: System, command: Sequence[str], out: Path, world_size: int, threads: int, timeout_s: float) -> None:
    """Runs the command once for each rank, with so many threads each.

    Raises LaunchError where one fails, or where they take longer than timeout_s.
    """
    out.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    processes = []
    try:
        for rank in range(world_size):
            with open(out / f"log{rank}.txt", "w") as log:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
            processes.append(process)
        watch = _Watch(out, [process.pid for process in processes]) if system.through_launch else None
        end = time.monotonic() + timeout_s
        while any(process.poll() is None for process in processes):
            if watch is not None:
                watch.look()
            failed = [rank for rank, process in enumerate(processes) if process.poll()]
            if failed or time.monotonic() > end:
                break
            time.sleep(_LOOK_EVERY_S)
        if not failed and any(process.poll() is None for process in processes):
            raise LaunchError(f"{system.name}: not done after {timeout_s:.0f} s")
        failed = failed or [rank for rank, process in enumerate(processes) if process.poll()]
        if failed:
            output = (out / f"log{failed[0]}.txt").read_text()[-2000:]
            raise LaunchError(f"{system.name}: worker {failed[0]} ended with {processes[failed[0]].poll()}: {output}")
        if watch is not None:
            watch.write()
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


class _Watch:
    """Looks at a pipeflow run whenever an epoch ends: bytes at the interfaces, and each worker's peak memory.

    The first epoch is the warm-up. What comes behind the last (final evaluation, gather, samples, figures) is left out.
    """

    def __init__(self, out: Path, pids: Sequence[int]):
        self._log, self._out, self._pids = out / "run" / "metrics.jsonl", out, pids
        self._ends: list[dict[str, int]] = []
        self._peaks: list[list[int]] = []

    def look(self) -> None:
        """Cheap: reads the log's lines again."""
        text = self._log.read_text() if self._log.exists() else ""
        ended = sum('"event": "epoch"' in line or '"event":"epoch"' in line for line in text.splitlines())
        if ended > len(self._ends):
            self._ends += [interface_bytes()] * (ended - len(self._ends))
            self._peaks += [[peak_memory(pid) for pid in self._pids]] * (ended - len(self._peaks))

    def write(self) -> None:
        """Writes the counts for `systems.read`."""
        seen: dict = {"peak_memory": self._peaks[-1] if self._peaks else [0] * len(self._pids)}
        seen["peak_by_epoch"] = self._peaks
        if len(self._ends) > 1:
            first, last = self._ends[0], self._ends[-1]
            seen["interface_bytes"] = {
                name: (last[name] - count) / (len(self._ends) - 1) for name, count in first.items()
            }
        (self._out / WATCHED).write_text(json.dumps(seen) + "\n")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
