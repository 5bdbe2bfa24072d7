"""`pipeflow report`: a table, a page, a picture, and the same for programs."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from pipeflow.errors import CheckpointError
from pipeflow.output import say
from pipeflow.report.density import density_of_run, is_of_the_plane
from pipeflow.report.export import as_csv, as_json
from pipeflow.report.figures import comparison, plots
from pipeflow.report.page import render
from pipeflow.report.runs import ReportedRun, find_runs, read_runs
from pipeflow.report.table import print_table

PAGE = "report.html"


def report(
    run_dirs: Sequence[str | Path] = (),
    out: str | Path | None = None,
    console: Console | None = None,
    png: bool = False,
    csv: str | None = None,
    json: str | None = None,
) -> list[Path]:
    """Prints a row for each run, writes the page and its picture, and returns the paths of both.

    Args:
        run_dirs: the folders of the runs; when not given, all below `runs/`, newest first.
        out: folder for what is written; when not given, the run's own, and for several runs the one that holds them.
        console: where to print the table; standard output when not given.
        png: whether to draw the other figures as PNG too.
        csv, json: files for programs; `-` is standard output, which then has nothing else.

    Raises CheckpointError where no folder is a run's, or the page cannot be written. Some that are none are skipped.
    """
    folders = [Path(run_dir) for run_dir in run_dirs] or find_runs()
    runs = read_runs(folders)
    # A file has no width to fit a table into.
    console = console or Console(width=None if sys.stdout.isatty() else 1000, stderr="-" in (csv, json))
    print_table({name: run.saved for name, run in runs.items()}, console)
    for option, file, text in (("--csv", csv, as_csv), ("--json", json, as_json)):
        if file is not None:
            _write(option, file, text(runs))
    try:
        paths = write_page(runs, _place(runs, out), png)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: {error.strerror}: the page needs a folder that can be written to, name one with --out."
        ) from None
    for path in paths:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    return paths


def write_page(runs: Mapping[str, ReportedRun], folder: Path, png: bool = False) -> list[Path]:
    """Writes the page and its picture into a folder, and with `png` the other figures; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(runs.values()))
    paths: list[Path] = []
    if len(runs) == 1:
        if is_of_the_plane(first.saved) and (density := density_of_run(first.folder)) is not None:
            density.savefig(first.folder / "density.png", dpi=150)
            paths.append(first.folder / "density.png")
        paths += plots(first.saved, folder, everything=png)
    else:
        paths += comparison({name: run.saved for name, run in runs.items()}, folder, None if png else ["epoch"])
    page = folder / PAGE
    partial = page.with_name(f"{PAGE}.partial")
    partial.write_text(render(runs), encoding="utf-8")
    partial.replace(page)
    return [page, *paths]


def update_page(run_dir: str | Path) -> None:
    """Writes the page of a run that has ended, unless it is there and not older than the run's summary.

    Raises CheckpointError where the disk does not take it.
    """
    page, summary = Path(run_dir, PAGE), Path(run_dir, "summary.json")
    try:
        if not page.exists() or page.stat().st_mtime < summary.stat().st_mtime:
            write_page(read_runs([Path(run_dir)]), Path(run_dir))
    except OSError as error:
        raise CheckpointError(
            f"run.dir: {run_dir}: the run has ended and is saved, but its page cannot be written ({error.strerror}). "
            f"Free some space, then write it with: pipeflow report {run_dir}"
        ) from None


def _place(runs: Mapping[str, ReportedRun], out: str | Path | None) -> Path:
    """The folder of the page. Raises CheckpointError where that would be the current one, and nobody has named it."""
    if out is not None:
        return Path(out)
    folders = [run.folder for run in runs.values()]
    if len(folders) == 1:
        return folders[0]
    common = Path(os.path.commonpath([os.path.abspath(folder.parent) for folder in folders]))
    if common == Path.cwd():
        raise CheckpointError(
            "the folder that holds these runs is the current one: name a folder for the page with --out."
        )
    return Path(os.path.relpath(common)) if common.is_relative_to(Path.cwd()) else common


def _write(option: str, file: str, text: str) -> None:
    """Raises CheckpointError where the file cannot be written."""
    if file == "-":
        sys.stdout.write(text)
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{option}: {file}: {error.strerror}: name a file in a folder that can be written to, or '-'."
        ) from None
    say(f"{file}: written")
