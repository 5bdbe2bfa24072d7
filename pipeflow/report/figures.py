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

from pipeflow.report.colors import color_of, dash_of
from pipeflow.report.costs import band, bytes_by_phase, color_of_kind, in_order
from pipeflow.report.curves import AXES, Axis, Curve, alone, exit_curves, limits, limits_at_end, sent, spans, test_curve
from pipeflow.rundir.reading import SavedRun
from pipeflow.rundir.records import Summary
from pipeflow.units import bytes_text, traffic_text

_STYLE = {
    "text.parse_math": False,  # a name with two dollar signs is no formula
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


def plots(run: SavedRun, folder: Path, everything: bool = True) -> list[Path]:
    """Draws a run's bits/dim by epoch into a folder; with `everything` by seconds and bytes, and its bytes by phase."""
    with matplotlib.style.context(_STYLE):
        names = ("epoch", "seconds", "bytes") if everything else ("epoch",)
        figures = {f"bpd_by_{name}.png": _learning_curve(run, AXES[name]) for name in names}
        if everything:
            figures["bytes_by_phase.png"] = _bytes_by_phase(run.summary)
        return _save(figures, folder)


def comparison(runs: Mapping[str, SavedRun], folder: Path, axes: Sequence[str] | None = None) -> list[Path]:
    """Draws several runs, by name, into a folder: `compare_by_{epoch,seconds,macs,bytes}.png`, or some of these."""
    with matplotlib.style.context(_STYLE):
        names = list(AXES) if axes is None else axes
        return _save({f"compare_by_{name}.png": _compare(runs, AXES[name]) for name in names}, folder)


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
    for (label, color), group in groupby(spans(run, axis), key=lambda span: band(span[0])):
        stretch = list(group)
        begin, end = stretch[0][1] / scale, stretch[-1][2] / scale
        if end > begin:
            bands.setdefault(label, axes.axvspan(begin, end, color=color, alpha=0.16, linewidth=0))
    exits, test = exit_curves(run, axis), test_curve(run, axis)
    for part, curve in enumerate(exits):
        _plot(axes, curve, scale, color=color_of(part), linewidth=1, markersize=2.5, label=f"exit of part {part}")
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
            _plot(
                axes,
                curve,
                scale,
                linestyle=dash_of(index).replace("dotdash", "dashdot"),
                color=color_of(index),
                linewidth=1.5,
            )
        _set_limits(axes, axis, largest / scale, curves, max(run.summary.initial_bpd for run in runs.values()))
    bounds = limits(curves, max(run.summary.initial_bpd for run in runs.values()))
    close.set_ylim(*limits_at_end(curves, bounds))
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
    for kind in in_order(totals):
        bars = np.array([counts[kind] for counts in by_phase.values()]) / scale
        hatch = "///" if kind.startswith("gradients ") else None  # those of a link, which go back
        label = f"{kind}: {bytes_text(totals[kind])}"
        axes.bar(
            positions,
            bars,
            bottom=heights,
            width=0.6,
            color=color_of_kind(kind),
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
    axes.set_xticks(
        positions, [phase.replace(": ", "\n").replace("outside ", "outside\n") for phase in by_phase], fontsize=9
    )
    axes.set_xlim(-0.6, max(len(by_phase), 3) - 0.4)
    axes.set_ylim(0, 1.08 * max(heights, default=0) or 1)
    axes.set_ylabel(f"{sent([run])} ({unit})")
    axes.set_title(_title(run, f"{traffic_text(totals.total(), run.wire is not False)} between workers"))
    return figure


def _title(run: Summary, text: str) -> str:
    return textwrap.fill(f"{run.name}: {text}", width=55)


def _plot(axes: Axes, curve: Curve, scale: float, **style: Any) -> None:
    """Draws a curve; its points are marked while one can count them."""
    costs, bpd = curve
    axes.plot(np.divide(costs, scale), bpd, marker="o" if len(costs) <= 40 else None, **style)
    costs, bpd = alone(curve)
    axes.scatter(np.divide(costs, scale), bpd, s=14, color=style["color"])


def _set_limits(axes: Axes, axis: Axis, largest: float, curves: Sequence[Curve], initial: float) -> None:
    """Makes room for the curves."""
    axes.set_ylim(*limits(curves, initial))
    axes.set_xlim(-0.01 * (largest or 1), 1.01 * (largest or 1))
    if largest == 0:
        axes.set_xticks([0])
        if axis.name == "bytes":
            _say_nothing_was_sent(axes)
    elif axis.name == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _say_nothing_was_sent(axes: Axes) -> None:
    axes.annotate("nothing was sent", (0.5, 0.5), xycoords="axes fraction", ha="center", color="#555555")
