"""Measures what is not measured on a GPU yet, in slices: the same command again goes on where the last one ended.

    python -m benchmarks.gpu --minutes 9 [--data cifar10.zip]     # on a machine with a GPU; torch and no network suffice
    python -m benchmarks.gpu --dry                                # all of it on the CPU, at toy size, within two minutes

First each check of checks.py (those that tests mark `gpu`), then benchmarks.step at the published size, then the published
rows, as many epochs as there is time for. A slice that fails leaves its traceback, and the next one goes on. Results go
to each benchmark's own folder, or with --out to folders of these names in it; summary.md, in `gpu/`, says what was done,
what failed and what is left.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.plan import BENCHMARKS, Settings, make_slices
from benchmarks.gpu.report import write_summary
from benchmarks.gpu.slices import State, run
from benchmarks.machine import command_line

_DRY_MINUTES = 5.0
_ENDING_S = 15.0
"""Seconds of the minutes that are kept for ending a slice and writing the summary."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is left, as far as the minutes go; 1 where a slice has failed."""
    began = time.monotonic()
    options = _parse(arguments)
    if not options.dry and not torch.cuda.is_available():
        print("error: torch finds no GPU here: `--dry` tries everything on the CPU.", file=sys.stderr)
        return 1
    out = options.out or (Path("runs/gpu-dry") if options.dry else None)
    settings = Settings(
        dry=options.dry, out=out, runs=options.runs or (out or Path("runs/gpu")) / "runs", data=options.data
    )
    state = State(settings.folder("gpu"))
    slices = make_slices(settings)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    end = began + 60 * options.minutes - min(_ENDING_S, 60 * options.minutes / 4)
    run(slices, state, end, over.is_set)
    text = write_summary(slices, state, command_line("benchmarks.gpu", arguments))
    print(text)
    return 1 if any(state.of(each.name).error for each in slices) else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="after which this call ends, 9 by default")
    parser.add_argument("--dry", action="store_true", help="on the CPU, at toy size")
    parser.add_argument("--data", help="CIFAR-10 as a zip or folder of images, for the published rows")
    parser.add_argument("--out", type=Path, help=f"for the results, instead of the folders in {BENCHMARKS.name}/")
    parser.add_argument("--runs", type=Path, help="for run folders, which are large; runs/gpu by default")
    options = parser.parse_args(arguments)
    options.minutes = options.minutes or (_DRY_MINUTES if options.dry else 9.0)
    return options


if __name__ == "__main__":
    sys.exit(main())
