"""A GPU's numbers against the CPU's: the checks of benchmarks/gpu, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = (
    "flow", "run", "two_workers", "nccl_alone", "nccl_pair", "compile", "steps", "pipeline", "replicas",
    "checkpoints",
)  # fmt: skip
"""All of `benchmarks.gpu.checks.CHECKS`, which would be imported wherever tests are collected."""
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_agrees_with_the_cpu(name):
    command = [sys.executable, "-m", "benchmarks.gpu.checks", name, "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
