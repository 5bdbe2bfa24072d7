"""A table to compare runs by, and their figures: `pipeflow report`."""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeflow.errors import CheckpointError
from pipeflow.output import say
from pipeflow.report.curves import AXES, spans
from pipeflow.report.figures import comparison, plots
from pipeflow.rundir.reading import SavedRun, read_run
from pipeflow.rundir.records import Summary
from pipeflow.units import duration_text, macs_text, megabytes_text


def phases(run: Summary) -> str:
    """A run's phases in words: `12 concurrent + 6 finetune`."""
    groups = groupby(record.phase for record in run.epochs)
    return " + ".join(f"{len(list(group))} {phase}" for phase, group in groups) or "none yet"


def _row(name: str, saved: SavedRun) -> dict[str, str]:
    run, sent = saved.summary, saved.summary.bytes
    return {
        "run": name,
        "phases": phases(run),
        "test\nbits/dim": f"{run.test_bpd:.3f}" + ("" if saved.ended else "*"),
        "exit bits/dim\nof the parts": " ".join(f"{bpd:.3f}" for bpd in run.exit_bpd or ()) or "-",
        "training\ntime": duration_text(spans(run, AXES["seconds"])[-1][2]),
        "training\nmultiply-adds": macs_text(run.train_macs),
        "MB\nforward": megabytes_text(sum(sent.forward)),
        "MB\nbackward": megabytes_text(sum(sent.backward)),
        "MB\ngather": megabytes_text(sum(sent.gather.values())),
        "MB\nall": megabytes_text(sent.total),
    }


def _print_table(rows: list[dict[str, str]], console: Console) -> None:
    """Prints a row for each run or, where the console is too narrow, a block."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for heading in rows[0]:
        words = heading in ("run", "phases")
        table.add_column(heading, justify="left" if words else "right", vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row.values()))
    if console.measure(table, options=console.options.update_width(10_000)).maximum <= console.width:
        console.print(table)
        return
    for row in rows:
        block = Table.grid(padding=(0, 2))
        for heading, value in row.items():
            block.add_row(heading.replace("\n", " "), Text(value, overflow="fold"))
        console.print(block, "")


def report(run_dirs: Sequence[str | Path], out: str | Path | None = None, console: Console | None = None) -> list[Path]:
    """Prints a row for each run, draws the figures, and returns the figures' paths.

    Args:
        run_dirs: the folders of the runs.
        out: folder for the figures; when not given, the run's own for one run and the current one for several.
        console: where to print the table; standard output when not given.

    Raises CheckpointError where no folder is a run's, or the figures cannot be written. Some that are none are skipped.
    """
    read = _read([Path(run_dir) for run_dir in run_dirs])
    names = [run.summary.name for run in read.values()]
    if len(set(names)) < len(names):  # folders of the same name in different places
        names = [str(run_dir) for run_dir in read]
    runs = dict(zip(names, read.values()))
    console = console or Console(width=None if sys.stdout.isatty() else 1000)  # a file has no width to fit a table into
    _print_table([_row(name, run) for name, run in runs.items()], console)
    if not all(run.ended for run in runs.values()):
        console.print("* has not ended: the last evaluated epoch")
    alone = [name for name, run in runs.items() if run.summary.wire is False]
    if alone:
        which = f" of {', '.join(alone)}" if len(alone) < len(runs) else ""
        console.print(f"MB{which}: would travel between workers, but all parts were in one process", highlight=False)
    for name, run in runs.items():
        values = run.summary.values
        if values is not None and values.dtype == "float32":
            nats = values.values().nats(run.summary.test_bpd)
            console.print(f"bits/dim of {name}: of a density of floats; test {nats:.3f} nats an item", highlight=False)
        elif values is not None:
            console.print(f"bits/dim of {name}: a bound, of images without their padding", highlight=False)
    given = [name for name, run in runs.items() if run.summary.given_label is not None]
    if given:
        which = f" of {', '.join(given)}" if len(given) < len(runs) else ""
        console.print(
            f"bits/dim{which}: given the label, but for exits of parts before the first that takes labels",
            highlight=False,
        )
    console.print("MB all: evaluations, initial latents, control and gradients too", highlight=False)
    try:
        if len(runs) == 1:
            paths = plots(next(iter(read)), out)
        else:
            paths = comparison(runs, Path(out) if out is not None else Path())
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: {error.strerror}: the figures need a folder that can be written to, name one with --out."
        ) from None
    for path in paths:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    return paths


def _read(run_dirs: Sequence[Path]) -> dict[Path, SavedRun]:
    """The runs that can be read; the others are named on standard error. Raises CheckpointError where none can."""
    read = {}
    for run_dir in run_dirs:
        try:
            read[run_dir] = read_run(run_dir)
        except CheckpointError as error:
            if len(run_dirs) == 1:
                raise
            say(f"skipped: {error}")
    if not read:
        raise CheckpointError(f"none of the {len(run_dirs)} folders has a run that can be read.")
    return read
