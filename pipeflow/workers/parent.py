"""The process that started this one, remembered at the first import, before anything that takes long to import."""

import os
import shlex
import sys
from pathlib import Path

from pipeflow.workers.processes import started_at, state_of, this_machine

PROCESS = os.getppid()
_HERE = os.getpid()


def is_torchrun() -> bool:
    """Whether torchrun started this process. It passes signals on, and ends workers that do not leave by themselves."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launcher() -> str:
    """Names the torchrun that started this process, on whatever machine; empty where another launcher did."""
    return f"{this_machine()} {PROCESS} {started_at(PROCESS)}" if is_torchrun() else ""


def is_gone() -> bool:
    """Whether torchrun has ended without its workers, as when it was killed."""
    is_child = os.getpid() == _HERE  # not a process forked from this one since
    return is_child and is_torchrun() and os.getppid() != PROCESS


def trouble() -> str:
    """Why torchrun, and its store with it, does not answer any more; empty where it does."""
    if is_gone():
        return f"the launcher (process {PROCESS}) is gone"
    if is_torchrun() and state_of(PROCESS) == "T":
        return f"the launcher (process {PROCESS}) is stopped, as by Ctrl-Z"
    return ""


def is_said_elsewhere() -> bool:
    """Whether there is trouble with the launcher, which all workers of the machine see, and the first of them says."""
    return bool(trouble()) and os.environ.get("LOCAL_RANK", "0") != "0"


def how_to_resume() -> str:
    """The sentence that ends the message of a run that can go on, with its command line where that can be known."""
    command = _command()
    return f"Resume with: {shlex.join(command)}" if command else "Start the same command again to resume."


def _command() -> list[str]:
    """The command line that started the run: torchrun's, or this process's own. Empty where neither is known."""
    if is_torchrun():
        try:
            arguments = Path(f"/proc/{PROCESS}/cmdline").read_text().split("\0")[:-1]
        except (OSError, UnicodeDecodeError):
            return []
        return arguments if not any("\n" in argument for argument in arguments) else []
    # A notebook's kernel and a worker of Ray were not started by the user.
    is_users = "RANK" not in os.environ and "ipykernel" not in sys.modules and not hasattr(sys, "ps1")
    return sys.orig_argv if is_users and not any("\n" in argument for argument in sys.orig_argv) else []
