"""A study's figure: bits/dim over the cost of training, and at each exit over how much of the flow stands before it."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

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
    """Saves the figure as PNG."""
    with matplotlib.style.context(_STYLE):
        make(title, rows).savefig(path, dpi=150)


def make(title: str, rows: Sequence[Row]) -> Figure:
    """The rows of a study, of which the first trains end to end; bars are standard errors.

    What trains end to end is black; the best at each cost are joined by a line.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    costs, exits = figure.subplots(1, 2)
    whole: dict[float, float] = {}
    for row in rows:
        if not row.is_by_parts:
            whole[row.macs] = min(mean(row.bits), whole.get(row.macs, math.inf))
    costs.plot(*zip(*sorted(whole.items())), "k--")
    exits.axhline(mean(rows[0].bits), linestyle="--", color="black", label=rows[0].arm.name)
    by_parts = [row.arm.name for row in rows if row.is_by_parts]
    for row in rows:
        look = {"color": "black", "marker": "o"}
        if row.is_by_parts:
            index = by_parts.index(row.arm.name)
            look = {"color": color_of(index), "marker": _MARKERS[index // 8 % len(_MARKERS)]}
            exits.plot(row.depths, row.exits, label=row.arm.name, **look)
        costs.errorbar(row.macs, mean(row.bits), row.error, **look)
    costs.locator_params(axis="x", nbins=6)
    costs.set(xlabel=f"multiply-adds of training, {rows[0].arm.name} = 1", ylabel="bits/dim of all test images")
    exits.set(xlabel="share of the flow's multiply-adds up to the exit", ylabel="bits/dim under the part's head")
    figure.suptitle(title)
    figure.legend(*exits.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure
