"""A training on several machines, each with a torchrun of its own that restarts its workers, and the faults of machines.

Machines are network namespaces (benchmarks/links/hosts.py). The commands are those of launch/README.md. What a machine does
by itself after a loss, start the same command again, is done here.
"""

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.fault import (
    DOING,
    Fault,
    all_end,
    came_to_its_end,
    is_no_preemption,
    is_said,
    names_worker,
    workers_end,
)
from benchmarks.faults.kinds import set_link
from benchmarks.faults.trainings import HANG_SECONDS, Training

RECIPE = Path(__file__).parents[2] / "launch" / "README.md"
RETURN_SECONDS = 240.0
"""Within this time all workers train again after a fault: the rendezvous forgets a dead machine after 15 s."""


def recipe() -> tuple[list[str], dict[str, str]]:
    """The arguments of torchrun before `-m`, and the environment, of the recipe for machines that may be lost."""
    lines = [line.strip() for line in RECIPE.read_text().replace("\\\n", " ").splitlines()]
    (line,) = [line for line in lines if line.startswith("torchrun ") and "--max-restarts" in line]
    words = shlex.split(line)[1:]
    exports = [word for line in lines if line.startswith("export ") for word in shlex.split(line)[1:]]
    return words[: words.index("-m")], dict(word.split("=") for word in exports)


@dataclass
class TrainingOnNodes(Training):
    """A training with a launcher, and a worker, on each host. Host 0 is that of the endpoint."""

    nodes: str = "3"
    """`--nnodes`: as many as there are hosts, or fewer to as many."""
    sitting: list[str] = field(default_factory=list)
    """pipeflow's options in this sitting: a host that comes back starts the same command again."""

    def start(self) -> None:
        """The command on each host."""
        self.lines.append(f"--- started at {time.monotonic():.1f}")
        self.sitting = self._options()
        self.launchers = [self._start_on(host) for host in range(self.workers)]

    def start_again(self, host: int) -> None:
        """The command on one host, whose processes are gone."""
        self.lines.append(f"--- host {host} started again at {time.monotonic():.1f}")
        self.launchers[host] = self._start_on(host)

    def _start_on(self, host: int) -> subprocess.Popen:
        given, environment = recipe()
        conf = next(word for word in given if word.startswith("--rdzv-conf="))
        changed = {
            "--nnodes": self.nodes,
            "--nproc-per-node": "1",
            "--rdzv-endpoint": f"{self.hosts.addresses[0]}:29400",
            "--rdzv-conf": re.sub("is_host=[a-z]+", f"is_host={str(host == 0).lower()}", conf.partition("=")[2]),
            "--local-addr": self.hosts.addresses[host],
        }
        names = [word.partition("=")[0] for word in given]
        assert {*changed} <= {*names}, f"{RECIPE}: its torchrun lacks one of {', '.join(changed)}"
        arguments = [f"{name}={changed[name]}" if name in changed else word for name, word in zip(names, given)]
        command = [sys.executable, "-m", "torch.distributed.run", *arguments, "-m", "pipeflow.launch", *self.sitting]
        return self._popen(["ip", "netns", "exec", self.hosts.names[host], *command], **environment)

    def processes_on(self, host: int) -> dict[int, int | None]:
        """The processes on a host, with their ranks."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.hosts.names[host]], capture_output=True, text=True, check=True
        )
        here = {int(pid) for pid in listed.stdout.split()}
        return {pid: rank for pid, rank in self.processes().items() if pid in here}

    def rank_on(self, host: int) -> int | None:
        """The rank of the worker on a host, if it is there."""
        return next((rank for rank in self.processes_on(host).values() if rank is not None), None)

    @property
    def is_running(self) -> bool:
        """Whether a host's launcher lives. Those of lost hosts are started again by whoever injects the fault."""
        return any(process.poll() is None for process in self.launchers)


def kill_worker(training: TrainingOnNodes, dice: random.Random, fault: Fault) -> None:
    """SIGKILL of one worker, on any host: all are restarted, by launchers of which one alone saw it end."""
    host, since = dice.randrange(training.workers), len(training.lines)
    found = [(pid, rank) for pid, rank in training.processes_on(host).items() if rank is not None]
    if not found:
        fault.kind = ""
        return
    old = training.processes()
    ((pid, rank),) = found
    fault.target = f"rank {rank} on host {host}"
    _kill([pid])
    _attempt_ends(training, old, since, fault)
    _goes_on(training, since, fault)
    is_said(training, since, names_worker(rank), fault)
    is_no_preemption(training, since, fault)


def kill_agent(training: TrainingOnNodes, dice: random.Random, fault: Fault) -> None:
    """SIGKILL of a launcher that is not the endpoint's; the host starts its command again."""
    host, since = dice.randrange(1, training.workers), len(training.lines)
    fault.target = f"launcher of host {host}"
    agents = [pid for pid, rank in training.processes_on(host).items() if rank is None]
    old = training.processes()
    _kill(agents)
    _attempt_ends(training, old, since, fault)
    before = len(training.lines)
    is_no_preemption(training, since, fault)
    _return(training, host, dice)
    _goes_on(training, before, fault)
    is_said(training, since, rf"the launcher \(process ({'|'.join(map(str, agents))})\) is gone, {DOING}", fault)


