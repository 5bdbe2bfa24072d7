"""Runs to load flows from."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pipeflow


@pytest.fixture
def copy(finished_run, tmp_path) -> Path:
    """The finished run once more, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "copy")


@pytest.fixture
def train_own() -> Callable[..., Path]:
    """Trains a flow given from Python on images given from Python, for one epoch end to end; the run folder."""

    def train(folder: Path, flow: pipeflow.Flow, data: pipeflow.ImageData, **run: object) -> Path:
        settings = {
            "run": {"dir": str(folder), "device": "cpu", "figures": False, **run},
            "schedule": {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": 1},
            "parts": {"split": "balanced", "num": 1},
            "optim": {"batch_size": 8},
        }
        pipeflow.train(pipeflow.Config.from_dict(settings), flow=flow, data=data)
        return folder

    return train


@pytest.fixture
def noise() -> pipeflow.ImageData:
    """Images of 2x4x4."""
    images = torch.randint(0, 256, (24, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return pipeflow.ImageData(images[:16], images[16:], "noise")
