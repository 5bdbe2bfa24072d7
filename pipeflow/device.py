"""Which device a process computes on."""

import ctypes
import resource
import sys

import torch

from pipeflow.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Names of glibc's options in malloc.h."""


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device for `run.device` or `--device`; a GPU becomes torch's current one.

    Args:
        name: auto (a GPU where there is one), cpu or cuda.
        local_rank: of this worker among those of its machine, which share the GPUs in turn.

    Raises:
        ConfigError: cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device: cuda, but torch finds no GPU here: use auto or cpu, or check the driver.")
    if name == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    # TF32 keeps 10 bits of mantissa: the log-determinant would be that of another W than the one applied. float32 must
    # mean float32.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return device


def keep_freed_memory() -> None:
    """Has the C library use freed memory again instead of giving it back to the system and asking for it anew.

    Each step frees and allocates the same large tensors. Given back, their pages are zeroed by the system at every step:
    half of the time, with batches of hundreds of images. Does nothing where the library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: of tensors on a GPU, on the CPU of everything, torch itself included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
