"""A study's figure: bits/dim over the cost of training, and at each exit over how much of the flow stands before it."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import matplotlib.style
from matplotlib.figure import Figure

from benchmarks.learning.rows import Row
from pipeflow.report.colors import color_of

_MARKERS = "osD^v"
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.markersize": 4,
    "lines.linewidth": 1,
}


def draw(title: str, rows: Sequence[Row], path: Path) -> None:
    """Draws the rows of a study as PNG; bars are standard errors, and what trains end to end is joined by a line."""
    with matplotlib.style.context(_STYLE):
        figure = Figure(figsize=(12, 5), layout="constrained")
        costs, exits = figure.subplots(1, 2)
        whole = sorted((row.macs, mean(row.bits)) for row in rows if not row.exits)
        costs.plot(*zip(*whole), "k--o")
        exits.axhline(mean(rows[0].bits), linestyle="--", color="black", label=rows[0].arm)
        for index, row in enumerate(row for row in rows if row.exits):
            look = {"color": color_of(index), "marker": _MARKERS[index // 8 % len(_MARKERS)]}
            error = stdev(row.bits) / math.sqrt(len(row.bits)) if len(row.bits) > 1 else 0.0
            costs.errorbar(row.macs, mean(row.bits), error, **look)
            exits.plot(row.depths, row.exits, label=row.arm, **look)
        costs.set(xlabel=f"multiply-adds of training, {rows[0].arm} = 1", ylabel="bits/dim of all test images")
        exits.set(xlabel="share of the flow's multiply-adds up to the exit", ylabel="bits/dim under the part's head")
        figure.suptitle(title)
        figure.legend(*exits.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        figure.savefig(path, dpi=150)
