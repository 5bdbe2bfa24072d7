"""A fault that was injected, and what is looked at until its consequence is over."""

import re
import time
from dataclasses import dataclass, field

from benchmarks.faults.trainings import HANG_SECONDS, Training

AT_START = "at the start"


@dataclass
class Fault:
    """One that was injected."""

    kind: str
    moment: str
    target: str = ""
    noticed_s: float | None = None
    """Seconds until all processes that had to end had ended; None where none had to."""
    resumed: str = ""
    """`by itself`, `by repeating`, or `went on`."""
    named: bool = True
    left: int = 0
    """Processes that had not ended in time."""
    wrong: list[str] = field(default_factory=list)


DOING = r"while worker \d+ (waited (for|to send) |computed)"
"""A pattern of what a survivor did meanwhile."""


def names_worker(rank: int) -> str:
    """A message that has the worker, its part or link, and what was waited for."""
    store = rf"|store does not answer.*worker 0 .*{DOING}" if rank == 0 else ""
    return (
        rf"worker {rank} was lost.*(part|link \d).*{DOING}"
        rf"|worker {rank} was lost: its (control connection|process).*{DOING}"  # before it had told its part
        rf"|link \d \(part \d to part \d\).* worker {rank} .*{DOING}"
        rf"|a worker was lost, or its link.* while it waited for .*no heartbeat of .*worker {rank} \({store}"
    )


def came_to_its_end(training: Training, since: int) -> bool:
    """Whether the run was done before a fault could do anything to it."""
    return any("done: test" in line for line in training.lines[since:])


def workers_end(training: Training, old: dict[int, int | None], fault: Fault) -> None:
    """All workers of the attempt that was disturbed are gone."""
    begin = time.monotonic()
    workers = {pid for pid, rank in old.items() if rank is not None}
    if not training.wait_until(lambda: not workers & set(training.processes()), HANG_SECONDS):
        left = workers & set(training.processes())
        fault.left += len(left)
        fault.wrong.append(f"{len(left)} workers did not end within {HANG_SECONDS:g} s")
    fault.noticed_s = time.monotonic() - begin


def all_end(training: Training, fault: Fault) -> None:
    """All processes of the run are gone, launchers too."""
    begin = time.monotonic()
    if not training.wait_for_end(HANG_SECONDS):
        left = training.end()
        fault.left += len(left)
        fault.wrong.append(f"{len(left)} processes did not end within {HANG_SECONDS:g} s")
    fault.noticed_s = time.monotonic() - begin


def resumed_or_ended(training: Training, fault: Fault) -> None:
    """After a fault that torchrun answers: a new attempt by itself, or its end."""

    def new_attempt() -> bool:
        return any(rank is not None for rank in training.processes().values())

    if not training.wait_until(lambda: not training.is_running or new_attempt(), HANG_SECONDS):
        fault.wrong.append("neither restarted nor ended")
    if training.is_running:
        fault.resumed = "by itself"
        training.lines.append("--- restarted by the launcher")
    else:
        fault.resumed = "by repeating"
        if not training.wait_for_end(HANG_SECONDS):
            fault.left += len(training.end())


def goes_on(training: Training, fault: Fault) -> None:
    """The training comes one epoch further, or to its end, in the attempt that it is in."""
    since = len(training.lines)
    fault.resumed = "went on"
    if not training.wait_for_line(r"^epoch |^done: ", since, HANG_SECONDS):
        output = training.output(since)
        if training.is_running or any(training.exit_codes):
            fault.wrong.append(f"it did not go on: {output[-400:]}")


def is_said(training: Training, since: int, pattern: str, fault: Fault, or_the_launcher: int | None = None) -> None:
    """Whether a line names the cause.

    or_the_launcher: the rank that the launcher's own report may name instead: torchrun's at the start, when the workers do
    not know of each other yet, and Ray's, which ends the workers that are left before they can say anything.
    """
    lines = training.lines[since:]
    fault.named = any(re.search(pattern, line) for line in lines)
    if not fault.named and or_the_launcher is not None and (fault.moment == AT_START or training.ray is not None):
        reports = (
            rf"rank *: {or_the_launcher} |local_rank: {or_the_launcher} |^.?\[Rank {or_the_launcher} Error Snippet"
        )
        fault.named = any(re.search(reports, line) for line in lines)
    if not fault.named:
        fault.wrong.append(f"the cause was not named: {training.output(since)[-600:]}")


def is_no_preemption(training: Training, since: int, fault: Fault) -> None:
    if any("preempted" in line for line in training.lines[since:]):
        fault.wrong.append(f"a loss was taken for a preemption: {training.output(since)[-600:]}")
