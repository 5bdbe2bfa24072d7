"""A GPU's numbers against the CPU's: the checks of benchmarks/gpu, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.checks import CHECKS

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_a_gpu_agrees_with_the_cpu(name):
    command = [sys.executable, "-m", "benchmarks.gpu.checks", name, "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
