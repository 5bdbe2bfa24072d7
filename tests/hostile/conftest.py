"""A run of one's own to do harm to."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """The run once more, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "run")
