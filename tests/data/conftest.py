"""Data options, and a cache folder of each test's own."""

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Options:
    """The section `data` of a configuration."""

    name: str = "images"
    path: str | None = None
    num_train: int | None = None
    num_test: int | None = None
    flip: bool = False


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that decoded images are kept in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pipeflow"


@pytest.fixture
def options() -> type[Options]:
    return Options
