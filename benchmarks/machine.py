"""The machine, the versions and the command of a measurement, for the head of its table."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import pipeflow
from pipeflow.device import instruction_sets

_TOLD_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
"""Instruction sets that decide how fast numbers are multiplied; all others are left out of tables."""


def describe_machine() -> dict[str, str]:
    """Processor with its instruction sets, cores, GPU and versions, and the day."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    listed = instruction_sets()
    return {
        "cpu": _cpu_name(),
        "instruction_sets": " ".join(name for name in _TOLD_SETS if name in listed),
        "cores": str(os.cpu_count()),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        "pipeflow": pipeflow.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def same_machine(machine: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two measurements are from one machine with one set of versions, be it on two days."""
    return {**machine, "date": ""} == {**other, "date": ""}


def in_words(machine: dict[str, str]) -> str:
    """The machine in one line; instruction sets and the day only where they were written down."""
    sets = f" ({machine['instruction_sets']})" if machine.get("instruction_sets") else ""
    date = f", {machine['date']}" if machine.get("date") else ""
    return (
        f"{machine['cpu']}{sets}, {machine['cores']} cores, GPU {machine['gpu']}, Python {machine['python']}, "
        f"torch {machine['torch']}, pipeflow {machine['pipeflow']}{date}"
    )


def command_line(program: str, arguments: Sequence[str] | None = None) -> str:
    """The command that makes a table again. arguments: of the module `program`; None: those of this process."""
    return shlex.join(["python", "-m", program, *(sys.argv[1:] if arguments is None else arguments)])


def _cpu_name() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
