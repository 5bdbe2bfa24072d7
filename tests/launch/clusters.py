"""A Ray cluster of two nodes on this machine: loopback addresses, and a token without which nobody gets in."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.small_runs import read_until

RAY = str(Path(sys.executable).with_name("ray"))


class Cluster:
    """A head node with two CPUs and a second node with one. Close it at the end.

    ray: the command `ray` of the environment whose Python the nodes run.
    """

    def __init__(self, ray: str | Path = RAY) -> None:
        self._ray = ray
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the paths of Ray's sockets have 107 characters
        self._ports = iter(_free_ports(7))
        port, dashboard = next(self._ports), next(self._ports)
        self.address, self.dashboard = f"127.0.0.2:{port}", f"http://127.0.0.1:{dashboard}"
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_metrics_report_interval_ms": "500",
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "4",
        }
        client = f"--ray-client-server-port={next(self._ports)}"
        ports = [f"--port={port}", f"--dashboard-port={dashboard}", client]
        self.head = self._start("127.0.0.2", 2, "--head", f"--temp-dir={self.folder}", *ports)
        self.second = self._start("127.0.0.3", 1, f"--address={self.address}", "--include-log-monitor=false")

    def _start(self, address: str, num_cpus: int, *options: str) -> subprocess.Popen:
        common = ["--node-ip-address", address, f"--num-cpus={num_cpus}", "--object-store-memory=80000000", "--block"]
        agent = f"--dashboard-agent-listen-port={next(self._ports)}"
        process = self.run([self._ray, "start", *options, *common, agent])
        read_until(process, lambda line: "Ray runtime started" in line)
        return process

    def run(self, command: list[str | Path], **variables: str) -> subprocess.Popen:
        """Starts a process that may use the cluster, in a session of its own; output and errors together in its stdout."""
        environment = {**self.environment, **variables}
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment, start_new_session=True, **pipe)

    def metrics(self) -> str:
        """What Prometheus would be told now by all that the cluster has it ask, and that listen already."""
        (asked,) = json.loads((self.folder / "prom_metrics_service_discovery.json").read_text())
        told = ""
        for target in asked["targets"]:
            with suppress(URLError):
                told += urlopen(f"http://{target}/metrics", timeout=10).read().decode()
        return told

    def close(self) -> None:
        """Ends whatever is left of both nodes."""
        for node in (self.second, self.head):
            lose(node)
        shutil.rmtree(self.folder, ignore_errors=True)


def lose(node: subprocess.Popen) -> None:
    """Ends all processes of a node at once, as if its machine were gone."""
    while alive := processes_of(node):
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.poll()
    node.stdout.close()


def processes_of(node: subprocess.Popen) -> set[int]:
    """The processes that run in a node's session, and those that they have started."""
    listed = subprocess.run(["ps", "-eo", "state=,pid=,ppid=,sess="], capture_output=True, text=True).stdout
    rows = [tuple(map(int, line.split()[1:])) for line in listed.splitlines() if line[0] != "Z"]
    found = {pid for pid, _, session in rows if session == node.pid}
    while more := {pid for pid, parent, _ in rows if parent in found} - found:
        found |= more
    return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        return [held.enter_context(socket.create_server(("", 0))).getsockname()[1] for _ in range(count)]
