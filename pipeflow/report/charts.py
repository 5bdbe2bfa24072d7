"""Bars of the page: seconds, bytes and multiply-adds of runs, and of one run by phase."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeflow.report.colors import WHOLE_COLOR, color_of
from pipeflow.report.costs import SECONDS_COLORS, bytes_by_phase, color_of_kind, in_order, seconds_by_kind
from pipeflow.report.curves import sent
from pipeflow.rundir.records import Summary
from pipeflow.units import bytes_text, duration_text, macs_text

Amounts = Mapping[str, float]
"""By kind."""


@dataclass(frozen=True)
class Piece:
    """A piece of a bar: its share of the bar, and what it stands for."""

    share: float
    color: str
    title: str


@dataclass(frozen=True)
class Bar:
    """A bar with the share that it has of the longest one."""

    name: str
    share: float
    pieces: tuple[Piece, ...]
    total: str


@dataclass(frozen=True)
class Chart:
    """Bars below each other."""

    title: str
    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, str], ...]
    """Kinds and their colours."""


def bar_charts(runs: Mapping[str, Summary]) -> list[Chart]:
    """Seconds, bytes and multiply-adds: of each run, and the bytes of one run by phase."""
    seconds = {name: seconds_by_kind(run) for name, run in runs.items()}
    charts = [_chart("Seconds", seconds, SECONDS_COLORS, duration_text)]
    verb = sent(runs.values())
    if len(runs) == 1:
        phases = bytes_by_phase(next(iter(runs.values())))
        charts.append(_chart(f"Bytes {verb}, by phase", phases, _colors_of(phases), bytes_text))
    else:
        moved = {name: _bytes_by_kind(run) for name, run in runs.items()}
        charts.append(_chart(f"Bytes {verb}", moved, _BYTES_COLORS, bytes_text))
    macs = {name: _macs_by_kind(run) for name, run in runs.items()}
    return [*charts, _chart("Multiply-adds of training", macs, _MACS_COLORS, macs_text)]


_BYTES_COLORS = {
    "latents": color_of(0),
    "gradients of latents": color_of(1),
    "gather": "#806d00",
    "gradients": "#aa3377",
    "evaluation": "#bbbbbb",
    "all else": "#333333",
}
_MACS_COLORS = {"local epochs": color_of(0), "end-to-end epochs": WHOLE_COLOR}


def _bytes_by_kind(run: Summary) -> Amounts:
    moved = run.bytes
    kinds = {
        "latents": sum(moved.forward),
        "gradients of latents": sum(moved.backward),
        "gather": sum(moved.gather.values()),
        "gradients": moved.finetune + moved.replicas.gradients,
        "evaluation": moved.eval,
    }
    return {**kinds, "all else": max(0, moved.total - sum(kinds.values()))}


def _macs_by_kind(run: Summary) -> Amounts:
    return {
        "local epochs": sum(record.macs for record in run.epochs if record.is_local),
        "end-to-end epochs": sum(record.macs for record in run.epochs if not record.is_local),
    }


def _colors_of(phases: Mapping[str, Amounts]) -> dict[str, str]:
    """Colours of the kinds of bytes that phases have, in the order in which they are stacked."""
    return {kind: color_of_kind(kind) for kind in in_order({kind for kinds in phases.values() for kind in kinds})}


def _chart(
    title: str, amounts: Mapping[str, Amounts], colors: Mapping[str, str], text: Callable[[float], str]
) -> Chart:
    """A bar for each name. colors: of all kinds, in their order."""
    largest = max((sum(kinds.values()) for kinds in amounts.values()), default=0)
    bars = []
    for name, kinds in amounts.items():
        total = sum(kinds.values())
        pieces = tuple(
            Piece(kinds[kind] / total, color, f"{kind}: {text(kinds[kind])}")
            for kind, color in colors.items()
            if kinds.get(kind, 0) > 0
        )
        bars.append(Bar(name, total / largest if largest else 0.0, pieces, text(total)))
    used = {kind for kinds in amounts.values() for kind, amount in kinds.items() if amount > 0}
    return Chart(title, tuple(bars), tuple((kind, color) for kind, color in colors.items() if kind in used))
