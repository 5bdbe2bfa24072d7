"""Flows without memory: their tensors have shapes and no values, so that any size is built and run in a second."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from torch._subclasses.fake_tensor import FakeTensorMode

from pipeflow.config import Config

Made = TypeVar("Made")

WITHOUT_MEMORY = FakeTensorMode(allow_non_fake_inputs=True)
"""A context in which new tensors have no memory. It is the only one: fake tensors of different modes do not mix."""


def build_without_memory(config: Config, build: Callable[[], Made]) -> Made:
    """Calls `build`, without memory for pipeflow's own flows; a user's function may need real values."""
    with WITHOUT_MEMORY if config.model.name == "glow" else nullcontext():
        return build()
