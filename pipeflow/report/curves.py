"""Runs as curves: values over each of four costs (`AXES`), which are epochs, seconds, multiply-adds and bytes."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from pipeflow.rundir.records import Epoch, Summary
from pipeflow.units import BYTE_UNITS, TIME_UNITS

Curve = tuple[list[float], list[float]]
"""Costs, ascending, and the values reached at them."""

MOST_CURVES = 256
"""Of parts, links or workers in one picture; a file may tell of any number."""

FLOW = "flow"
"""The name of the whole flow among those of parts."""

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A cost to plot values over: what an epoch adds to it, and what the gather does."""

    name: str
    word: str
    """The name in words."""
    label: str
    """`{unit}` stands for the unit that suits the largest value, `{sent}` for what `sent` says of the runs."""
    of_epoch: Callable[[Epoch], float]
    of_gather: Callable[[Summary], float] = lambda run: 0
    units: tuple[tuple[float, str], ...] = ((1, ""),)
    """Size and name of each unit, ascending."""

    def unit(self, largest: float) -> tuple[float, str]:
        """The largest unit of which `largest` is at least two."""
        return next((unit for unit in reversed(self.units) if largest >= 2 * unit[0]), self.units[0])


AXES = {
    axis.name: axis
    for axis in (
        Axis(name="epoch", word="epochs", label="epochs done", of_epoch=lambda record: 1),
        Axis(
            name="seconds",
            word="seconds",
            label="training time with the gather, without evaluation ({unit})",
            of_epoch=lambda record: record.seconds,
            of_gather=lambda run: run.seconds.gather,
            units=TIME_UNITS,
        ),
        Axis(
            name="macs",
            word="multiply-adds",
            label="training multiply-adds{unit}",
            of_epoch=lambda record: record.macs,
            units=((1, ""), *((10.0**power, f" (10{power})".translate(_SUPERSCRIPTS)) for power in range(3, 25, 3))),
        ),
        Axis(
            name="bytes",
            word="bytes",
            label="{sent} in training and the gather, without evaluation and control ({unit})",
            of_epoch=lambda record: record.training_bytes,
            of_gather=lambda run: sum(run.bytes.gather.values()),
            units=BYTE_UNITS,
        ),
    )
}


def sent(runs: Iterable[Summary]) -> str:
    """The word for the bytes of runs: those of a single process are what as many workers as parts would send."""
    words = {"would travel" if run.wire is False else "sent" for run in runs}
    return " or ".join(sorted(words))


def spans(run: Summary, axis: Axis) -> list[tuple[Epoch | None, float, float]]:
    """Where each epoch begins and ends on an axis: `(record, begin, end)`; the gather's record is None."""
    records: list[Epoch | None] = list(run.epochs)
    first_finetune = next((i for i, record in enumerate(run.epochs) if record.phase == "finetune"), len(records))
    records.insert(first_finetune, None)
    result, begin = [], 0.0
    for record in records:
        end = begin + (axis.of_gather(run) if record is None else axis.of_epoch(record))
        result.append((record, begin, end))
        begin = end
    return result


def test_curve(run: Summary, axis: Axis) -> Curve:
    """The whole flow's test bits/dim, from before training on. Epochs without evaluation are left out."""
    return curve_of(run, axis, lambda record: record.test_bpd, run.initial_bpd)


def exit_curves(run: Summary, axis: Axis) -> list[Curve]:
    """The exit bits/dim of all parts but the last (whose exit is the whole flow), while there are heads."""
    num_parts = max((len(record.exit_bpd) for record in run.epochs if record.exit_bpd), default=0)
    num_parts = min(num_parts, MOST_CURVES)

    def exit_of(part: int) -> Callable[[Epoch], float | None]:
        return lambda record: record.exit_bpd[part] if record.exit_bpd and part < len(record.exit_bpd) - 1 else None

    return [curve_of(run, axis, exit_of(part)) for part in range(num_parts - 1)]


def curves_by_part(run: Summary, axis: Axis, values: Callable[[Epoch], Mapping[str, float] | None]) -> dict[str, Curve]:
    """A curve for each part that has values, by its name, and one for the whole flow, called `FLOW`.

    values: of an epoch, by the part's index as text; in an epoch of the whole flow they are its, whatever stands there.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for record, _, end in spans(run, axis):
        of_epoch = {} if record is None else values(record) or {}
        for part, value in of_epoch.items():
            name = f"part {part}" if record is not None and record.is_local else FLOW
            is_known = name == FLOW or re.fullmatch("part [0-9]{1,6}", name) is not None
            if is_known and (name in found or len(found) < MOST_CURVES):
                found.setdefault(name, []).append((end, value))
    names = sorted(found, key=lambda name: (name == FLOW, len(name), name))
    return {name: _curve(found[name]) for name in names}


def curve_of(run: Summary, axis: Axis, value: Callable[[Epoch], float | None], initial: float | None = None) -> Curve:
    """An epoch's value over a cost; epochs without it are left out.

    initial: the value before training.
    """
    points = [] if initial is None else [(0.0, initial)]
    for record, _, end in spans(run, axis):
        found = None if record is None else value(record)
        if found is not None:
            points.append((end, found))
    return _curve(points)


def _curve(points: Iterable[tuple[float, float]]) -> Curve:
    """A curve, with gaps for values that are not finite.

    Points of one cost, as of epochs that send nothing, would be a vertical line: the last stands for all. Where they end
    the curve, it stands by itself, for a gather of few bytes before them makes the line as good as vertical.
    """
    groups = [(cost, [value for _, value in group]) for cost, group in groupby(points, key=itemgetter(0))]
    costs = [cost for cost, _ in groups]
    values = [group[-1] if math.isfinite(group[-1]) else math.nan for _, group in groups]
    if len(groups) > 1 and len(groups[-1][1]) > 1:
        costs.insert(-1, costs[-1])
        values.insert(-1, math.nan)
    return costs, values


def alone(curve: Curve) -> Curve:
    """The points of a curve between two gaps, which no line shows."""
    values = [math.nan, *curve[1], math.nan]
    places = [
        place
        for place in range(len(curve[1]))
        if not math.isnan(values[place + 1]) and math.isnan(values[place]) and math.isnan(values[place + 2])
    ]
    return [curve[0][place] for place in places], [curve[1][place] for place in places]


def limits(curves: Iterable[Curve], initial: float | None = None) -> tuple[float, float]:
    """The values between which curves are shown; a diverging one leaves the picture a quarter above the initial value."""
    values = [value for _, shown in curves for value in shown if not math.isnan(value)] or [0.0]
    top, bottom = max(values), min(values)
    if initial is not None:
        top = max(bottom, min(top, initial + 0.25 * max(abs(initial), 1)))
    margin = 0.04 * (top - bottom) or 0.1
    return bottom - margin, top + margin


def limits_at_end(curves: Iterable[Curve], whole: tuple[float, float]) -> tuple[float, float]:
    """The values between which the ends of curves are told apart; `whole` are those of `limits`."""
    top = whole[1]
    last = [value[-1] for _, shown in curves if (value := [each for each in shown if not math.isnan(each)])]
    if not last:
        return whole
    lowest = min(last)
    close_top = min(max(lowest + 0.15 * (top - lowest), max(last) + 0.02 * (top - lowest)), top)
    return whole if close_top == top else (lowest - 0.1 * (close_top - lowest), close_top)
