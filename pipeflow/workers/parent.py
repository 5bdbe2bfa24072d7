"""The process that started this one, remembered at the first import, before anything that takes long to import."""

import os
import shlex
import sys
from pathlib import Path

PROCESS = os.getppid()
IS_FIRST_CHILD = os.environ.get("LOCAL_RANK", "0") == "0"
"""Whether this is the worker that says what all workers of the machine see, when the launcher is gone."""
_HERE = os.getpid()


def is_torchrun() -> bool:
    """Whether torchrun started this process. It passes signals on, and ends workers that do not leave by themselves."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_gone() -> bool:
    """Whether torchrun has ended without its workers, as when it was killed."""
    is_child = os.getpid() == _HERE  # not a process forked from this one since
    return is_child and is_torchrun() and os.getppid() != PROCESS


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
