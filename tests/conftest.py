"""What all tests share: one thread, a cache folder of their own, and one small run that has ended."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pipeflow

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps decoded images out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two parts in one process. To be read, not changed: all tests share it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    pipeflow.train(
        pipeflow.Config.from_dict({
            "run": {"dir": str(folder), "device": "cpu"},
            "data": {"name": "dead_leaves", "num_train": 128, "num_test": 64},
            "model": {"num_blocks": 2, "num_steps": 2, "width": 8},
            "parts": {"split": "across", "num": 2},
            "schedule": {"local_epochs": 1, "finetune_epochs": 1},
            "optim": {"ema": 0.9, "batch_size": 24},
        })
    )  # fmt: skip
    return folder
