"""Standard output and standard error, which may break, and the last words of a process that ends.

A pipe whose reader has gone, a full disk under a log, a terminal that was closed: none of them ends a training.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


def say(text: str) -> None:
    """Prints to standard error, if that is there."""
    with contextlib.suppress(OSError, ValueError):  # whoever read it may be gone
        # Not through a live display, which would break the line at the terminal's width.
        stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        if stderr is not None:
            print(text, file=stderr, flush=True)


cleanups: list[Callable[[], None]] = []
"""Called by `end_with`, for what would otherwise be left behind on the disk."""


def end_with(code: int, message: str = "", quiet: bool = False) -> NoReturn:
    """Says the message, if any, and ends the process now, from any thread. quiet: tells it to the launcher only."""
    try:
        if hasattr(sys.stdout, "rich_proxied_file"):  # a live display, which nobody closes any more, hides the cursor
            os.write(1, b"\x1b[?25h\n")
        if message:
            tell_launcher(message)
        if message and not quiet:
            say(message)
        for clean in [*cleanups]:
            with contextlib.suppress(OSError):
                clean()
    finally:
        os._exit(code)


def tell_launcher(message: str) -> None:
    """Leaves the message where torchrun looks for the cause of a worker's failure; it shows the earliest one.

    The file is that of torch.distributed.elastic.multiprocessing.errors.ErrorHandler, which cannot write it: torch is
    not imported before the options are checked, and `os._exit` passes it by.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        told = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError), open(path, "x") as file:  # the first word is the cause
            json.dump({"message": told}, file)


def open_standard_descriptors() -> None:
    """Opens those that were closed (`>&-`), so that no file of the run gets their numbers, and what is printed there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


@contextlib.contextmanager
def stdout_may_break(broken: Callable[[OSError], None]) -> Iterator[None]:
    """Standard output that cannot be written to is given up inside the block, once `broken` was called with the error."""
    if sys.stdout is None:
        yield
        return
    guarded = _Guarded(sys.stdout, broken)
    with contextlib.redirect_stdout(guarded):
        try:
            yield
        finally:
            guarded.flush()


class _Guarded:
    """A text stream that raises no OSError. After the first one what is written goes nowhere."""

    def __init__(self, stream: Any, broken: Callable[[OSError], None]):
        self._stream = stream
        self._broken = broken
        self._is_broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        self._try(lambda: self._stream.writelines(lines))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, operation: Callable[[], object]) -> None:
        if self._is_broken:
            return
        try:
            operation()
        except OSError as error:
            self._is_broken = True
            # The rest of the buffer would break it again at the interpreter's exit.
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            self._broken(error)
