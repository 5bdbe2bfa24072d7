"""The entry of a run: `python -m pipeflow.launch`, alone or on each worker under torchrun.

Options are checked before torch is imported. An error the user can mend is said once, by the worker it happened to,
and ends all workers with exit code 1. A run that was preempted or interrupted and is saved ends with 75; one that is
interrupted where nothing can be saved, with 130.
"""

import contextlib
import importlib.metadata
import os
import platform
import signal
import sys
import threading
import traceback
from typing import NoReturn

import pipeflow
from pipeflow.config import Config, describe_options, load, parse_arguments
from pipeflow.errors import PREEMPTED_EXIT_CODE, ConfigError, PipeflowError, Preempted
from pipeflow.output import end_with, open_standard_descriptors, say, stdout_may_break, tell_launcher
from pipeflow.workers import parent
from pipeflow.workers.environment import check_not_apart, read_place
from pipeflow.workers.preemption import NOTICES

_USAGE = """usage: torchrun --nproc_per_node=N -m pipeflow.launch [--config FILE] [--section.option VALUE ...]
       pipeflow train [--config FILE] [--section.option VALUE ...]       (or python -m pipeflow.launch: one worker)

Trains a flow in gradient-isolated parts, one part or more per worker. --version prints the versions, and exits.
Options, with their defaults in brackets:
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one worker; its exit code, for what ends before training begins."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_standard_descriptors()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    if "--help" in arguments or "-h" in arguments:
        if _says_for_all():
            with stdout_may_break(lambda error: None):  # `... --help | head` has seen enough
                print(_USAGE, describe_options(), sep="\n")
        return 0
    if "--version" in arguments:
        if _says_for_all():
            print(version())
        return 0
    try:
        check_not_apart()
        place = read_place()
    except ConfigError as error:  # of a launcher that does not say who is who: each worker says it
        end_with(1, f"error: {error}")
    try:
        config = load_config(arguments, place.size)
    except PipeflowError as error:
        return _say_once(error)
    return run(config)


def version() -> str:
    """The versions that matter to a run, found without importing torch."""
    torch, python = importlib.metadata.version("torch"), platform.python_version()
    return f"pipeflow {pipeflow.__version__}, torch {torch}, Python {python}"


def load_config(arguments: list[str], world_size: int) -> Config:
    """The configuration that the command line asks for, checked as far as it can be without torch."""
    if any(argument.startswith(("--local-rank", "--local_rank")) for argument in arguments):
        raise ConfigError(
            "--local-rank: comes from python -m torch.distributed.launch: start the workers with torchrun."
        )
    path, overrides = parse_arguments(arguments)
    config = load(path, overrides)
    config.check_world_size(world_size)
    return config


def run(config: Config) -> NoReturn:
    """Trains, and ends the process.

    It ends without the interpreter's exit: after an error, threads that wait for a lost worker would keep it there; after
    a good end, torch's own threads can abort it (seen with a data-parallel group under gloo).
    """
    from pipeflow import train

    try:
        train(config)
        with contextlib.suppress(OSError):
            print(end="", flush=True)
    except Preempted as notice:
        for number in NOTICES:
            signal.signal(number, signal.SIG_IGN)  # launchers repeat it
        end_with(PREEMPTED_EXIT_CODE, str(notice), quiet=notice.reported)
    except PipeflowError as error:
        end_with(1, f"error: {error}", quiet=error.reported)
    except Exception:
        end_with(1, traceback.format_exc())
    end_with(0)


def _end_at_once(*_: object) -> NoReturn:
    """A Ctrl-C where there is nothing to save yet, or the second one, where the user does not want to wait for it."""
    message = f"interrupted: ended at once, without saving. {parent.how_to_resume()}"
    end_with(128 + signal.SIGINT, message, quiet=not _says_for_all())


def _says_for_all() -> bool:
    """Whether this worker says what all of them find alike, before they know of each other."""
    return os.environ.get("RANK", "0") in ("", "0")


def _say_once(error: PipeflowError) -> int:
    """Says what all workers find alike.

    The launcher ends all workers when the first of them fails, so the others wait for that instead of being first.
    """
    tell_launcher(f"error: {error}")
    if _says_for_all():
        say(f"error: {error}")
    else:
        threading.Event().wait(10)
    return 1


if __name__ == "__main__":
    sys.exit(main())
