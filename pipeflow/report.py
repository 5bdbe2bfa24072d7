"""Runs read back from their folders: a table to compare them, and figures of what they learned at which cost.

Every curve is test bits/dim over a cost, and there are four costs (`AXES`): epochs, seconds, multiply-adds and bytes.
"""

import json
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeflow.errors import CheckpointError
from pipeflow.metrics import WHOLE_FLOW_PHASES, training_bytes

PART_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
"""One colour a part (or link, or run), told apart by colour-blind readers too; after the last comes the first again."""

JOINT_COLOR, WHOLE_COLOR, GATHER_COLOR = "#777777", "#e0c000", "#222222"


# ---------------------------------------------------------------------------------------------------- reading runs


def read_run(run_dir: str | Path) -> dict:
    """A run's `summary.json`; of a run that has not ended the same, as far as `metrics.jsonl` tells it.

    `"ended"` is added: where it is false, `test_bpd` and `exit_bpd` are those of the last evaluated epoch.

    Raises:
        CheckpointError: the folder is not a run's, or what is in it cannot be read.
    """
    run_dir = Path(run_dir)
    summary, log = run_dir / "summary.json", run_dir / "metrics.jsonl"
    if summary.is_file():
        return {**_parse(summary.read_text(), summary), "ended": True}
    if not log.is_file():
        raise CheckpointError(
            f"{run_dir} is not the folder of a run: it has neither summary.json nor metrics.jsonl. "
            f"Give the folder that run.dir named when the run was started."
        )
    # The last line may be half written while the run goes on.
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    events = [_parse(line, f"{log}, line {number}") for number, line in enumerate(lines, start=1)]
    if not any(event["event"] == "start" for event in events):
        raise CheckpointError(f"{log} has no start of a run yet: try again when the first epoch has begun.")
    return _summary_so_far(run_dir.resolve().name, events)


def _parse(text: str, where: str | Path) -> dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{where}: this is no JSON ({error}). The file is damaged: take it from a copy, or run again."
        ) from error


def _summary_so_far(name: str, events: list[dict]) -> dict:
    by_kind = {kind: [event for event in events if event["event"] == kind] for kind in ("start", "epoch", "gather")}
    start, gathers = by_kind["start"][0], by_kind["gather"]
    epochs = [{key: value for key, value in event.items() if key != "event"} for event in by_kind["epoch"]]
    evaluated = [record for record in epochs if record["test_bpd"] is not None]
    exits = [record["exit_bpd"] for record in evaluated if record["exit_bpd"]]
    links: Counter = Counter()
    for record in epochs:
        links.update({(source, target): count for source, target, count in record["bytes"]["latents"]})
    gathered: Counter = Counter()
    for gather in gathers:
        gathered.update(gather["bytes"])
    counts = {
        "eval": sum(record["bytes"]["eval"] for record in epochs),
        "finetune": sum(record["bytes"]["gradients"] for record in epochs if record["phase"] in WHOLE_FLOW_PHASES),
        "control": sum(record["bytes"]["control"] for record in epochs),
    }
    return {
        "ended": False,
        "name": name,
        "test_bpd": evaluated[-1]["test_bpd"] if evaluated else start["initial_bpd"],
        "exit_bpd": exits[-1] if exits else None,
        "initial_bpd": start["initial_bpd"],
        "epochs": epochs,
        "num_epochs": len(epochs),
        "parts": start["parts"],
        "train_macs": sum(record["macs"] for record in epochs),
        "seconds": {"gather": sum(gather["seconds"] for gather in gathers)},
        "bytes": {
            "forward": [links[link] for link in sorted(links)],
            "backward": [0 for _ in links],
            "gather": {"parameters": 0, "optimizer": 0, **gathered},
            **counts,
            "total": links.total() + gathered.total() + sum(counts.values()),
        },
    }


