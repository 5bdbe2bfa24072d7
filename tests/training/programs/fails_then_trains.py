"""Two runs in turn in the same workers, as a program that catches the error of the first: it has a rate that diverges."""

import os
import signal
import threading
from pathlib import Path

import torch

from pipeflow import PipeflowError, train
from pipeflow.workers.preemption import NOTICES
from tests.small_runs import small_config

ENDED = {"pipeflow-guard", "pipeflow-monitor", "pipeflow-control", "pipeflow-grace", "pipeflow-images_0"}


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    handlers = [signal.getsignal(number) for number in NOTICES]
    for name, lr in (("first", 1e6), ("second", 1e-3)):
        try:
            train(small_config(Path(arguments[0], name), optim={"lr": lr, "warmup_steps": 0}))
            print(f"worker {rank}: {name} trained", flush=True)
        except PipeflowError as error:
            print(f"worker {rank}: {name} failed: {error}", flush=True)
        assert [signal.getsignal(number) for number in NOTICES] == handlers
        for thread in threading.enumerate():
            if thread.name in ENDED:
                thread.join(20)
                assert not thread.is_alive(), thread.name
    print(f"worker {rank}: nothing is left", flush=True)
