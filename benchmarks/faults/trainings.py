"""Small real trainings whose processes can be found, watched and disturbed.

Every process that a training starts, whatever its session or group, carries a mark in its environment: what is left
behind is found by it, and nothing else on the machine is touched.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.faults.ray_head import RayHead
from benchmarks.links.hosts import Hosts
from pipeflow.config import Config

MARK = "PIPEFLOW_FAULTS"
LINK_TIMEOUT = 8.0
HEARTBEAT_TIMEOUT = 25.0
HANG_SECONDS = 120.0
"""Longer than any wait of pipeflow's or torchrun's that these trainings can meet."""

_SMALL = {
    "data": {"num_train": 128, "num_test": 32},
    "model": {"num_blocks": 2, "num_steps": 2, "width": 8},
    "parts": {"split": "across", "num": 3},
    "optim": {"batch_size": 16, "warmup_steps": 2, "ema": 0.9},
    "eval": {"num_images": 16},
    "checkpoint": {"keep": 3},
}
MODES = {
    "concurrent": {"schedule": {"mode": "concurrent", "local_epochs": 24, "finetune_epochs": 6}},
    "brief": {
        "data": {"num_train": 320, "num_test": 32},
        "schedule": {"mode": "concurrent", "local_epochs": 5, "finetune_epochs": 1},
    },
    "long": {"schedule": {"mode": "concurrent", "local_epochs": 90, "finetune_epochs": 6}},
    "turns": {
        "schedule": {"mode": "alternate", "local_epochs": 60, "finetune_epochs": 12, "alternate_every": "3 steps"}
    },
    "halves": {"schedule": {"mode": "concurrent", "local_epochs": 40, "finetune_epochs": 40}},
    "alternate": {
        "schedule": {"mode": "alternate", "local_epochs": 30, "finetune_epochs": 6, "alternate_every": "3 steps"}
    },
    "pipeline": {
        "schedule": {"mode": "concurrent", "local_epochs": 2, "finetune_epochs": 20},
        "finetune": {"parallel": "pipeline"},
    },
    "long pipeline": {
        "schedule": {"mode": "concurrent", "local_epochs": 2, "finetune_epochs": 60},
        "finetune": {"parallel": "pipeline"},
    },
    "ddp": {
        "schedule": {"mode": "concurrent", "local_epochs": 10, "finetune_epochs": 16},
        "finetune": {"parallel": "ddp"},
    },
}
PORT = 29411
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
_OF_RAY = re.compile(r"^\(\w+ pid=\d+(, ip=[\d.]+)?\) ")
_RAY_RANK = re.compile(r"pid=(\d+)\) world_rank=(\d+)")


def config_of(
    mode: str,
    folder: Path,
    resume: str = "auto",
    link_timeout: float = LINK_TIMEOUT,
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    replicas: int = 1,
) -> Config:
    """The small run of one mode."""
    run = {"dir": str(folder), "resume": resume, "figures": False, "heartbeat_timeout_s": heartbeat_timeout}
    about = {"run": run, "link": {"timeout_s": link_timeout}}
    parts = {"parts": {**_SMALL["parts"], "replicas": replicas}}
    return Config.from_dict({**_SMALL, **MODES[mode], **about, **parts})


def options(config: Config) -> list[str]:
    """A configuration as command line options."""
    return [
        f"--{section}.{name}={'null' if value is None else ','.join(value) if isinstance(value, list) else value}"
        for section, values in config.to_dict().items()
        for name, value in values.items()
    ]


@dataclass
class Training:
    """A run folder, and the command that trains in it: started as often as it takes."""

    folder: Path
    mode: str
    workers: int
    restarts: int = 0
    hosts: Hosts | None = None
    """Hosts over which the workers are spread, one on each; None: all are on this one."""
    ray: RayHead | None = None
    """The cluster that starts and restarts the workers, instead of torchrun."""
    link_timeout: float = LINK_TIMEOUT
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT
    begun_anew: bool = False
    """Whether the first sitting is one of `run.resume never`."""
    replicas: int = 1
    """Workers on each part."""
    launchers: list[subprocess.Popen] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """All that all sittings have printed."""
    _readers: list[threading.Thread] = field(default_factory=list)

    @property
    def mark(self) -> str:
        return str(self.folder)

    def start(self) -> None:
        """The command, once more."""
        command = ["-m", "pipeflow.launch", *self._options()]
        torchrun = [*_TORCHRUN, f"--max-restarts={self.restarts}"]
        self.lines.append(f"--- started at {time.monotonic():.1f}")
        if self.ray is not None:
            self.launchers = [self._start_on_ray(self.ray)]
            return
        if self.hosts is None:
            self.launchers = [self._popen([*torchrun, "--standalone", f"--nproc_per_node={self.workers}", *command])]
            return
        self.launchers = []
        for rank, (name, address) in enumerate(zip(self.hosts.names, self.hosts.addresses)):
            where = [f"--nnodes={self.workers}", "--nproc_per_node=1", f"--node_rank={rank}"]
            where += [f"--master_addr={self.hosts.addresses[0]}", f"--master_port={PORT}", f"--local_addr={address}"]
            inside = ["ip", "netns", "exec", name]
            self.launchers.append(self._popen([*inside, *torchrun, *where, *command], GLOO_SOCKET_IFNAME="eth0"))

    def _options(self) -> list[str]:
        is_first = not any(line.startswith("--- started") for line in self.lines[:-1])
        resume = "never" if self.begun_anew and is_first else "auto"
        return options(
            config_of(self.mode, self.folder, resume, self.link_timeout, self.heartbeat_timeout, self.replicas)
        )

    def _start_on_ray(self, head: RayHead) -> subprocess.Popen:
        command = [sys.executable, "-m", "launch.ray_train", f"--workers={self.workers}"]
        command += [f"--max-restarts={self.restarts}", *self._options()]
        marked = {"runtime_env": {"env_vars": {MARK: self.mark}}}
        return self._popen(command, RAY_JOB_CONFIG_JSON_ENV_VAR=json.dumps(marked), **head.environment)

    def start_second(self) -> subprocess.Popen:
        """Another run on the same folder, in as few processes as give the same bits: either may be the one that trains."""
        command = ["-m", "pipeflow.launch", *self._options()]
        workers = self.workers if "pipeline" in self.mode else self.replicas  # one worker has no pipeline
        if workers == 1:
            return self._popen([sys.executable, *command], into=None)
        return self._popen([*_TORCHRUN, "--standalone", f"--nproc_per_node={workers}", *command], into=None)

    def _popen(self, command: Sequence[str], into: str | None = "lines", **more: str) -> subprocess.Popen:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", MARK: self.mark, **more},
            start_new_session=True,
        )
        if into is not None:
            reader = threading.Thread(target=self._read, args=(process,), daemon=True)
            reader.start()
            self._readers.append(reader)
        return process

    def _read(self, process: subprocess.Popen) -> None:
        with contextlib.suppress(ValueError):
            for line in process.stdout:
                self.lines.append(_OF_RAY.sub("", line.rstrip("\n")))

    @property
    def is_running(self) -> bool:
        return any(process.poll() is None for process in self.launchers)

    @property
    def exit_codes(self) -> list[int | None]:
        return [process.poll() for process in self.launchers]

    def sitting_ended_well(self) -> bool:
        """Whether the last sitting has brought the run to its end."""
        return bool(self.launchers) and not any(self.exit_codes)

    def output(self, since: int) -> str:
        """The output from that line on."""
        return "\n".join(self.lines[since:])

    def processes(self) -> dict[int, int | None]:
        """All processes of this training that live, with their ranks (None: a launcher, or another helper)."""
        found: dict[int, int | None] = {}
        ranks = {}
        if self.ray is not None:  # its workers learn their ranks when they run: Ray says them
            ranks = {int(pid): int(rank) for line in [*self.lines] for pid, rank in _RAY_RANK.findall(line)}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environment = path.read_bytes().split(b"\0")
                state = path.with_name("stat").read_text().rsplit(")", 1)[1].split()[0]
            except (OSError, IndexError):
                continue
            if f"{MARK}={self.mark}".encode() not in environment or state in "ZX":
                continue
            if self.ray is not None and not _is_of_a_job(path.with_name("cmdline")):
                continue
            rank = next((int(each[5:]) for each in environment if each.startswith(b"RANK=")), None)
            pid = int(path.parent.name)
            found[pid] = ranks.get(pid, rank)
        return found

    def worker(self, rank: int) -> int | None:
        """The process of a rank, if there is one."""
        return next((pid for pid, each in sorted(self.processes().items()) if each == rank), None)

    def wait_until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Whether it came to hold in time."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def wait_for_line(self, pattern: str, since: int, seconds: float) -> bool:
        """Whether a line that fits was printed, before the end of the sitting and in time."""
        matcher = re.compile(pattern)

        def seen() -> bool:
            return any(matcher.search(line) for line in self.lines[since:])

        self.wait_until(lambda: seen() or not self.is_running, seconds)
        return seen()

    def wait_for_end(self, seconds: float) -> bool:
        """Whether all launchers and workers ended in time."""
        ended = self.wait_until(lambda: not self.is_running and not self.processes(), seconds)
        if ended:
            for reader in self._readers:
                reader.join(10)
            self._readers.clear()
        return ended

    def end(self) -> list[int]:
        """Ends whatever is left; its processes."""
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.launchers:
            process.wait()
        return list(left)

    def checkpoints(self) -> list[Path]:
        """Whole ones, the oldest first."""
        return sorted(path for path in self.folder.glob("checkpoints/epoch-*") if not path.name.endswith(".partial"))


def differences(folder: Path, undisturbed: Path) -> list[str]:
    """Names of all that differs between two finished runs, to the last bit: model, last checkpoint, losses and bits/dim."""
    found = []
    try:
        ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (folder, undisturbed))
        for name in ("test_bpd", "test_bpd_raw", "initial_bpd", "exit_bpd", "train_macs"):
            if ours[name] != theirs[name]:
                found.append(name)
        for one, other in zip(ours["epochs"], theirs["epochs"]):
            found += [
                f"{name} of epoch {one['epoch']}"
                for name in ("epoch", "trained", "train_loss", "test_bpd", "exit_bpd", "updates")
                if one[name] != other[name]
            ]
        found += [name for name, equal in _equal_tensors(folder, undisturbed).items() if not equal]
    except (OSError, ValueError, KeyError) as error:
        found.append(f"{type(error).__name__}: {error}")
    return found


def _equal_tensors(folder: Path, undisturbed: Path) -> dict[str, bool]:
    last = max(path.name for path in undisturbed.glob("checkpoints/epoch-*"))
    ours, theirs = (
        {
            name: value
            for file in [path / "model.safetensors", *sorted((path / "checkpoints" / last).glob("*.safetensors"))]
            for name, value in load_file(file).items()
        }
        for path in (folder, undisturbed)
    )
    return {name: name in ours and torch.equal(ours[name], theirs[name]) for name in theirs}


def _is_of_a_job(command: Path) -> bool:
    """Whether a process of a Ray cluster belongs to one job: some that a job makes Ray start are there for later ones."""
    with contextlib.suppress(OSError):
        return any(name in command.read_bytes() for name in (b"RayTrainWorker", b"launch.ray_train"))
    return False