def kill_node(training: TrainingOnNodes, dice: random.Random, fault: Fault) -> None:
    """A host that is not the endpoint's loses its power, or all of its processes; it comes back."""
    host, since = dice.randrange(1, training.workers), len(training.lines)
    rank = training.rank_on(host)
    if rank is None:
        fault.kind = ""
        return
    without_a_word = dice.random() < 0.5
    fault.target = f"host {host} with rank {rank}{', no connection is closed' if without_a_word else ''}"
    old = training.processes()
    if without_a_word:
        set_link(training, host, "down")
    _kill(training.processes_on(host))
    _attempt_ends(training, old, since, fault)
    before = len(training.lines)
    is_no_preemption(training, since, fault)
    set_link(training, host, "up")
    _return(training, host, dice)
    _goes_on(training, before, fault)
    is_said(training, since, names_worker(rank), fault)


def cut_link(training: TrainingOnNodes, dice: random.Random, fault: Fault) -> None:
    """The link of a host that is not the endpoint's is down for longer than all time-outs, then up again."""
    host, since = dice.randrange(1, training.workers), len(training.lines)
    rank = training.rank_on(host)
    if rank is None:
        fault.kind = ""
        return
    seconds = training.heartbeat_timeout + dice.uniform(5, 20)
    fault.target = f"host {host} with rank {rank}, {seconds:.0f} s"
    old = training.processes()
    set_link(training, host, "down")
    begin = time.monotonic()
    _attempt_ends(training, old, since, fault)
    time.sleep(max(0.0, begin + seconds - time.monotonic()))
    before = len(training.lines)
    set_link(training, host, "up")
    _goes_on(training, before, fault)
    # Each side names the other; who is right nobody can know.
    is_said(training, since, rf"{names_worker(rank)}|{names_worker(0)}", fault)
    is_no_preemption(training, since, fault)


def kill_endpoint(training: TrainingOnNodes, dice: random.Random, fault: Fault) -> None:
    """The host of the endpoint loses all of its processes: the run ends everywhere, and the same commands resume it."""
    since = len(training.lines)
    fault.target = "host 0"
    rank = training.rank_on(0)
    if rank is None:
        fault.kind = ""
        return
    _kill(training.processes_on(0))
    all_end(training, fault)
    is_said(training, since, names_worker(rank), fault)
    is_no_preemption(training, since, fault)
    fault.resumed = "by repeating"


KINDS: dict[str, Callable[[TrainingOnNodes, random.Random, Fault], None]] = {
    "SIGKILL of a worker": kill_worker,
    "SIGKILL of a launcher": kill_agent,
    "a machine lost, and back": kill_node,
    "link cut beyond the time-outs": cut_link,
    "the endpoint's machine lost": kill_endpoint,
}


def inject(kind: str, training: TrainingOnNodes, dice: random.Random) -> Fault | None:
    """Waits for a random moment of a training that runs, and injects; None where the training ended before."""
    since = max(index for index, line in enumerate(training.lines) if line.startswith("--- "))
    fault = Fault(kind, "while it trains")
    if not training.wait_for_line(r"^epoch", since, RETURN_SECONDS):
        return None
    time.sleep(dice.uniform(0, 6))
    if not training.is_running or came_to_its_end(training, since):
        return None
    KINDS[kind](training, dice, fault)
    return fault if fault.kind else None


def _kill(processes: "list[int] | dict[int, int | None]") -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _attempt_ends(training: TrainingOnNodes, old: dict[int, int | None], since: int, fault: Fault) -> None:
    """All workers of the attempt that was disturbed are gone. The fault has no kind where they were done before it."""
    workers_end(training, old, fault)
    if came_to_its_end(training, since):
        fault.kind = ""


def _return(training: TrainingOnNodes, host: int, dice: random.Random) -> None:
    """A lost host comes back, sooner or later than the rendezvous has forgotten it."""
    training.wait_until(lambda: not training.processes_on(host), HANG_SECONDS)
    time.sleep(dice.choice([0.0, dice.uniform(0, 5), dice.uniform(15, 40)]))
    training.start_again(host)


def _goes_on(training: TrainingOnNodes, since: int, fault: Fault) -> None:
    """The run comes one epoch further on all hosts, or to its end, without anybody's help."""
    if not fault.kind:
        return
    fault.resumed = "by itself"
    # The endpoint's launcher goes on through all of this: where it ends, the run does not go on by itself.
    if not training.wait_for_line(r"^epoch |^done: ", since, RETURN_SECONDS):
        fault.resumed = "by repeating"
        fault.wrong.append(f"it did not go on by itself: {training.output(since)[-1500:]}")
        training.wait_for_end(HANG_SECONDS)
    training.lines.append(
        f"--- restarted by the launchers, {[training.rank_on(host) for host in range(training.workers)]}"
    )