# ------------------------------------------------------------------------------------------------ what a run costs


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A cost to plot bits/dim over: what an epoch adds to it, and what the gather does."""

    name: str
    label: str
    """`{unit}` stands for the unit that suits the largest value."""
    of_epoch: Callable[[dict], float]
    of_gather: Callable[[dict], float]
    units: tuple[tuple[float, str], ...] = ((1, ""),)
    """Size and name of each unit, ascending."""

    def unit(self, largest: float) -> tuple[float, str]:
        """The largest unit of which `largest` is at least two."""
        return next((unit for unit in reversed(self.units) if largest >= 2 * unit[0]), self.units[0])


BYTE_UNITS = ((1, "bytes"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))

AXES = {
    axis.name: axis
    for axis in (
        Axis(name="epoch", label="epochs", of_epoch=lambda record: 1, of_gather=lambda run: 0),
        Axis(
            name="seconds",
            label="training time with the gather, without evaluation ({unit})",
            of_epoch=lambda record: record["seconds"],
            of_gather=lambda run: run["seconds"]["gather"],
            units=((1, "seconds"), (60, "minutes"), (3600, "hours")),
        ),
        Axis(
            name="macs",
            label="training multiply-adds{unit}",
            of_epoch=lambda record: record["macs"],
            of_gather=lambda run: 0,
            units=((1, ""), *((10.0**power, f" ($10^{{{power}}}$)") for power in range(3, 25, 3))),
        ),
        Axis(
            name="bytes",
            label="latents, gradients and gather sent, without evaluation and control ({unit})",
            of_epoch=training_bytes,
            of_gather=lambda run: sum(run["bytes"]["gather"].values()),
            units=BYTE_UNITS,
        ),
    )
}


def spans(run: dict, axis: Axis) -> list[tuple[dict | None, float, float]]:
    """Where each epoch begins and ends on an axis: `(record, begin, end)`; the gather's record is None."""
    records: list[dict | None] = list(run["epochs"])
    first_finetune = next((i for i, record in enumerate(records) if record["phase"] == "finetune"), len(records))
    records.insert(first_finetune, None)
    result, begin = [], 0.0
    for record in records:
        end = begin + (axis.of_gather(run) if record is None else axis.of_epoch(record))
        result.append((record, begin, end))
        begin = end
    return result


def _number(value: float | str) -> float:
    """A logged number; one that is not finite (the log writes it as a word) leaves a gap in a curve."""
    value = float(value)
    return value if math.isfinite(value) else math.nan


def test_curve(run: dict, axis: Axis) -> tuple[list[float], list[float]]:
    """The whole flow's test bits/dim over an axis, from before training on; epochs without evaluation are left out."""
    points = [(0.0, run["initial_bpd"])]
    points += [
        (end, record["test_bpd"]) for record, _, end in spans(run, axis) if record and record["test_bpd"] is not None
    ]
    return [x for x, _ in points], [_number(bpd) for _, bpd in points]


def exit_curves(run: dict, axis: Axis) -> list[tuple[list[float], list[float]]]:
    """The exit bits/dim of all parts but the last (whose exit is the whole flow), while there are heads."""
    points = [(end, record["exit_bpd"]) for record, _, end in spans(run, axis) if record and record["exit_bpd"]]
    num_parts = max((len(exits) for _, exits in points), default=0)
    return [
        (
            [x for x, exits in points if part < len(exits) - 1],
            [_number(exits[part]) for _, exits in points if part < len(exits) - 1],
        )
        for part in range(num_parts - 1)
    ]


def phases(run: dict) -> str:
    """A run's phases in words: `12 concurrent + 6 finetune`."""
    groups = groupby(record["phase"] for record in run["epochs"])
    return " + ".join(f"{len(list(group))} {phase}" for phase, group in groups) or "none yet"


# --------------------------------------------------------------------------------------------------------- the table


def duration(seconds: float) -> str:
    """Seconds as `45.1 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes in the unit that suits them: `120 bytes`, `24.6 MB`."""
    factor, unit = next((pair for pair in reversed(BYTE_UNITS) if count >= pair[0]), BYTE_UNITS[0])
    return f"{count:.0f} {unit}" if factor == 1 else f"{count / factor:.3g} {unit}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}" if count else "0"


