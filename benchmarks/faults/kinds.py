"""The faults: what each does to a training, what must come of it, and how that is seen.

A kind injects one fault into a training that is running and returns once its consequence is over: the workers are gone, or
restarted, or went on as if nothing had been. What it found wanting stands in the fault's `wrong`.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.fault import (
    AT_START,
    DOING,
    Fault,
    all_end,
    came_to_its_end,
    goes_on,
    is_no_preemption,
    is_said,
    names_worker,
    resumed_or_ended,
    workers_end,
)
from benchmarks.faults.trainings import HANG_SECONDS, Training


def kill_rank(training: Training, dice: random.Random, fault: Fault) -> None:
    """SIGKILL of one rank: the launcher restarts all, or ends."""
    rank = dice.randrange(training.workers)
    since = len(training.lines)
    old = training.processes()
    pid = _signal(training, rank, signal.SIGKILL, fault)
    if pid is None:
        return
    workers_end(training, old, fault)
    resumed_or_ended(training, fault)
    is_said(training, since, names_worker(rank), fault, or_the_launcher=rank)
    is_no_preemption(training, since, fault)


def kill_launcher(training: Training, dice: random.Random, fault: Fault) -> None:
    """SIGKILL of torchrun: nobody is left to end the workers but they themselves."""
    since = len(training.lines)
    launcher = dice.choice(training.launchers)
    fault.target = "launcher"
    launcher.kill()
    all_end(training, fault)
    if came_to_its_end(training, since):
        fault.kind = ""
        return
    if fault.moment != AT_START:  # before the workers know of each other nobody can say it
        is_said(training, since, rf"the launcher \(process {launcher.pid}\) is gone, {DOING}", fault)
    fault.resumed = "by repeating"


def stop_long(training: Training, dice: random.Random, fault: Fault) -> None:
    """SIGSTOP of one rank for longer than any time-out, then SIGCONT."""
    rank = dice.randrange(training.workers)
    since = len(training.lines)
    old = training.processes()
    pid = _signal(training, rank, signal.SIGSTOP, fault)
    if pid is None:
        return
    begin = time.monotonic()
    others = [each for each, of in old.items() if of not in (None, rank)]
    ended = training.wait_until(lambda: not set(others) & set(training.processes()), HANG_SECONDS)
    noticed = time.monotonic() - begin
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    workers_end(training, old, fault)
    fault.noticed_s = noticed
    if not ended:
        fault.wrong.append("the other workers did not notice")
    resumed_or_ended(training, fault)
    is_said(training, since, names_worker(rank), fault)
    is_no_preemption(training, since, fault)


def stop_short(training: Training, dice: random.Random, fault: Fault) -> None:
    """SIGSTOP of one rank for less than the time-outs: nothing may come of it."""
    rank = dice.randrange(training.workers)
    pid = _signal(training, rank, signal.SIGSTOP, fault)
    if pid is None:
        return
    time.sleep(dice.uniform(0.2, 0.4 * training.link_timeout))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    goes_on(training, fault)


def second_run(training: Training, dice: random.Random, fault: Fault) -> None:
    """The same command once more, on the same folder: one of the two is refused, the other goes on."""
    begin = time.monotonic()
    first = training.worker(0)
    second = training.start_second()
    try:
        output, _ = second.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        second.kill()
        output, _ = second.communicate()
        fault.wrong.append("the second run neither trained nor was refused")
    fault.noticed_s = time.monotonic() - begin
    if second.returncode == 0:  # the first was at its end before the second looked
        fault.kind = ""
        return
    refused = re.search(r"error: run.dir: .* is in use: process (\d+) on \S+ trains in it since", output)
    fault.named = refused is not None and (fault.moment == AT_START or int(refused[1]) == first)
    if second.returncode != 1 or not fault.named:
        fault.wrong.append(f"the second run ended with exit code {second.returncode}: {output[-300:]}")
    goes_on(training, fault)


def preempt(training: Training, dice: random.Random, fault: Fault) -> None:
    """SIGTERM, to the launcher, or to all processes of the run: it saves itself and leaves."""
    everybody = dice.random() < 0.5
    fault.target = "all processes" if everybody else "launcher"
    since = len(training.lines)
    targets = list(training.processes()) if everybody else [process.pid for process in training.launchers]
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    all_end(training, fault)
    if came_to_its_end(training, since):
        fault.kind = ""
        return
    if fault.moment != AT_START:  # a run that has not begun to train just ends
        is_said(training, since, r"preempted \(SIGTERM at worker \d\): nothing that was trained is lost", fault)
        if fault.noticed_s is not None and fault.noticed_s > GRACE_SECONDS:
            fault.wrong.append(f"it left after {fault.noticed_s:.0f} s, grace time is {GRACE_SECONDS:g} s")
    fault.resumed = "by repeating"


def terminate_on_ray(training: Training, dice: random.Random, fault: Fault) -> None:
    """SIGTERM of one worker under Ray, whose training is not in the main thread: it ends, and Ray restarts all."""
    rank = dice.randrange(training.workers)
    since = len(training.lines)
    old = training.processes()
    if _signal(training, rank, signal.SIGTERM, fault) is None:
        return
    workers_end(training, old, fault)
    resumed_or_ended(training, fault)
    is_said(training, since, names_worker(rank), fault, or_the_launcher=rank)


def damage(training: Training, dice: random.Random, fault: Fault) -> None:
    """The run is killed, a file of its newest checkpoint truncated, or one bit of it flipped: the one before is taken."""
    for pid in training.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    all_end(training, fault)
    checkpoints = training.checkpoints()
    if len(checkpoints) < 2 or (training.folder / "summary.json").exists():
        fault.kind = ""  # nothing to damage, or nothing to go back to
        return
    files = sorted(checkpoints[-1].iterdir())
    path = dice.choice(files)
    content = bytearray(path.read_bytes())
    place = dice.randrange(len(content))
    if dice.random() < 0.5:
        path.write_bytes(content[:place])
        fault.target = f"{path.name} cut off at byte {place}"
    else:
        bit = dice.randrange(8)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        fault.target = f"{path.name}, bit {bit} of byte {place} flipped"
    since = len(training.lines)
    training.start()
    training.wait_for_line(r"resuming after|^error", since, HANG_SECONDS)
    output = training.output(since)
    newest, before = checkpoints[-1].name, checkpoints[-2].name
    what = rf"({re.escape(path.name)} is damaged|has format)"
    fault.named = re.search(rf"checkpoint \S*{newest}: {what}.* Taking the one before, {before}", output) is not None
    if f"resuming after {int(checkpoints[-2].name[6:12])} epoch" not in output:
        fault.wrong.append(f"not resumed from {checkpoints[-2].name}: {output[-300:]}")
    if not fault.named:
        fault.wrong.append(f"the cause was not named: {output[-300:]}")
    fault.resumed = "by repeating"


def full_disk(training: Training, dice: random.Random, fault: Fault) -> None:
    """The run folder's disk is filled up: the run ends with what it has, and resumes once there is room."""
    since = len(training.lines)
    filler = training.folder.parent / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        for block in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(block)):
                    pass
    all_end(training, fault)
    filler.unlink()
    if came_to_its_end(training, since):
        fault.kind = ""
        return
    is_said(training, since, rf"error: .*{re.escape(str(training.folder))}.*No space left.*Free some space", fault)
    fault.resumed = "by repeating"


