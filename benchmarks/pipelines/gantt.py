"""Draws what several workers do when, as bars on one scale of milliseconds.

A timeline is a list of spans for each worker, `[kind, name, start, length]`, in nanoseconds on one clock.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Patch

from pipeflow.report.colors import SPAN_COLORS

Span = Sequence
Timeline = Sequence[Sequence[Span]]

_TRAINING = "update"
"""A computing span whose name begins so is a backward and the optimizer's step, and is drawn darker than a forward."""
_FORWARD_ALPHA = 0.6


def draw(timelines: Mapping[str, Timeline], path: Path) -> None:
    """Writes a picture of the timelines, one below the other, each from its own begin.

    timelines: by title.
    """
    num_rows = [len(workers) for workers in timelines.values()]
    figure, axes = pyplot.subplots(
        len(timelines),
        1,
        figsize=(11, 0.9 + 0.62 * sum(num_rows) + 0.7 * len(timelines)),
        squeeze=False,
        sharex=True,
        height_ratios=num_rows,
        layout="constrained",
    )
    for axis, (title, workers) in zip(axes[:, 0], timelines.items()):
        _draw_workers(axis, workers)
        axis.set_title(title, loc="left", fontsize=10)
    axes[-1, 0].set_xlabel("milliseconds")
    kinds = {span[0] for workers in timelines.values() for spans in workers for span in spans}
    legend = _legend([kind for kind in SPAN_COLORS if kind in kinds])
    figure.legend(handles=legend, loc="outside upper right", ncols=len(legend), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_workers(axis: pyplot.Axes, workers: Timeline) -> None:
    begin = min((start for spans in workers for _, _, start, _ in spans), default=0)
    for rank, spans in enumerate(workers):
        for kind, name, start, length in spans:
            is_forward = kind == "compute" and not name.startswith(_TRAINING)
            axis.broken_barh(
                [((start - begin) / 1e6, length / 1e6)],
                _place(rank, kind),
                facecolor=SPAN_COLORS[kind],
                alpha=_FORWARD_ALPHA if is_forward else 1.0,
                edgecolor="white",
                linewidth=0.4,
            )
    axis.set_yticks(range(len(workers)), [f"worker {rank}" for rank in range(len(workers))])
    axis.set_ylim(len(workers) - 0.5, -0.5)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _place(rank: int, kind: str) -> tuple[float, float]:
    """Bottom and height of a bar: computing in the middle of the worker's row, its threads' work above and below."""
    if kind in ("compute", "wait"):
        return rank - 0.22, 0.44
    return (rank + 0.26, 0.14) if kind == "send" else (rank - 0.4, 0.14)


def _legend(kinds: Sequence[str]) -> list[Patch]:
    patches = []
    for kind in kinds:
        if kind == "compute":
            patches.append(Patch(facecolor=SPAN_COLORS[kind], alpha=_FORWARD_ALPHA, label="forward"))
        patches.append(Patch(facecolor=SPAN_COLORS[kind], label="backward and update" if kind == "compute" else kind))
    return patches
