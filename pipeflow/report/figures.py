"""Figures of runs, as PNG: the curves of one run, the bytes that it sent, and several runs side by side."""

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeflow.errors import CheckpointError
from pipeflow.report.curves import AXES, Axis, Curve, exit_curves, sent, spans, test_curve
from pipeflow.report.density import density_of_run, is_of_the_plane
from pipeflow.rundir.reading import SavedRun, read_run
from pipeflow.rundir.records import Epoch, Summary
from pipeflow.units import bytes_text, traffic_text

PART_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
"""A colour for each part (or link, or run) that colour-blind readers tell apart; after the last comes the first again."""

_JOINT_COLOR, _WHOLE_COLOR, _GATHER_COLOR = "#777777", "#e0c000", "#222222"
_KIND_COLORS = {
    "gradients": "#aa3377",
    "evaluation": "#bbbbbb",
    "control": "#333333",
    "gather: parameters": "#806d00",
    "gather: optimizer": "#c8b400",
    "gather: ema": "#ece28a",
    "images handed out": "#88ccee",
    "initial latents": "#44bb99",
    "replicas' start": "#bbcc33",
    "labels": "#eedd88",
}
_STYLE = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "lines.markersize": 3.5,
    "savefig.dpi": 150,
}


def plots(run_dir: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draws a run's figures into its folder (or `out`): `bpd_by_{epoch,seconds,bytes}.png`, `bytes_by_phase.png`.

    `density.png` too, where the flow is one of points of the plane.
    """
    run = read_run(run_dir)
    with matplotlib.style.context(_STYLE):
        figures = {f"bpd_by_{name}.png": _learning_curve(run, AXES[name]) for name in ("epoch", "seconds", "bytes")}
        figures["bytes_by_phase.png"] = _bytes_by_phase(run.summary)
        if is_of_the_plane(run) and (density := density_of_run(Path(run_dir))) is not None:
            figures["density.png"] = density
        return _save(figures, Path(run_dir if out is None else out))


def update_plots(run_dir: str | Path) -> None:
    """Draws the figures of a run that has ended, unless they are there and not older than its summary.

    Raises CheckpointError where the disk does not take them.
    """
    figure, summary = Path(run_dir, "bytes_by_phase.png"), Path(run_dir, "summary.json")
    try:
        if not figure.exists() or figure.stat().st_mtime < summary.stat().st_mtime:
            plots(run_dir)
    except OSError as error:
        raise CheckpointError(
            f"run.dir: {run_dir}: the run has ended and is saved, but its figures cannot be written ({error.strerror}). "
            f"Free some space, then draw them with: pipeflow report {run_dir}"
        ) from None


def comparison(runs: Mapping[str, SavedRun], folder: Path) -> list[Path]:
    """Draws several runs, by name, into a folder: `compare_by_{epoch,seconds,macs,bytes}.png`."""
    with matplotlib.style.context(_STYLE):
        return _save({f"compare_by_{name}.png": _compare(runs, axis) for name, axis in AXES.items()}, folder)


def bytes_by_phase(run: Summary) -> dict[str, Counter[str]]:
    """Bytes by phase (as the bands of the figures name them) and by kind; only what is not zero."""
    result: dict[str, Counter[str]] = {}
    for record, _, _ in spans(run, AXES["epoch"]):
        counts = result.setdefault(_band(record)[0], Counter())
        if record is None:
            counts.update({f"gather: {kind}": count for kind, count in run.bytes.gather.items()})
            continue
        moved = record.bytes
        counts.update({f"latents {source} → {target}": count for source, target, count in moved.latents})
        counts.update({f"gradients {source} → {target}": count for source, target, count in moved.backward})
        counts.update({"gradients": moved.gradients, "evaluation": moved.eval, "control": moved.control})
        if record.is_local:
            counts["images handed out"] += moved.images
    whole = [record for record in run.epochs if not record.is_local]
    if whole:
        images = run.bytes.finetune - sum(record.bytes.gradients for record in whole)
        result[_band(whole[-1])[0]]["images handed out"] += images
    result["outside\nepochs"] = Counter(
        {
            "initial latents": run.bytes.initial,
            "evaluation": run.bytes.eval - sum(record.bytes.eval for record in run.epochs),
            "control": run.bytes.control - sum(record.bytes.control for record in run.epochs),
            "replicas' start": run.bytes.replicas.start,
            "labels": run.bytes.labels,
        }
    )
    return {phase: +counts for phase, counts in result.items() if phase not in ("gather", "outside\nepochs") or +counts}


def _save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return [folder / name for name in figures]


def _learning_curve(saved: SavedRun, axis: Axis) -> Figure:
    """Test and exit bits/dim of one run over a cost, over bands that tell what trained."""
    run = saved.summary
    figure = Figure(figsize=(7.6, 4.4))
    axes = figure.add_subplot()
    largest = spans(run, axis)[-1][2]
    scale, unit = axis.unit(largest)
    bands: dict[str, Artist] = {}
    for (label, color), group in groupby(spans(run, axis), key=lambda span: _band(span[0])):
        stretch = list(group)
        begin, end = stretch[0][1] / scale, stretch[-1][2] / scale
        if end > begin:
            bands.setdefault(label, axes.axvspan(begin, end, color=color, alpha=0.16, linewidth=0))
    exits, test = exit_curves(run, axis), test_curve(run, axis)
    for part, curve in enumerate(exits):
        _plot(axes, curve, scale, color=_color(part), linewidth=1, markersize=2.5, label=f"exit of part {part}")
    _plot(axes, test, scale, color="black", linewidth=1.8, label="whole flow")
    _set_limits(axes, axis, largest / scale, [test, *exits], run.initial_bpd)
    axes.set_xlabel(axis.label.format(unit=unit, sent=sent([run])))
    axes.set_ylabel(f"test {run.unit}")
    axes.set_title(_title(run, f"{run.test_bpd:.3f} {run.unit} {'at the end' if saved.ended else 'so far'}"))
    names = [str(line.get_label()) for line in axes.lines]
    figure.legend([*axes.lines, *bands.values()], [*names, *bands], loc="outside right upper")
    return figure


def _compare(runs: Mapping[str, SavedRun], axis: Axis) -> Figure:
    """Test bits/dim of several runs over one cost: the whole of it, and closer where the runs end."""
    units = {run.summary.unit for run in runs.values()}
    labels = [
        f"{name}: {run.summary.test_bpd:.3f}"
        + " given the label" * (len(units) > 1 and run.summary.given_label is not None)
        + ("" if run.ended else " so far")
        for name, run in runs.items()
    ]
    num_columns = max(1, min(4, len(runs), 110 // (max(map(len, labels)) + 6)))
    figure = Figure(figsize=(9, 4.4 + 0.2 * math.ceil(len(runs) / num_columns)))
    whole, close = figure.subplots(1, 2)
    curves = [test_curve(run.summary, axis) for run in runs.values()]
    largest = max(spans(run.summary, axis)[-1][2] for run in runs.values())
    scale, unit = axis.unit(largest)
    for axes in (whole, close):
        for index, curve in enumerate(curves):
            style = ("-", "--", ":", "-.")[index // len(PART_COLORS) % 4]
            _plot(axes, curve, scale, linestyle=style, color=_color(index), linewidth=1.5)
        _set_limits(axes, axis, largest / scale, curves, max(run.summary.initial_bpd for run in runs.values()))
    bottom, top = whole.get_ylim()
    last = [[bpd for bpd in curve if not math.isnan(bpd)][-1] for _, curve in curves]
    lowest = min(last)
    close_top = min(max(lowest + 0.15 * (top - lowest), max(last) + 0.02 * (top - lowest)), top)
    close.set_ylim(bottom if close_top == top else lowest - 0.1 * (close_top - lowest), close_top)
    unit_of_all = units.pop() if len(units) == 1 else "bits/dim"
    whole.set_ylabel(f"test {unit_of_all}")
    whole.set_title("from before training")
    close.set_title("closer, where the runs end")
    figure.supxlabel(axis.label.format(unit=unit, sent=sent(run.summary for run in runs.values())), fontsize=10)
    title = "run: test bits/dim at the end"
    figure.legend(whole.lines, labels, loc="outside upper center", ncols=num_columns, title=title)
    return figure


def _bytes_by_phase(run: Summary) -> Figure:
    """Bytes sent in each phase, as bars stacked by kind."""
    by_phase = bytes_by_phase(run)
    figure = Figure(figsize=(7.6 + 0.85 * max(0, len(by_phase) - 5), 4.4))
    axes = figure.add_subplot()
    totals: Counter[str] = sum(by_phase.values(), Counter())
    scale, unit = AXES["bytes"].unit(max((counts.total() for counts in by_phase.values()), default=0))
    positions, heights = range(len(by_phase)), np.zeros(len(by_phase))
    for kind in sorted(totals, key=lambda kind: (not kind.startswith("latents"), kind)):
        bars = np.array([counts[kind] for counts in by_phase.values()]) / scale
        color, hatch = _KIND_COLORS.get(kind), None
        if color is None:  # of a link: `latents 0 → 1`, or back: `gradients 1 → 0`
            direction, source, _, target = kind.split()
            color, hatch = _color(min(int(source), int(target))), "///" if direction == "gradients" else None
        label = f"{kind}: {bytes_text(totals[kind])}"
        axes.bar(
            positions,
            bars,
            bottom=heights,
            width=0.6,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=label,
        )
        heights += bars
    if totals:
        for place, counts in zip(zip(positions, heights), by_phase.values()):
            text = bytes_text(counts.total())
            axes.annotate(text, place, xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)
        figure.legend(loc="outside right upper", reverse=True)  # in the order of the stack
    else:
        axes.set_yticks([0])
        _say_nothing_was_sent(axes)
    axes.set_xticks(positions, [phase.replace(": ", "\n") for phase in by_phase], fontsize=9)
    axes.set_xlim(-0.6, max(len(by_phase), 3) - 0.4)
    axes.set_ylim(0, 1.08 * max(heights, default=0) or 1)
    axes.set_ylabel(f"{sent([run])} ({unit})")
    axes.set_title(_title(run, f"{traffic_text(totals.total(), run.wire is not False)} between workers"))
    return figure


def _band(record: Epoch | None) -> tuple[str, str]:
    """Names the parts that train in an epoch (None: the gather), and gives them a colour."""
    if record is None:
        return "gather", _GATHER_COLOR
    if not record.is_local:
        return "fine-tuning" if record.phase == "finetune" else "end to end", _WHOLE_COLOR
    first, last = record.trained[0], record.trained[-1]
    if first == last:
        return f"{record.phase}: part {first}", _color(first)
    is_run = len(record.trained) > 2 and record.trained == tuple(range(first, last + 1))
    parts = f"{first} to {last}" if is_run else ", ".join(map(str, record.trained))
    return f"{record.phase}: parts {parts}", _JOINT_COLOR


def _color(part: int) -> str:
    return PART_COLORS[part % len(PART_COLORS)]


def _title(run: Summary, text: str) -> str:
    return textwrap.fill(f"{run.name}: {text}", width=55)


def _plot(axes: Axes, curve: Curve, scale: float, **style: Any) -> None:
    """Draws a curve; its points are marked while one can count them."""
    costs, bpd = curve
    axes.plot(np.divide(costs, scale), bpd, marker="o" if len(costs) <= 40 else None, **style)


def _set_limits(axes: Axes, axis: Axis, largest: float, curves: Sequence[Curve], initial: float) -> None:
    """Makes room for the curves. A diverging one leaves the picture a quarter above the initial value."""
    values = [bpd for _, curve in curves for bpd in curve if not math.isnan(bpd)]
    top, bottom = min(max(values), initial + 0.25 * max(abs(initial), 1)), min(values)
    margin = 0.04 * (top - bottom) or 0.1
    axes.set_ylim(bottom - margin, top + margin)
    axes.set_xlim(-0.01 * (largest or 1), 1.01 * (largest or 1))
    if largest == 0:
        axes.set_xticks([0])
        if axis.name == "bytes":
            _say_nothing_was_sent(axes)
    elif axis.name == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _say_nothing_was_sent(axes: Axes) -> None:
    axes.annotate("nothing was sent", (0.5, 0.5), xycoords="axes fraction", ha="center", color="#555555")