def cut_and_heal(training: Training, dice: random.Random, fault: Fault) -> None:
    """The link of one host is down for a while: the run goes on."""
    host = dice.randrange(training.workers)
    seconds = dice.uniform(0.3, 0.35 * training.link_timeout)
    fault.target = f"host {host}, {seconds:.1f} s"
    set_link(training, host, "down")
    time.sleep(seconds)
    set_link(training, host, "up")
    goes_on(training, fault)


def cut_for_good(training: Training, dice: random.Random, fault: Fault) -> None:
    """The link of one host is down and stays down: packets vanish, no connection breaks."""
    host = dice.randrange(training.workers)
    fault.target = f"host {host}"
    since = len(training.lines)
    set_link(training, host, "down")
    begin = time.monotonic()
    workers = [pid for pid, rank in training.processes().items() if rank is not None]
    ended = training.wait_until(lambda: not set(workers) & set(training.processes()), HANG_SECONDS)
    fault.noticed_s = time.monotonic() - begin
    if not ended:
        fault.wrong.append("workers did not end")
    # torchrun's own agents may wait for each other over the link that is cut: they are not pipeflow's.
    training.wait_until(lambda: not training.is_running, 5)
    set_link(training, host, "up")
    if not training.wait_for_end(HANG_SECONDS):
        fault.left = len(training.end())
    ends = "|".join(str(rank) for rank in range(training.workers) if host in (0, rank) or rank == 0)
    about = (
        rf"(worker ({ends}) was lost.*(part|link \d)|link \d .*worker ({ends}) |worker 0 .*or the launcher is gone).*"
    )
    gradients = r"or its link.* while it waited for .*no heartbeat of worker|while worker \d waited"
    is_said(training, since, rf"{about}{DOING}|{gradients}", fault)
    fault.resumed = "by repeating"