def _row(name: str, run: dict) -> dict[str, str]:
    sent = run["bytes"]
    return {
        "run": name,
        "phases": phases(run),
        "test\nbits/dim": f"{float(run['test_bpd']):.3f}" + ("" if run["ended"] else "*"),
        "exit bits/dim\nof the parts": " ".join(f"{float(bpd):.3f}" for bpd in run["exit_bpd"] or []) or "-",
        "training\ntime": duration(spans(run, AXES["seconds"])[-1][2]),
        "training\nmultiply-adds": f"{run['train_macs']:.2e}".replace("e+", "e"),
        "MB\nforward": _megabytes(sum(sent["forward"])),
        "MB\nbackward": _megabytes(sum(sent["backward"])),
        "MB\ngather": _megabytes(sum(sent["gather"].values())),
        "MB\nall": _megabytes(sent["total"]),
    }


def _print_table(rows: list[dict[str, str]], console: Console) -> None:
    """One row a run; where the console is too narrow for that, a block a run."""
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
    """Print one row a run and draw the figures.

    Args:
        run_dirs: the folders of the runs.
        out: folder for the figures; when not given, the run's own for one run and the current one for several.
        console: where to print the table; standard output when not given.

    Returns:
        The figures' paths.

    Raises:
        CheckpointError: a folder is not a run's.
    """
    run_dirs = [Path(run_dir) for run_dir in run_dirs]
    read = [read_run(run_dir) for run_dir in run_dirs]
    names = [run["name"] for run in read]
    if len(set(names)) < len(names):  # folders of the same name in different places
        names = [str(run_dir) for run_dir in run_dirs]
    runs = dict(zip(names, read))
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=1000)  # a file has no width to fit the table into
    _print_table([_row(name, run) for name, run in runs.items()], console)
    if not all(run["ended"] for run in read):
        console.print("* has not ended: the last evaluated epoch")
    if len(runs) == 1:
        paths = plots(run_dirs[0], out)
    else:
        paths = _comparison(runs, Path(out) if out is not None else Path())
    for path in paths:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
    return paths


# ------------------------------------------------------------------------------------------------------- the figures


def plots(run_dir: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draw a run's figures into its folder (or `out`): `bpd_by_{epoch,seconds,bytes}.png`, `bytes_by_phase.png`."""
    run = read_run(run_dir)
    folder = Path(run_dir if out is None else out)
    figures = {f"bpd_by_{name}.png": _learning_curve(run, AXES[name]) for name in ("epoch", "seconds", "bytes")}
    figures["bytes_by_phase.png"] = _bytes_by_phase(run)
    return _save(figures, folder)


def _comparison(runs: dict[str, dict], folder: Path) -> list[Path]:
    return _save({f"compare_by_{name}.png": _compare(runs, axis) for name, axis in AXES.items()}, folder)


def _save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=150)
    return [folder / name for name in figures]


def _part_color(part: int) -> str:
    return PART_COLORS[part % len(PART_COLORS)]


def _band(record: dict | None) -> tuple[str, str]:
    """What trains in an epoch (None: the gather), in words and as a colour."""
    if record is None:
        return "gather", GATHER_COLOR
    if record["phase"] in WHOLE_FLOW_PHASES:
        return {"finetune": "fine-tuning", "end_to_end": "end to end"}[record["phase"]], WHOLE_COLOR
    trained = record["trained"]
    if len(trained) == 1:
        return f"{record['phase']}: part {trained[0]}", _part_color(trained[0])
    run_of_parts = len(trained) > 2 and trained == list(range(trained[0], trained[-1] + 1))
    parts = f"{trained[0]} to {trained[-1]}" if run_of_parts else ", ".join(map(str, trained))
    return f"{record['phase']}: parts {parts}", JOINT_COLOR


def _bands(run: dict, axis: Axis) -> Iterator[tuple[str, str, float, float]]:
    """Stretches of the same training on an axis: label, colour, begin and end."""
    for (label, color), group in groupby(spans(run, axis), key=lambda span: _band(span[0])):
        stretch = list(group)
        yield label, color, stretch[0][1], stretch[-1][2]


def _title(run: dict, text: str) -> str:
    return textwrap.fill(f"{run['name']}: {text}", width=55)


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


def _learning_curve(run: dict, axis: Axis) -> Figure:
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
    ending = "at the end" if run["ended"] else "so far"
    axes.set_title(_title(run, f"{float(run['test_bpd']):.3f} bits/dim {ending}"), loc="left", fontsize=10)
    _style(axes)
    handles, texts = axes.get_legend_handles_labels()
    order = sorted(range(len(texts)), key=lambda i: texts[i] in labels)  # lines first, then bands
    figure.legend(
        [handles[i] for i in order], [texts[i] for i in order], loc="outside right upper", frameon=False, fontsize=9
    )
    return figure


