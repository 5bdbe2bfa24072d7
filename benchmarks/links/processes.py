"""One process in each host, from the start to the end, while the hosts' counters are looked at."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.links.hosts import Hosts

ROOT = Path(__file__).parents[2]
PORT = "29400"
_LAST_WORDS_SECONDS = 2.0
"""Seconds that each worker gets to end by itself where one has failed."""

Sample = tuple[float, list[int], list[int]]
"""Time, bytes sent and bytes received by each host until then."""


def run_in_hosts(
    hosts: Hosts,
    command: Sequence[str],
    folder: Path,
    limit: float,
    look_every: float,
    has_begun: Callable[[], bool] = lambda: False,
) -> tuple[list[Sample], float | None]:
    """Runs the command once in each host; the counters all along, and when `has_begun` first said so.

    Args:
        folder: where `output<rank>.txt` of each process goes.
        limit: seconds after which it is given up.
        look_every: seconds from one look at the counters and the processes to the next.

    Raises RuntimeError where a process ends with an error, or not in time.
    """
    num = len(hosts.names)
    outputs = [folder / f"output{rank}.txt" for rank in range(num)]
    common = {
        "WORLD_SIZE": str(num), "LOCAL_RANK": "0", "MASTER_ADDR": hosts.addresses[0], "MASTER_PORT": PORT,
        "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    processes = [
        hosts.start(rank, command, output, {**common, "RANK": str(rank)}) for rank, output in enumerate(outputs)
    ]
    samples: list[Sample] = []
    began = None
    deadline = time.time() + limit
    while any(process.poll() is None for process in processes):
        if began is None and has_begun():
            began = time.time()
        samples.append((time.time(), hosts.sent(), hosts.received()))
        failed = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
        if failed or time.time() > deadline:
            for process in processes:  # the others may have something to say
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LAST_WORDS_SECONDS)
            hosts.stop()
            what = f"worker {failed[0]} failed" if failed else f"it did not end within {limit:g} s"
            last = "\n".join(f"worker {rank}: {output.read_text()[-1500:]}" for rank, output in enumerate(outputs))
            raise RuntimeError(f"{what}:\n{last}")
        time.sleep(look_every)
    samples.append((time.time(), hosts.sent(), hosts.received()))
    return samples, began


def bytes_between(samples: Sequence[Sample], began: float, ended: float) -> tuple[list[int], list[int]]:
    """Bytes sent and received by each host in that time: what is measured begins and ends in silence."""
    first = next(sample for sample in reversed(samples) if sample[0] <= began or sample is samples[0])
    last = next(sample for sample in samples if sample[0] >= ended or sample is samples[-1])
    return tuple([after - before for before, after in zip(first[way], last[way])] for way in (1, 2))
