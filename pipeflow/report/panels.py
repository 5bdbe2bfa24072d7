"""What the page draws, as data: panels of curves, of one run by part, or of several runs side by side."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from pipeflow.report.colors import color_of, dash_of
from pipeflow.report.costs import band
from pipeflow.report.curves import (
    AXES,
    FLOW,
    MOST_CURVES,
    Axis,
    Curve,
    curve_of,
    curves_by_part,
    exit_curves,
    limits,
    limits_at_end,
    sent,
    spans,
    test_curve,
)
from pipeflow.rundir.records import Epoch, Summary

_MOST_POINTS = 400
"""Of a curve; a longer one is thinned out, evenly."""
_MOST_PARTS = 8
"""Parts that have a panel of their own where several runs are compared."""
_LOG_FROM = 30
"""Spread from which norms of gradients have a logarithmic axis."""
_WHOLE = "whole flow"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve with its name and looks."""

    name: str
    color: str
    curve: Curve
    dash: str = "solid"
    width: float = 1.5

    def thinned(self) -> Curve:
        """The points that are drawn: the last is among them."""
        every = math.ceil(len(self.curve[0]) / _MOST_POINTS) or 1
        first = (len(self.curve[0]) - 1) % every
        return self.curve[0][first::every], self.curve[1][first::every]


@dataclass(frozen=True, kw_only=True)
class Band:
    """A stretch of the costs in which the same parts train."""

    name: str
    color: str
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves over one cost. The costs are in the unit of `x_label`."""

    title: str
    x_label: str
    lines: tuple[Line, ...]
    bands: tuple[Band, ...] = ()
    has_legend: bool = True
    """Whether the names stand below the panel; the page names runs once for all panels."""
    y_limits: tuple[float, float] | None = None
    is_log: bool = False
    has_whole_costs: bool = False
    """Whether the costs are whole numbers."""


@dataclass(frozen=True)
class Shown:
    """The runs of a page by name, with colours by their place."""

    runs: Mapping[str, Summary]

    @property
    def alone(self) -> Summary | None:
        """The run, if there is but one: its parts have the colours then."""
        return next(iter(self.runs.values())) if len(self.runs) == 1 else None

    @property
    def unit(self) -> str:
        """The unit of all runs' bits/dim."""
        units = {run.unit for run in self.runs.values()}
        return units.pop() if len(units) == 1 else "bits/dim"

    def bits_per_dim(self, axis: Axis) -> list[Panel]:
        """Test bits/dim: of one run with the exits of its parts, of several as a whole and where they end."""
        run = self.alone
        initial = max(each.initial_bpd for each in self.runs.values())
        if run is not None:
            exits = [
                Line(name=f"exit of part {part}", color=color_of(part), curve=curve)
                for part, curve in enumerate(exit_curves(run, axis))
            ]
            whole = Line(name=_WHOLE, color="black", curve=test_curve(run, axis), width=2.2)
            lines = [*exits, whole]
            bounds = limits([line.curve for line in lines], initial)
            return [self._panel(f"Test {self.unit}", axis, lines, y_limits=bounds, bands=_bands(run, axis))]
        lines = self._by_run(lambda each: test_curve(each, axis))
        bounds = limits([line.curve for line in lines], initial)
        closer = limits_at_end([line.curve for line in lines], bounds)
        title = f"Test {self.unit}"
        panels = [self._panel(title, axis, lines, y_limits=bounds)]
        return panels + [self._panel(f"{title}, where the runs end", axis, lines, y_limits=closer)] * (closer != bounds)

    def losses(self, axis: Axis) -> list[Panel]:
        """Train loss, a panel for each part: losses of different parts do not compare."""
        panels = self._by_part("Train loss", axis, lambda record: record.train_loss)
        if self.alone is None or not panels or len(panels[0].lines) > _MOST_PARTS:
            return panels
        return [replace(panels[0], title=f"Train loss, {line.name}", lines=(line,)) for line in panels[0].lines]

    def exits(self) -> list[Panel]:
        """Exit bits/dim of several runs, a panel for each part; those of one run stand with its bits/dim."""
        if self.alone is not None:
            return []
        found = {name: exit_curves(run, AXES["epoch"]) for name, run in self.runs.items()}
        panels = []
        for part in range(min(_MOST_PARTS, max(map(len, found.values())))):
            lines = self._by_run({name: curves[part] for name, curves in found.items() if part < len(curves)})
            bounds = limits([line.curve for line in lines], max(run.initial_bpd for run in self.runs.values()))
            panels.append(self._panel(f"Exit of part {part}, bits/dim", AXES["epoch"], lines, y_limits=bounds))
        return panels

    def updates(self) -> list[Panel]:
        """Learning rates and norms of gradients."""
        epochs = AXES["epoch"]
        rates = self._by_part("Learning rate", epochs, lambda record: record.rate)
        return rates + self._by_part("Gradient norm", epochs, lambda record: record.gradient_norm, is_log=True)

    def links(self) -> list[Panel]:
        """MB/s of each link and idle share of each worker of one run; several have a table of them."""
        run, epochs = self.alone, AXES["epoch"]
        if run is None:
            return []
        links = dict.fromkeys((source, target) for record in run.epochs for source, target, _ in record.bytes.latents)
        rates = [
            Line(
                name=f"part {source} to {target}",
                color=color_of(source),
                curve=curve_of(run, epochs, partial(_rate, link=(source, target))),
            )
            for source, target in [*links][:MOST_CURVES]
        ]
        workers = range(min(MOST_CURVES, max((len(record.idle or ()) for record in run.epochs), default=0)))
        idle = [
            Line(name=f"worker {rank}", color=color_of(rank), curve=curve_of(run, epochs, partial(_idle, rank=rank)))
            for rank in workers
        ]
        panels = [self._panel("MB/s of latents", epochs, _merged(rates))] if rates else []
        return panels + ([self._panel("Idle share of the time, %", epochs, idle, y_limits=(-2, 102))] if idle else [])

    def _by_part(
        self, title: str, axis: Axis, values: Callable[[Epoch], Mapping[str, float] | None], is_log: bool = False
    ) -> list[Panel]:
        """Of one run a panel with a curve for each part; of several a panel for each part with a curve for each run."""
        run = self.alone
        if run is not None:
            curves = curves_by_part(run, axis, values)
            lines = [
                Line(
                    name=_WHOLE if name == FLOW else name,
                    color="black" if name == FLOW else color_of(int(name.removeprefix("part "))),
                    curve=curve,
                )
                for name, curve in curves.items()
            ]
            return [self._panel(title, axis, _merged(lines), is_log=is_log)] if lines else []
        found = {name: curves_by_part(each, axis, values) for name, each in self.runs.items()}
        names = dict.fromkeys(name for curves in found.values() for name in curves)
        parts = sorted((name for name in names if name != FLOW), key=lambda name: int(name.removeprefix("part ")))
        return [
            self._panel(
                f"{title}, {_WHOLE if part == FLOW else part}",
                axis,
                self._by_run({name: curves[part] for name, curves in found.items() if part in curves}),
                is_log=is_log,
            )
            for part in [*parts[:_MOST_PARTS], *([FLOW] if FLOW in names else [])]
        ]

    def _by_run(self, curves: Mapping[str, Curve] | Callable[[Summary], Curve]) -> list[Line]:
        """A line for each run that has a curve."""
        found = curves if isinstance(curves, Mapping) else {name: curves(run) for name, run in self.runs.items()}
        return [
            Line(name=name, color=color_of(index), dash=dash_of(index), curve=found[name])
            for index, name in enumerate(self.runs)
            if name in found
        ]

    def _panel(
        self,
        title: str,
        axis: Axis,
        lines: Sequence[Line],
        y_limits: tuple[float, float] | None = None,
        is_log: bool = False,
        bands: Sequence[Band] = (),
    ) -> Panel:
        """The panel, its costs in the unit that suits the largest of them."""
        scale, unit = axis.unit(max(spans(run, axis)[-1][2] for run in self.runs.values()))
        labels = {
            "epoch": "epochs done",
            "seconds": f"training time ({unit})",
            "macs": f"multiply-adds{unit}",
            "bytes": f"{unit} {sent(self.runs.values())}",
        }
        lines = [replace(line, curve=([cost / scale for cost in line.curve[0]], line.curve[1])) for line in lines]
        return Panel(
            title=title,
            x_label=labels[axis.name],
            lines=tuple(lines),
            bands=tuple(replace(each, begin=each.begin / scale, end=each.end / scale) for each in bands),
            has_legend=self.alone is not None,
            has_whole_costs=axis.name == "epoch",
            y_limits=y_limits,
            is_log=is_log and _spread(lines) > _LOG_FROM,
        )


