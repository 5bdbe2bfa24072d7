import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeflow.device import choose_device, has_bfloat16
from pipeflow.errors import ConfigError
from tests.small_runs import options, small_config


@pytest.mark.parametrize("name, has_gpu", [("cpu", True), ("cpu", False), ("auto", False)])
def test_the_cpu_where_it_is_asked_for_or_there_is_no_gpu(monkeypatch, name, has_gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    assert choose_device(name, local_rank=1) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"^run.device, or --device: cuda, but torch finds no GPU here: use auto or cpu"
    ):
        choose_device("cuda")
    with pytest.raises(ConfigError, match="^device: 'gpu': expected auto, cpu or cuda"):
        choose_device("gpu")


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
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    assert has_bfloat16(torch.device("cpu")) is has
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "avx512_core_amx")
    assert has_bfloat16(torch.device("cpu")) is has
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core")
    assert not has_bfloat16(torch.device("cpu"))


def test_emulated_bfloat16_is_said_once(launch, tmp_path):
    config = small_config(
        tmp_path / "run",
        run={"device": "cpu"},
        data={"num_train": 32, "num_test": 8},
        schedule={"local_epochs": 1, "finetune_epochs": 0},
        optim={"ema": 0},
        eval={"num_images": 8},
        precision={"coupling": "bfloat16"},
    )
    run = launch(2, *options(config), ONEDNN_MAX_CPU_ISA="AVX2")
    output, _ = run.communicate(60)
    assert run.returncode == 0 and output.count("precision.coupling: bfloat16 is many times slower") == 1


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
