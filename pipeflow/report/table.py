"""A table to compare runs by, on the console; its cells and its notes are the page's too."""

from collections.abc import Mapping
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeflow.report.curves import AXES, spans
from pipeflow.rundir.reading import SavedRun
from pipeflow.rundir.records import Summary
from pipeflow.units import duration_text, macs_text, megabytes_text


def phases(run: Summary) -> str:
    """A run's phases in words: `12 concurrent + 6 finetune`."""
    groups = groupby(record.phase for record in run.epochs)
    return " + ".join(f"{len(list(group))} {phase}" for phase, group in groups) or "none yet"


def row(name: str, saved: SavedRun) -> dict[str, str]:
    """A run's cells, by their headings."""
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


def notes(runs: Mapping[str, SavedRun]) -> list[str]:
    """What is to be known of the cells, in sentences."""
    said = []
    if not all(run.ended for run in runs.values()):
        said.append("* has not ended: the last evaluated epoch")
    alone = [name for name, run in runs.items() if run.summary.wire is False]
    if alone:
        which = f" of {', '.join(alone)}" if len(alone) < len(runs) else ""
        said.append(f"MB{which}: would travel between workers, but all parts were in one process")
    for name, run in runs.items():
        values = run.summary.values
        if values is not None and values.dtype == "float32":
            nats = values.values().nats(run.summary.test_bpd)
            said.append(f"bits/dim of {name}: of a density of floats; test {nats:.3f} nats an item")
        elif values is not None:
            said.append(f"bits/dim of {name}: a bound, of images without their padding")
    given = [name for name, run in runs.items() if run.summary.given_label is not None]
    if given:
        which = f" of {', '.join(given)}" if len(given) < len(runs) else ""
        said.append(f"bits/dim{which}: given the label, but for exits of parts before the first that takes labels")
    return [*said, "MB all: evaluations, samples, initial latents, control and gradients too"]


def print_table(runs: Mapping[str, SavedRun], console: Console) -> None:
    """Prints a row for each run or, where the console is too narrow, a block; then the notes."""
    rows = [row(name, run) for name, run in runs.items()]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for heading in rows[0]:
        words = heading in ("run", "phases")
        table.add_column(heading, justify="left" if words else "right", vertical="bottom", no_wrap=True)
    for cells in rows:
        table.add_row(*map(Text, cells.values()))
    if console.measure(table, options=console.options.update_width(10_000)).maximum <= console.width:
        console.print(table)
    else:
        for cells in rows:
            block = Table.grid(padding=(0, 2))
            for heading, value in cells.items():
                block.add_row(heading.replace("\n", " "), Text(value, overflow="fold"))
            console.print(block, "")
    for note in notes(runs):
        console.print(note, highlight=False, markup=False)