def _compare(runs: dict[str, dict], axis: Axis) -> Figure:
    """Test bits/dim of several runs over one cost: the whole of it, and closer where the runs end."""
    labels = [
        f"{name}: {float(run['test_bpd']):.3f}" + ("" if run["ended"] else " so far") for name, run in runs.items()
    ]
    num_columns = max(1, min(4, len(runs), 110 // (max(map(len, labels)) + 6)))
    legend_height = 0.2 * math.ceil(len(runs) / num_columns)
    figure = Figure(figsize=(9, 4.4 + legend_height), layout="constrained")
    whole, close = figure.subplots(1, 2)
    curves = [test_curve(run, axis) for run in runs.values()]
    largest = max(spans(run, axis)[-1][2] for run in runs.values())
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


def bytes_by_phase(run: dict) -> dict[str, Counter]:
    """Bytes by phase (as the bands of the figures name them) and by kind; only what is not zero."""
    result: dict[str, Counter] = {}
    for record, _, _ in spans(run, AXES["epoch"]):
        counts = result.setdefault(_band(record)[0], Counter())
        if record is None:
            counts.update({f"gather: {kind}": count for kind, count in run["bytes"]["gather"].items()})
            continue
        sent = record["bytes"]
        counts.update({f"latents {source} → {target}": count for source, target, count in sent["latents"]})
        counts.update({"gradients": sent["gradients"], "evaluation": sent["eval"], "control": sent["control"]})
    whole = [record for record in run["epochs"] if record["phase"] in WHOLE_FLOW_PHASES]
    if whole:
        images = run["bytes"]["finetune"] - sum(record["bytes"]["gradients"] for record in whole)
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


def _bytes_by_phase(run: dict) -> Figure:
    by_phase = bytes_by_phase(run)
    figure = Figure(figsize=(7.6 + 0.85 * max(0, len(by_phase) - 5), 4.4), layout="constrained")
    axes = figure.add_subplot()
    totals: Counter = sum(by_phase.values(), Counter())
    scale, unit = AXES["bytes"].unit(max((counts.total() for counts in by_phase.values()), default=0))
    heights = np.zeros(len(by_phase))
    for kind in sorted(totals, key=lambda kind: (not kind.startswith("latents"), kind)):
        counts = np.array([counts[kind] for counts in by_phase.values()]) / scale
        axes.bar(
            range(len(by_phase)),
            counts,
            bottom=heights,
            width=0.6,
            color=_kind_color(kind),
            label=f"{kind}: {size(totals[kind])}",
        )
        heights += counts
    for index, counts in enumerate(by_phase.values() if totals else ()):
        axes.annotate(
            size(counts.total()),
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
    axes.set_title(_title(run, f"{size(totals.total())} between workers"), loc="left", fontsize=10)
    _style(axes)
    if totals:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9, reverse=True)  # in the order of the stack
    else:
        axes.set_yticks([0])
        axes.annotate("nothing was sent", (0.5, 0.5), xycoords="axes fraction", ha="center", color="#555555")
    return figure


# --------------------------------------------------------------------------------------------------------- samples


def sample_grid(images: torch.Tensor | np.ndarray, path: str | Path, columns: int = 8) -> None:
    """Write images as one PNG, row by row, three times as large and 2 pixels apart, on white.

    Args:
        images: uint8, [batch, channels, height, width] with 1 or 3 channels.

    Raises:
        ValueError: `images` is anything else.
    """
    pixels = torch.as_tensor(images).cpu().numpy()
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or len(pixels) == 0:
        raise ValueError(
            f"images must be uint8 of shape [batch, 1 or 3, height, width], got {pixels.dtype} {list(pixels.shape)}"
        )
    scale, gap = 3, 2
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    num, channels, height, width = pixels.shape
    columns = min(columns, num)
    rows = math.ceil(num / columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    grid = np.full(shape, 255, np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    Image.fromarray(grid.squeeze(2) if channels == 1 else grid).save(path)
