"""What a file that is made to do harm must come to: one error that names it, within seconds and some megabytes."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeflow.errors import PipeflowError

SECONDS, MEGABYTES = 20, 700
"""More than any of these takes, on a slow machine; far less than what they ask for."""


def resident(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


@contextlib.contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Fails where the block computes for long or takes much memory; a busy machine makes neither worse."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present from here on
    before, began = resident("VmRSS"), time.process_time()
    yield
    assert time.process_time() - began < seconds
    assert resident("VmHWM") - before < MEGABYTES * 1e6


def refusal(kind: type[PipeflowError], function: Callable, *arguments) -> str:
    """The one short error of a call."""
    with bounded(), pytest.raises(kind) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1500 and message.isprintable()
    return message


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
