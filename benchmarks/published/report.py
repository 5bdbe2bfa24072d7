"""results.md and the figures, from what results.json and curves.json hold."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from benchmarks.machine import in_words
from benchmarks.published.results import (
    difference,
    equal_of,
    on_gpu,
    ratio,
    rival_of,
    run_of_curve,
    time_of,
    verdicts,
)
from benchmarks.published.rows import CHOSEN, ROWS, SIZES, Line, Settings
from pipeflow.report.figures import comparison

HEADINGS = (
    "row", "what", "parts", "schedule", "lr", "epochs", "bits/dim", "- end to end", "- equal multiply-adds",
    "multiply-adds", "minutes", "time ratio", "MB forward by links", "published bits/dim", "published time ratio",
)  # fmt: skip

FIGURES = ("epoch", "macs")
"""Axes of the comparisons."""


def command(settings: Settings) -> str:
    """The call that makes the table."""
    words = ["python", "-m", "benchmarks.published.run", "--size", settings.size]
    words += ["--scale", f"{settings.scale:g}"] if settings.scale != 1 else []
    words += [word for name, value in settings.overrides.items() for word in ("--set", f"{name}={value}")]
    return shlex.join([*words, "--data", "cifar10.zip"])


def write_report(
    lines: Sequence[Line],
    measured: Mapping[str, dict],
    curves: Mapping[str, dict],
    equal: Mapping[str, int],
    settings: Settings,
    folder: Path,
) -> None:
    """results.md, and for each row end to end that has begun a folder with its figures, into `folder`."""
    (folder / "results.md").write_text(table(lines, measured, equal, settings))
    trained = {name: curves[name] for name in ROWS if curves.get(name, {}).get("epochs")}
    for whole in _rows_end_to_end(trained):
        family = {name: run_of_curve(curve) for name, curve in trained.items() if whole in (name, ROWS[name].rival)}
        comparison(family, folder / whole, FIGURES)


def _rows_end_to_end(trained: Collection[str]) -> list[str]:
    """Those of which, or of a row that is compared with them, something has been trained."""
    return list(dict.fromkeys(row.rival or row.name for row in ROWS.values() if row.name in trained))


def table(lines: Sequence[Line], measured: Mapping[str, dict], equal: Mapping[str, int], settings: Settings) -> str:
    """results.md."""
    total = settings.num_epochs
    answers = verdicts(measured, equal, total)
    text = [*_head(measured, settings), "", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    text += [_line(line, measured, equal, settings) for line in lines]
    text += ["", *_notes(measured)]
    text += ["", f"Reproduced (size {settings.size}, scale {settings.scale:g}):", ""]
    text += [f"- {verdict}" for verdict in answers["reproduced"]]
    text += ["", "Beats end to end of equal multiply-adds:", ""]
    text += [f"- {verdict}" for verdict in answers["beats"]]
    for whole in _rows_end_to_end([name for name, line in measured.items() if line["num_epochs"]]):
        text += ["", f"{whole} and the rows compared with it, test bits/dim by epoch and by multiply-adds:", ""]
        text += [f"![{whole}, compare_by_{axis}]({whole}/compare_by_{axis}.png)" for axis in FIGURES]
    return "\n".join(text) + "\n"


def _head(measured: Mapping[str, dict], settings: Settings) -> list[str]:
    machines = dict.fromkeys(
        f"{in_words(line['machine'])}, {line['threads']} thread{'s' * (line['threads'] > 1)}"
        for line in measured.values()
    )
    chosen = ", ".join(f"{name} {value}" for name, value in CHOSEN.items() if name not in settings.overrides)
    set_for_all = ", ".join(f"{name} {value}" for name, value in settings.overrides.items()) or "nothing"
    return [
        "# The published rows",
        "",
        f"`{command(settings)}`, on {'; '.join(machines) or 'no machine yet'}. One process holds all parts.",
        "",
        f"Size: {SIZES[settings.size].title}. {settings.num_epochs} epochs, scale {settings.scale:g} of the published 60 "
        f"local and 30 end-to-end ones. Chosen for all rows (choose.md): "
        f"{chosen}. Set for all rows besides: {set_for_all}.",
    ]


def _notes(measured: Mapping[str, dict]) -> list[str]:
    gpu = any(on_gpu(line) for line in measured.values())
    cpu = any(not on_gpu(line) for line in measured.values())
    notes = [
        "Bits/dim are of all 10,000 test images; those with a ~ are of a row that has not ended, on the images of its "
        "curve, and are not compared. Rows with an @ are the run end to end of that name, stopped there. Ratios are to "
        "the row end to end of the same learning rate. MB = 1e6 bytes of training's latents, counted by the links as if "
        "each part had a worker.",
    ]
    if gpu:
        notes.append("Minutes on a GPU are of training with the gather, by the clock, without evaluation.")
    if cpu:
        notes.append("Minutes on the CPU are of its cores, in training, without evaluation.")
    if any(on_gpu(line) and line["jobs"] > 1 for line in measured.values()):
        notes.append("Minutes with a * are of a row that shared its GPU with others for a time.")
    stopped = [f"{name}: {line['error']}" for name, line in measured.items() if line.get("error")]
    return [" ".join(notes), *(text for reason in stopped for text in ("", f"Stopped by itself: {reason}"))]


def _line(line: Line, measured: Mapping[str, dict], equal: Mapping[str, int], settings: Settings) -> str:
    row, total = line.row, settings.num_epochs
    published = [_number(None if line.is_control else row.bits_per_dim, ".2f"), "-"]
    if row.minutes and row.rival:
        published[1] = f"{row.minutes / ROWS[row.rival].minutes:.2f}"
    about = [line.name, line.title, str(row.num_parts) if row.rival else "-", _schedule(line, settings)]
    about.append(f"{settings.lr(row):g}")
    numbers = measured.get(line.name)
    if numbers is None:
        return _cells([*about, "-", "not measured", *["-"] * 6, *published])
    rival = rival_of(row, measured)
    beside = on_gpu(numbers) and numbers["jobs"] > 1
    return _cells([
        *about,
        str(line.epochs) if numbers["ended"] else f"{numbers['num_epochs']} of {line.epochs}",
        ("" if numbers["ended"] else "~") + f"{numbers['test_bpd']:.3f}",
        _number(difference(numbers, rival) if line.name != row.name or row.rival else None, "+.3f"),
        _number(difference(numbers, equal_of(row, measured, equal, total)), "+.3f"),
        _number(ratio(numbers, rival, "macs"), ".2f"),
        f"{time_of(numbers) / 60:.1f}{'*' * beside}",
        _number(ratio(numbers, rival, "time"), ".2f"),
        ", ".join(f"{count / 1e6:,.0f}" for count in numbers["forward"]) if row.rival else "-",
        *published,
    ])  # fmt: skip


def _schedule(line: Line, settings: Settings) -> str:
    local, whole = settings.epochs(line.row)
    return f"{local} {line.row.mode} + {whole} end to end" if line.row.rival else f"{line.epochs} end to end"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
