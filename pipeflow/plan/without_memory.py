"""Tensors with shapes and no memory: flows of any size are built and run through in a second."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from torch._subclasses.fake_tensor import FakeTensorMode

from pipeflow.config import Config

Made = TypeVar("Made")

_MODE = FakeTensorMode(allow_non_fake_inputs=True)
"""One mode for all: fake tensors of different modes do not mix."""


def without_memory() -> FakeTensorMode:
    """Inside it, new tensors have no memory, and what is computed of them or of real ones neither."""
    return _MODE


def build_without_memory(config: Config, build: Callable[[], Made]) -> Made:
    """`build()`, without memory for pipeflow's own flows; a function of the user's may need real values."""
    with _MODE if config.model.name == "glow" else nullcontext():
        return build()
