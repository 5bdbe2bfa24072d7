"""The process that started this one, remembered at the first import, before anything that takes long to import."""

import os

PROCESS = os.getppid()
_HERE = os.getpid()


def is_gone() -> bool:
    """Whether torchrun has ended without its workers, as when it was killed."""
    is_child = os.getpid() == _HERE  # not a process forked from this one since
    return is_child and "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != PROCESS
