"""What a measurement was made on, for the head of its table."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

import pipeflow


def describe_machine() -> dict[str, str]:
    """Processor, cores, GPU and versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": _cpu_name(),
        "cores": str(os.cpu_count()),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": version("torch"),
        "pipeflow": pipeflow.__version__,
    }


def in_words(machine: dict[str, str]) -> str:
    """One line of it."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, GPU {machine['gpu']}, Python {machine['python']}, "
        f"torch {machine['torch']}, pipeflow {machine['pipeflow']}"
    )


def _cpu_name() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