KINDS: dict[str, Callable[[Training, random.Random, Fault], None]] = {
    "SIGKILL of a rank": kill_rank,
    "SIGKILL of the launcher": kill_launcher,
    "SIGSTOP beyond the time-out": stop_long,
    "SIGSTOP, short": stop_short,
    "two runs, one folder": second_run,
    "SIGTERM": preempt,
    "damaged checkpoint": damage,
    "full disk": full_disk,
    "link cut and healed": cut_and_heal,
    "link cut for good": cut_for_good,
    "SIGKILL of a rank (Ray)": kill_rank,
    "SIGSTOP beyond the time-out (Ray)": stop_long,
    "SIGTERM of a rank (Ray)": terminate_on_ray,
}
ON_HOSTS = ("link cut and healed", "link cut for good")
ON_SMALL_DISK = ("full disk",)
ON_RAY = tuple(kind for kind in KINDS if kind.endswith("(Ray)"))
LONGEST_SECONDS = 35.0
"""Seconds until a loss is noticed and all have ended: 25 s of missing heartbeats, and some for a busy machine."""
GRACE_SECONDS = 25.0
"""`checkpoint.grace_s`, as it is unless one says otherwise."""


def inject(kind: str, training: Training, dice: random.Random) -> Fault | None:
    """Waits for a random moment of a training that runs, and injects; None where the training ended before."""
    since = max(index for index, line in enumerate(training.lines) if line.startswith("--- "))
    if dice.random() < 0.2 and kind not in (*ON_HOSTS, *ON_SMALL_DISK, *ON_RAY):
        fault = Fault(kind, AT_START)
        time.sleep(dice.uniform(0, 6))
    else:
        fault = Fault(kind, "while it trains")
        if not training.wait_for_line(r"^epoch", since, HANG_SECONDS):
            return None
        time.sleep(dice.uniform(0, 1.5))
    if not training.is_running or came_to_its_end(training, since):
        return None
    KINDS[kind](training, dice, fault)
    if fault.noticed_s is not None and fault.noticed_s > LONGEST_SECONDS:
        fault.wrong.append(f"it took {fault.noticed_s:.0f} s to end")
    return fault if fault.kind else None


def _signal(training: Training, rank: int, number: signal.Signals, fault: Fault) -> int | None:
    fault.target = f"rank {rank}"
    pid = training.worker(rank)
    if pid is None:  # not there yet, or any more
        fault.kind = ""
        return None
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        fault.kind = ""
        return None
    return pid


def set_link(training: Training, host: int, state: str) -> None:
    subprocess.run(["ip", "-n", training.hosts.hub, "link", "set", f"port{host}", state], check=True)


def mounted(folder: Path, size: str = "3m") -> None:
    """A disk of that size in place of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
