"""A timeline of several workers as a file for a viewer and as a picture.

`spans` has a list for each worker of `[kind, name, start, length]`, times in nanoseconds on one clock.
"""

from collections.abc import Sequence
from pathlib import Path

_COLOURS = {"compute": "#2b6cb0", "wait": "#e2e8f0", "send": "#dd6b20", "receive": "#38a169", "load": "#805ad5"}
_TRAINING = "update"
"""Computing spans whose names begin so are drawn darker: a backward and the optimizer's step."""


def draw(timelines: dict[str, Sequence[Sequence[Sequence]]], path: Path) -> None:
    """One picture of one or several timelines below each other, each from its own begin, on one scale of milliseconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    rows = sum(len(spans) for spans in timelines.values())
    figure, axes = pyplot.subplots(
        len(timelines),
        1,
        figsize=(11, 0.9 + 0.62 * rows + 0.7 * len(timelines)),
        squeeze=False,
        sharex=True,
        height_ratios=[len(spans) for spans in timelines.values()],
        layout="constrained",
    )
    kinds: set[str] = set()
    for axis, (title, spans) in zip(axes[:, 0], timelines.items()):
        begin = min((span[2] for worker in spans for span in worker), default=0)
        for rank, worker in enumerate(spans):
            for kind, name, start, length in worker:
                kinds.add(kind)
                bottom, height = _place(rank, kind)
                axis.broken_barh(
                    [((start - begin) / 1e6, length / 1e6)],
                    (bottom, height),
                    facecolor=_COLOURS[kind],
                    alpha=0.6 if kind == "compute" and not name.startswith(_TRAINING) else 1.0,
                    edgecolor="white",
                    linewidth=0.4,
                )
        axis.set_yticks(range(len(spans)), [f"worker {rank}" for rank in range(len(spans))])
        axis.set_ylim(len(spans) - 0.5, -0.5)
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[-1, 0].set_xlabel("milliseconds")
    legend = [Patch(facecolor=_COLOURS[kind], label=kind) for kind in _COLOURS if kind in kinds]
    if "compute" in kinds:
        legend.insert(0, Patch(facecolor=_COLOURS["compute"], alpha=0.6, label="forward"))
        legend[1].set_label("backward and update")
    figure.legend(handles=legend, loc="outside upper right", ncols=len(legend), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _place(rank: int, kind: str) -> tuple[float, float]:
    """Bottom and height of a bar: a worker's computing in the middle of its row, what its threads do above and below."""
    if kind in ("compute", "wait"):
        return rank - 0.22, 0.44
    return (rank + 0.26, 0.14) if kind == "send" else (rank - 0.4, 0.14)
