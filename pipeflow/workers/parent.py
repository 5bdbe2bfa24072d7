"""The process that started this one, as long as it is there. Imported first, before anything that takes long to import."""

import os

PROCESS = os.getppid()
_HERE = os.getpid()


def is_gone() -> bool:
    """Whether torchrun has ended without its workers: a process that was killed takes nobody with it."""
    is_child = os.getpid() == _HERE  # and not one that was forked since
    return is_child and "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != PROCESS