def _bands(run: Summary, axis: Axis) -> list[Band]:
    """The stretches of a run that cost something; none where they would be too narrow to be seen."""
    bands = []
    for (name, color), group in groupby(spans(run, axis), key=lambda span: band(span[0])):
        stretch = list(group)
        if stretch[-1][2] > stretch[0][1]:
            bands.append(Band(name=name, color=color, begin=stretch[0][1], end=stretch[-1][2]))
    return bands if len(bands) <= MOST_CURVES else []


def _merged(lines: Sequence[Line]) -> list[Line]:
    """Lines, those that lie on each other as one with all their names."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(repr(line.curve), []).append(line)
    return [replace(same[0], name=", ".join(line.name for line in same)) for same in found.values()]


def _spread(lines: Sequence[Line]) -> float:
    """How many times the smallest value the largest is, of those above 0."""
    values = [value for line in lines for value in line.curve[1] if value > 0 and math.isfinite(value)]
    return max(values) / min(values) if values else 1.0


def megabytes_per_second(record: Epoch) -> dict[tuple[int, int], float]:
    """Speed of each link in an epoch's training, latents forward, by the parts at its ends."""
    return {(source, target): count / 1e6 / record.seconds for source, target, count in record.bytes.latents}


def _rate(record: Epoch, link: tuple[int, int]) -> float | None:
    return megabytes_per_second(record).get(link)


def _idle(record: Epoch, rank: int) -> float | None:
    """A worker's idle share in percent."""
    return 100 * record.idle[rank] if record.idle is not None and rank < len(record.idle) else None
