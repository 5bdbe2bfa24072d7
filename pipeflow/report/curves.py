"""Runs as curves: test bits/dim over each of four costs (`AXES`), which are epochs, seconds, multiply-adds and bytes."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeflow.rundir.records import Epoch, Summary
from pipeflow.units import BYTE_UNITS, TIME_UNITS

Curve = tuple[list[float], list[float]]
"""Costs and the bits/dim reached at them."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A cost to plot bits/dim over: what an epoch adds to it, and what the gather does."""

    name: str
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
        Axis(name="epoch", label="epochs done", of_epoch=lambda record: 1),
        Axis(
            name="seconds",
            label="training time with the gather, without evaluation ({unit})",
            of_epoch=lambda record: record.seconds,
            of_gather=lambda run: run.seconds.gather,
            units=TIME_UNITS,
        ),
        Axis(
            name="macs",
            label="training multiply-adds{unit}",
            of_epoch=lambda record: record.macs,
            units=((1, ""), *((10.0**power, f" ($10^{{{power}}}$)") for power in range(3, 25, 3))),
        ),
        Axis(
            name="bytes",
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
    measured = [(end, record.test_bpd) for record, _, end in spans(run, axis) if record is not None]
    return _curve([(0.0, run.initial_bpd), *((end, bpd) for end, bpd in measured if bpd is not None)])


def exit_curves(run: Summary, axis: Axis) -> list[Curve]:
    """The exit bits/dim of all parts but the last (whose exit is the whole flow), while there are heads."""
    points = [(end, record.exit_bpd) for record, _, end in spans(run, axis) if record and record.exit_bpd]
    num_parts = max((len(exits) for _, exits in points), default=0)
    return [
        _curve([(end, exits[part]) for end, exits in points if part < len(exits) - 1]) for part in range(num_parts - 1)
    ]


def _curve(points: list[tuple[float, float]]) -> Curve:
    """Numbers that are not finite leave gaps."""
    return [cost for cost, _ in points], [bpd if math.isfinite(bpd) else math.nan for _, bpd in points]
