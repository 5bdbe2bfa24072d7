"""Are the published results reproduced, and do they beat end to end at equal multiply-adds?

    python -m benchmarks.published.run --data cifar10.zip                          # all rows at full size: days on one GPU
    python -m benchmarks.published.run --data cifar10.zip --minutes 9              # a slice of it; the same again goes on
    python -m benchmarks.published.run --data cifar10.zip --size small --jobs 2    # a first look without a GPU
    python -m benchmarks.published.run --data cifar10.zip --choose                 # what the source leaves open

Runs go to RUNS and resume; writes results.md, results.json, curves.json and the figures beside this file, of the small
size and of other scales into folders beside it. Ends with 0 also where the minutes were too few, and says what is left.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.published.choose import choose
from benchmarks.published.report import write_report
from benchmarks.published.results import SettingsDiffer, check_settings, measure, merge
from benchmarks.published.rows import ROWS, SIZES, Line, Row, Settings, equal_epochs, launch_arguments, table_lines
from benchmarks.published.slices import Leg, Slice
from pipeflow.errors import PipeflowError
from pipeflow.rundir.typed_json import dumps

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a slice, or all that is missing, and writes the results; the exit code."""
    began = time.monotonic()
    options = _arguments(arguments)
    terminated = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: terminated.set())

    def is_over() -> bool:
        late = options.minutes is not None and time.monotonic() - began > 60 * options.minutes
        return late or terminated.is_set()

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    num_threads = int(os.environ.get("OMP_NUM_THREADS", max(1, cores // options.jobs)))
    part = Slice(jobs=options.jobs, num_threads=num_threads, is_over=is_over)
    try:
        errors = _choose(options, part) if options.choose else _rows(options, part)
    except (PipeflowError, SettingsDiffer) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 1 if errors else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a zip or folder of images as train/ and test/; else CIFAR-10 is fetched")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--scale", type=float, default=1.0, help="shortens all rows and phases: 0.2 is 12 + 6 epochs")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS], help="which to train, in this order")
    parser.add_argument("--minutes", type=float, help="after which this call ends, to be called again")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, each with its share of the cores")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="inside the coupling nets, of all rows")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="for all rows")
    parser.add_argument("--choose", action="store_true", help="instead of the rows, try what the source leaves open")
    parser.add_argument("--runs", type=Path, help="where the run folders go")
    parser.add_argument("--out", type=Path, help="where the results go")
    options = parser.parse_args(arguments)
    for text in options.set:
        if "=" not in text:
            parser.error(f"--set {text}: write --set section.option=value.")
    if options.scale <= 0 or options.jobs < 1:
        parser.error("--scale and --jobs must be above 0.")
    options.overrides = dict(text.split("=", 1) for text in options.set)
    if options.precision is not None:
        options.overrides["precision.coupling"] = options.precision
    return options


def _rows(options: argparse.Namespace, part: Slice) -> dict[str, str]:
    settings = Settings(size=options.size, scale=options.scale, overrides=options.overrides)
    runs = options.runs or Path("runs/published") / settings.name
    out = options.out or (HERE if settings.name == "full" else HERE / settings.name)
    equal = equal_epochs(settings)
    check_settings(runs / "settings.json", settings)
    check_settings(out / "results.json", settings)
    lines = table_lines(settings, equal)
    legs = {name: _legs(ROWS[name], lines, settings, options.data, runs) for name in options.rows}
    errors = part.run(legs)

    before, curves = json.loads((out / "results.json").read_text()).get("lines", {}), {}
    if (out / "curves.json").is_file():
        curves = json.loads((out / "curves.json").read_text())
    measured, curves_now = measure(lines, settings, runs)
    for name, reason in errors.items():
        if name in measured:
            measured[name]["error"] = reason.replace(str(runs), "RUNS")
    measured, curves = merge(before, measured), merge(curves, curves_now)
    document = {"settings": settings.to_json(), "equal_epochs": equal, "lines": measured}
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    rows = ",\n".join(f"{json.dumps(name)}: {dumps(curve)}" for name, curve in curves.items())
    (out / "curves.json").write_text(f"{{\n{rows}\n}}\n")  # a line a row
    write_report(lines, measured, curves, equal, settings, out)
    _say_what_is_left(legs, measured, out)
    return errors


def _legs(row: Row, lines: list[Line], settings: Settings, data: str | None, runs: Path) -> list[Leg]:
    """A row's stretches: one, or end to end one up to each stop."""
    return [
        Leg(
            row=row.name,
            epochs=epochs,
            runs=runs,
            arguments=launch_arguments(row, data, settings.options(row, epochs)),
        )
        for epochs in sorted(line.epochs for line in lines if line.row == row)
    ]


def _choose(options: argparse.Namespace, part: Slice) -> dict[str, str]:
    runs = options.runs or Path("runs/published/choose")
    base = Settings(size="small", overrides=options.overrides)
    out = options.out or HERE
    check_settings(runs / "settings.json", base)
    return choose(part, options.overrides, options.data, runs, out)


def _say_what_is_left(legs: Mapping[str, list[Leg]], measured: Mapping[str, dict], out: Path) -> None:
    left = [
        f"{name} ({measured[name]['num_epochs'] if name in measured else 0} of {stretch[-1].epochs} epochs)"
        for name, stretch in legs.items()
        if not stretch[-1].kept.exists()
    ]
    print(f"wrote {out / 'results.md'}", flush=True)
    print(f"left: {', '.join(left) or 'nothing'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
