"""The entry of a run: `python -m pipeflow.launch`, alone or on each worker under torchrun.

Options are checked before torch is imported. An error the user can mend is said once, by the worker it happened to,
and ends all workers with exit code 1. A run that was preempted (SIGTERM) and is saved ends with 75.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from typing import NoReturn

from pipeflow.config import Config, describe_options, load, parse_arguments
from pipeflow.errors import PREEMPTED_EXIT_CODE, PipeflowError, Preempted

_USAGE = """usage: torchrun --nproc_per_node=N -m pipeflow.launch [--config FILE] [--section.option VALUE ...]
       python -m pipeflow.launch [--config FILE] [--section.option VALUE ...]

Trains a flow in gradient-isolated parts, one part or more per worker. Options, with their defaults in brackets:
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one worker; its exit code, for what ends before training begins."""
    arguments = sys.argv[1:] if arguments is None else arguments
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if "--help" in arguments or "-h" in arguments:
        if rank == 0:
            _print_help()
        return 0
    try:
        config = load_config(arguments, world_size)
    except PipeflowError as error:
        return _say_on_rank_0(error, rank)
    return run(config)


def _print_help() -> None:
    try:
        print(_USAGE, describe_options(), sep="\n", flush=True)
    except BrokenPipeError:
        # `... --help | head` has seen enough. What is left would break the pipe again at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def load_config(arguments: list[str], world_size: int) -> Config:
    """The configuration that the command line asks for, checked as far as it can be without torch."""
    path, overrides = parse_arguments(arguments)
    config = load(path, overrides)
    config.check_world_size(world_size)
    return config


def run(config: Config) -> NoReturn:
    """Trains, and ends the process."""
    from pipeflow import train

    try:
        train(config)
    except Preempted as notice:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # launchers repeat it
        if not notice.reported:
            _say(str(notice))
        _leave(PREEMPTED_EXIT_CODE)
    except PipeflowError as error:
        if not error.reported:
            _say(f"error: {error}")
        _leave(1)
    except Exception:
        _say(traceback.format_exc())
        _leave(1)
    _leave(0)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read it may be gone
        print(text, file=sys.stderr, flush=True)


def _say_on_rank_0(error: PipeflowError, rank: int) -> int:
    """All workers find the same error and know nothing of each other yet: rank 0 says it.

    The launcher ends all workers when the first of them fails, so the others wait for that instead of being first.
    """
    if rank == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        threading.Event().wait(10)
    return 1


def _leave(code: int) -> NoReturn:
    """Ends the process now, with all files closed.

    After an error, threads that wait for a lost worker would keep it at the interpreter's exit; after a good end, torch's
    own threads can abort it there (seen with a data-parallel group under gloo).
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
