import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeflow.device import choose_device, has_bfloat16
from pipeflow.errors import ConfigError


@pytest.mark.parametrize("name, has_gpu", [("cpu", True), ("cpu", False), ("auto", False)])
def test_the_cpu_where_it_is_asked_for_or_there_is_no_gpu(monkeypatch, name, has_gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    assert choose_device(name, local_rank=1) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^run\.device: cuda, but torch finds no GPU here: use auto or cpu"):
        choose_device("cuda")


@pytest.mark.parametrize(
    "listed, has",
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_tile amx_bf16\nflags\t\t: of the second core\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("model name\t: bf16\nflags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_looked_up_among_the_instruction_sets(monkeypatch, listed, has):
    monkeypatch.setattr(Path, "read_text", lambda path: listed)
    assert has_bfloat16(torch.device("cpu")) is has


FAULTS = """
import resource
import torch
from pipeflow.device import choose_device

def faults(repeats):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        torch.zeros(9 * 2**20).add_(1)  # 36 MB, which glibc would map and unmap each time
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults(4)
choose_device("cpu")
faults(8)  # the heap finds its size
print(before, faults(4))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this option")
def test_on_the_cpu_freed_memory_is_used_again():
    result = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    before, after = map(int, result.stdout.split())
    assert after < before / 10, result.stderr
