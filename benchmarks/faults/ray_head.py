"""A Ray cluster of one node on this machine, for trainings that Ray restarts; behind a token that nobody else knows."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass
class RayHead:
    """A cluster that runs; `environment` leads programs to it."""

    environment: dict[str, str]


@contextlib.contextmanager
def ray_head(num_cpus: int = 4) -> Iterator[RayHead]:
    """Starts a cluster; ends all its processes and removes its folder."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the paths of Ray's sockets have 107 characters
    port, dashboard, client, agent = _free_ports(4)
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_COLOR_PREFIX": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.2", f"--num-cpus={num_cpus}"]
    command += [f"--temp-dir={folder}", f"--port={port}", f"--dashboard-port={dashboard}", "--num-gpus=0"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    command += ["--object-store-memory=80000000"]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    ) as head:
        try:
            lines = []
            for line in head.stdout:
                lines.append(line)
                if "Ray runtime started" in line:
                    break
            else:
                raise RuntimeError("Ray did not start:\n" + "".join(lines))
            yield RayHead({**environment, "RAY_ADDRESS": f"127.0.0.2:{port}"})
        finally:
            while alive := _processes_of(head.pid):
                for pid in alive:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                head.poll()
            shutil.rmtree(folder, ignore_errors=True)


def _processes_of(session: int) -> set[int]:
    """The processes that run in a session, and those that they have started."""
    listed = subprocess.run(["ps", "-eo", "state=,pid=,ppid=,sess="], capture_output=True, text=True).stdout
    rows = [tuple(map(int, line.split()[1:])) for line in listed.splitlines() if line[0] != "Z"]
    found = {pid for pid, _, of in rows if of == session}
    while more := {pid for pid, parent, _ in rows if parent in found} - found:
        found |= more
    return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        return [held.enter_context(socket.create_server(("", 0))).getsockname()[1] for _ in range(count)]
