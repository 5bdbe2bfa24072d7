"""A benchmark for tests of what runs benchmarks: it does what its first argument says."""

import time
from pathlib import Path

MACHINE = {"cpu": "some CPU", "cores": "2", "gpu": "none", "python": "3", "torch": "2", "pipeflow": "0"}


def main(arguments: list[str]) -> int:
    """raise, sleep, exit CODE, or epoch FILE MINUTES: one more of two epochs."""
    what, *rest = arguments
    if what == "raise":
        raise ValueError("as it should")
    if what == "sleep":
        time.sleep(600)
    if what == "epoch":
        file = Path(rest[0])
        epochs = len(file.read_text()) if file.exists() else 0
        file.write_text("x" * (epochs + 1))
        print("left: nothing" if epochs else "left: one epoch", "of", rest[1], "minutes")
    return int(rest[0]) if what == "exit" else 0
