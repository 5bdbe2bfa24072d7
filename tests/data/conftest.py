"""Data options, and a cache folder for each test."""

from functools import partial
from pathlib import Path

import pytest

from pipeflow.config import DataConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that decoded images are kept in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pipeflow"


@pytest.fixture
def options() -> partial[DataConfig]:
    return partial(DataConfig, name="images")
