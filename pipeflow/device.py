"""The device that a process computes on, and how it computes there."""

import ctypes
import os
import resource
import sys
from pathlib import Path

import torch

from pipeflow.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Options of glibc's `mallopt`, from malloc.h."""

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Instruction sets that multiply bfloat16 numbers, as Linux names them: two of x86, one of Arm."""


_MAX_ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_ISA_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Variables of the environment that bound the instruction sets oneDNN uses, and values that leave out those of bfloat16."""


def check_device(name: str) -> None:
    """Raises ConfigError where there is no device of this name: auto, cpu or cuda."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: {name!r}: expected auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "run.device, or --device: cuda, but torch finds no GPU here: use auto or cpu, or check the driver."
        )


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device for `run.device` or `--device`, which is made ready; a GPU becomes torch's current one.

    Args:
        name: auto (a GPU if there is one), cpu or cuda.
        local_rank: rank of this worker among those of its machine, which share the GPUs in turn.

    Raises:
        ConfigError: there is no device of this name.
    """
    check_device(name)
    if name == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    # TF32 keeps only 10 bits of mantissa, so the W applied would not be the W of the log-determinant.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16 numbers.

    Without them torch emulates bfloat16, which is many times slower than float32. False for a processor whose instruction
    sets the system does not list, or whose use the environment forbids.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if any(os.environ.get(name, "").upper() in _ISA_WITHOUT_BFLOAT16 for name in _MAX_ISA):
        return False
    return not instruction_sets().isdisjoint(_BFLOAT16)


def instruction_sets() -> frozenset[str]:
    """Instruction sets that /proc/cpuinfo lists (`avx2`, `avx512_bf16`, ...); empty if there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(listed, "").split())


def keep_freed_memory() -> None:
    """Makes the C library reuse freed memory instead of returning it to the system. Does nothing if it is not glibc.

    Each step frees and allocates the same large tensors. The system would zero returned pages again at every step, which
    takes half of the time with batches of hundreds of images.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far: those of tensors on a GPU, all of the process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
