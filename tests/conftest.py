"""What all tests share: one thread, a cache folder of their own, workers that end with the test, and one small run."""

import importlib.util
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytest
import torch

import pipeflow
from tests import namespaces
from tests.launching import Launch
from tests.small_runs import torchrun as start_torchrun

torch.set_num_threads(1)


HAS_RAY = importlib.util.find_spec("ray") is not None
collect_ignore = [] if HAS_RAY else ["ray", "launch/test_ray.py", "launch/test_tune_part_lr.py"]


def pytest_report_header() -> str:
    return "" if HAS_RAY else f"without ray, so without {', '.join(collect_ignore)}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs something that cannot be had here, and says why."""
    if item.get_closest_marker("root") is not None and (why := namespaces.missing()):
        pytest.skip(f"needs root: {why}")
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps decoded images out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def launch() -> Iterator[Callable[..., Launch]]:
    """`launch(num_workers, *arguments)` starts workers as torchrun would; those that are left end after the test."""
    started: list[Launch] = []

    def start(num_workers: int | None, *arguments: str, **settings) -> Launch:
        started.append(Launch(num_workers, *arguments, **settings))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def torchrun() -> Iterator[Callable[..., subprocess.Popen]]:
    """`torchrun(num_workers, *arguments)` for tests that are about torchrun itself; what is left ends after the test."""
    started: list[subprocess.Popen] = []

    def start(num_workers: int, *arguments: str, **settings) -> subprocess.Popen:
        started.append(start_torchrun(num_workers, *arguments, **settings))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two parts in one process. To be read, not changed: all tests share it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    pipeflow.train(
        pipeflow.Config.from_dict({
            "run": {"dir": str(folder), "device": "cpu", "figures": False},
            "data": {"name": "dead_leaves", "num_train": 128, "num_test": 64},
            "model": {"num_blocks": 2, "num_steps": 2, "width": 8},
            "parts": {"split": "across", "num": 2},
            "schedule": {"local_epochs": 1, "finetune_epochs": 1},
            "optim": {"ema": 0.9, "batch_size": 24},
        })
    )  # fmt: skip
    return folder
