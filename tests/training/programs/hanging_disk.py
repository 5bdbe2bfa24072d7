"""The launcher's entry, with a disk that never writes a checkpoint; it says when it is asked to leave."""

import threading

from pipeflow import launch
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.workers.preemption import Notice


def main(arguments: list[str]) -> int:
    give = Notice.give

    def say_and_give(notice: Notice, *told: object) -> None:
        give(notice, *told)
        print("asked to leave", flush=True)

    Checkpoints.write = lambda *_: threading.Event().wait()
    Notice.give = say_and_give
    return launch.main(arguments)
