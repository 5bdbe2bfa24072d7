"""Figures of runs, as PNG: what a run learned at which cost, what it sent when, and several runs side by side."""

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeflow.report.curves import AXES, Axis, exit_curves, spans, test_curve
from pipeflow.rundir.reading import SavedRun, read_run
from pipeflow.rundir.records import Epoch, Summary
from pipeflow.units import bytes_text

PART_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
"""One colour a part (or link, or run), told apart by colour-blind readers too; after the last comes the first again."""

JOINT_COLOR, WHOLE_COLOR, GATHER_COLOR = "#777777", "#e0c000", "#222222"


def plots(run_dir: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draw a run's figures into its folder (or `out`): `bpd_by_{epoch,seconds,bytes}.png`, `bytes_by_phase.png`."""
    run = read_run(run_dir)
    folder = Path(run_dir if out is None else out)
    figures = {f"bpd_by_{name}.png": _learning_curve(run, AXES[name]) for name in ("epoch", "seconds", "bytes")}
    figures["bytes_by_phase.png"] = _bytes_by_phase(run.summary)
    return _save(figures, folder)


def comparison(runs: Mapping[str, SavedRun], folder: Path) -> list[Path]:
    """Draw several runs, by name, into a folder: `compare_by_{epoch,seconds,macs,bytes}.png`."""
    return _save({f"compare_by_{name}.png": _compare(runs, axis) for name, axis in AXES.items()}, folder)


def _save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)
    return [folder / name for name in figures]


def _part_color(part: int) -> str:
    return PART_COLORS[part % len(PART_COLORS)]


def _band(record: Epoch | None) -> tuple[str, str]:
    """What trains in an epoch (None: the gather), in words and as a colour."""
    if record is None:
        return "gather", GATHER_COLOR
    if not record.is_local:
        return {"finetune": "fine-tuning", "end_to_end": "end to end"}[record.phase], WHOLE_COLOR
    trained = record.trained
    if len(trained) == 1:
        return f"{record.phase}: part {trained[0]}", _part_color(trained[0])
    run_of_parts = len(trained) > 2 and trained == tuple(range(trained[0], trained[-1] + 1))
    parts = f"{trained[0]} to {trained[-1]}" if run_of_parts else ", ".join(map(str, trained))
    return f"{record.phase}: parts {parts}", JOINT_COLOR


def _bands(run: Summary, axis: Axis) -> Iterator[tuple[str, str, float, float]]:
    """Stretches of the same training on an axis: label, colour, begin and end."""
    for (label, color), group in groupby(spans(run, axis), key=lambda span: _band(span[0])):
        stretch = list(group)
        yield label, color, stretch[0][1], stretch[-1][2]


def _title(run: Summary, text: str) -> str:
    return textwrap.fill(f"{run.name}: {text}", width=55)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _set_limits(axes: Axes, axis: Axis, largest: float, curves: list[list[float]], initial: float) -> None:
    """Room for the curves, but not for a diverging one: beyond 1.25 times the initial value it leaves the picture."""
    values = [value for curve in curves for value in curve if not math.isnan(value)]
    top, bottom = min(max(values), 1.25 * initial), min(values)
    margin = 0.04 * (top - bottom) or 0.1
    axes.set_ylim(bottom - margin, top + margin)
    axes.set_xlim(-0.01 * (largest or 1), 1.01 * (largest or 1))
    if largest == 0:
        axes.set_xticks([0])
        if axis.name == "bytes":
            axes.annotate("nothing was sent", (0.5, 0.5), xycoords="axes fraction", ha="center", color="#555555")
    elif axis.name == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _marker(num_points: int) -> dict[str, Any]:
    """Points are marked while one can count them."""
    return {"marker": "o", "markersize": 3.5} if num_points <= 40 else {}


def _learning_curve(saved: SavedRun, axis: Axis) -> Figure:
    run = saved.summary
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    largest = spans(run, axis)[-1][2]
    scale, unit = axis.unit(largest)
    labels = set()
    for label, color, begin, end in _bands(run, axis):
        if end > begin:
            axes.axvspan(
                begin / scale,
                end / scale,
                color=color,
                alpha=0.16,
                linewidth=0,
                label="_" if label in labels else label,
            )
            labels.add(label)
    exits = exit_curves(run, axis)
    for part, (x, bpd) in enumerate(exits):
        axes.plot(
            np.divide(x, scale),
            bpd,
            color=_part_color(part),
            linewidth=1,
            label=f"exit of part {part}",
            **_marker(len(x)) | {"markersize": 2.5},
        )
    x, bpd = test_curve(run, axis)
    axes.plot(np.divide(x, scale), bpd, color="black", linewidth=1.8, label="whole flow", **_marker(len(x)))
    _set_limits(axes, axis, largest / scale, [bpd, *(curve for _, curve in exits)], bpd[0])
    axes.set_xlabel(axis.label.format(unit=unit))
    axes.set_ylabel("test bits/dim")
    ending = "at the end" if saved.ended else "so far"
    axes.set_title(_title(run, f"{run.test_bpd:.3f} bits/dim {ending}"), loc="left", fontsize=10)
    _style(axes)
    handles, texts = axes.get_legend_handles_labels()
    order = sorted(range(len(texts)), key=lambda i: texts[i] in labels)  # lines first, then bands
    figure.legend(
        [handles[i] for i in order], [texts[i] for i in order], loc="outside right upper", frameon=False, fontsize=9
    )
    return figure


