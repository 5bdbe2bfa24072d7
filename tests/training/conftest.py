"""Processes that a test starts, ended after it."""

import os
import signal
import subprocess

import pytest
from small_runs import torchrun


@pytest.fixture
def launch():
    """`launch(num_workers, *arguments)` as `torchrun`; whatever is left of it is ended after the test."""
    started: list[subprocess.Popen] = []

    def start(num_workers: int, *arguments: str, **settings) -> subprocess.Popen:
        started.append(torchrun(num_workers, *arguments, **settings))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