def _compare(runs: Mapping[str, SavedRun], axis: Axis) -> Figure:
    """Test bits/dim of several runs over one cost: the whole of it, and closer where the runs end."""
    labels = [f"{name}: {run.summary.test_bpd:.3f}" + ("" if run.ended else " so far") for name, run in runs.items()]
    num_columns = max(1, min(4, len(runs), 110 // (max(map(len, labels)) + 6)))
    legend_height = 0.2 * math.ceil(len(runs) / num_columns)
    figure = Figure(figsize=(9, 4.4 + legend_height), layout="constrained")
    whole, close = figure.subplots(1, 2)
    curves = [test_curve(run.summary, axis) for run in runs.values()]
    largest = max(spans(run.summary, axis)[-1][2] for run in runs.values())
    scale, unit = axis.unit(largest)
    for index, (x, bpd) in enumerate(curves):
        style = ("-", "--", ":", "-.")[index // len(PART_COLORS) % 4]
        for axes in (whole, close):
            axes.plot(
                np.divide(x, scale),
                bpd,
                style,
                color=_part_color(index),
                linewidth=1.5,
                label=labels[index] if axes is whole else "_",
                **_marker(len(x)),
            )
    for axes in (whole, close):
        _set_limits(axes, axis, largest / scale, [bpd for _, bpd in curves], max(bpd[0] for _, bpd in curves))
        _style(axes)
    bottom, top = whole.get_ylim()
    last = [[value for value in bpd if not math.isnan(value)][-1] for _, bpd in curves]
    lowest = min(last)
    close_top = min(max(lowest + 0.15 * (top - lowest), max(last) + 0.02 * (top - lowest)), top)
    close.set_ylim(bottom if close_top == top else lowest - 0.1 * (close_top - lowest), close_top)
    whole.set_ylabel("test bits/dim")
    whole.set_title("from before training", loc="left", fontsize=10)
    close.set_title("closer, where the runs end", loc="left", fontsize=10)
    figure.supxlabel(axis.label.format(unit=unit), fontsize=10)
    figure.legend(
        loc="outside upper center",
        ncols=num_columns,
        frameon=False,
        fontsize=9,
        title="run: test bits/dim at the end",
        title_fontsize=9,
    )
    return figure


def bytes_by_phase(run: Summary) -> dict[str, Counter[str]]:
    """Bytes by phase (as the bands of the figures name them) and by kind; only what is not zero."""
    result: dict[str, Counter[str]] = {}
    for record, _, _ in spans(run, AXES["epoch"]):
        counts = result.setdefault(_band(record)[0], Counter())
        if record is None:
            counts.update({f"gather: {kind}": count for kind, count in run.bytes.gather.items()})
            continue
        sent = record.bytes
        counts.update({f"latents {source} → {target}": count for source, target, count in sent.latents})
        counts.update({"gradients": sent.gradients, "evaluation": sent.eval, "control": sent.control})
        if record.is_local:
            counts["images handed out"] += sent.images
    whole = [record for record in run.epochs if not record.is_local]
    if whole:
        images = run.bytes.finetune - sum(record.bytes.gradients for record in whole)
        result[_band(whole[-1])[0]]["images handed out"] += images
    return {phase: +counts for phase, counts in result.items() if phase != "gather" or +counts}


def _kind_color(kind: str) -> str:
    if kind.startswith("latents"):
        return _part_color(int(kind.split()[1]))
    return {
        "gradients": "#aa3377",
        "evaluation": "#bbbbbb",
        "control": "#333333",
        "gather: parameters": "#806d00",
        "gather: optimizer": "#c8b400",
        "gather: ema": "#ece28a",
        "images handed out": "#88ccee",
    }[kind]


def _bytes_by_phase(run: Summary) -> Figure:
    by_phase = bytes_by_phase(run)
    figure = Figure(figsize=(7.6 + 0.85 * max(0, len(by_phase) - 5), 4.4), layout="constrained")
    axes = figure.add_subplot()
    totals: Counter[str] = sum(by_phase.values(), Counter())
    between = "parts, all in one process" if run.wire is False else "workers"
    scale, unit = AXES["bytes"].unit(max((counts.total() for counts in by_phase.values()), default=0))
    heights = np.zeros(len(by_phase))
    for kind in sorted(totals, key=lambda kind: (not kind.startswith("latents"), kind)):
        bars = np.array([counts[kind] for counts in by_phase.values()]) / scale
        axes.bar(
            range(len(by_phase)),
            bars,
            bottom=heights,
            width=0.6,
            color=_kind_color(kind),
            label=f"{kind}: {bytes_text(totals[kind])}",
        )
        heights += bars
    for index, counts in enumerate(by_phase.values() if totals else ()):
        axes.annotate(
            bytes_text(counts.total()),
            (index, heights[index]),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_xticks(range(len(by_phase)), [phase.replace(": ", "\n") for phase in by_phase], fontsize=9)
    axes.set_xlim(-0.6, max(len(by_phase), 3) - 0.4)
    axes.set_ylim(0, 1.08 * max(heights, default=0) or 1)
    axes.set_ylabel(f"sent ({unit})")
    axes.set_title(_title(run, f"{bytes_text(totals.total())} between {between}"), loc="left", fontsize=10)
    _style(axes)
    if totals:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9, reverse=True)  # in the order of the stack
    else:
        axes.set_yticks([0])
        axes.annotate("nothing was sent", (0.5, 0.5), xycoords="axes fraction", ha="center", color="#555555")
    return figure
