"""Divides a sequence of costs into consecutive runs of nearly equal cost: layers into parts, parts onto workers."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


def balance(
    costs: Sequence[float], num: int, endings: Sequence[float] | None = None, share_of_last: float = 1
) -> list[int]:
    """First index of each of `num` runs of consecutive items whose most expensive run is as cheap as possible.

    Among equally good divisions, the one with the smallest sum of squared costs wins. E.g. `balance([3, 1, 1, 1], 2)` is
    `[0, 1]`.

    Args:
        endings: what a run costs beside its items, by its last item: 0 or more; nothing if None.
        share_of_last: factor on the costs of the last run's items: 0 to 1.
    """
    runs = _Runs(list(accumulate(costs, initial=0)), [0, *(endings or [0] * len(costs))], share_of_last)
    ends = range(1, len(costs) + 1)
    bounds = sorted({runs.cost(first, end) for end in ends for first in range(end)})
    least = bisect_left(bounds, True, key=lambda bound: _is_enough(bound, runs, num))
    divisions = (_divide(bound, runs, num) for bound in bounds[least:])
    return next(starts for starts in divisions if starts is not None)  # exactly `num` runs may need more


@dataclass(frozen=True)
class _Runs:
    """Costs of all runs. total: of the items before each; endings: beside them, by the first item behind the run."""

    total: Sequence[float]
    endings: Sequence[float]
    share_of_last: float

    def cost(self, first: int, end: int) -> float:
        """Cost of items `first` to `end`, exclusive."""
        items = self.total[end] - self.total[first]
        return (items if end < len(self.total) - 1 else self.share_of_last * items) + self.endings[end]


def _divide(largest: float, runs: _Runs, num: int) -> list[int] | None:
    """Starts of `num` runs, none dearer than `largest`, with the least sum of squared costs; None if there are none."""
    num_items = len(runs.total) - 1
    # By the end of the runs so far: their least sum of squared costs, and where each of them starts.
    best: dict[int, tuple[float, list[int]]] = {0: (0, [])}
    for left in reversed(range(num)):
        longer: dict[int, tuple[float, list[int]]] = {}
        for first, (squares, starts) in best.items():
            for end in range(first + 1, num_items - left + 1) if left else [num_items]:
                if left and runs.total[end] - runs.total[first] > largest:
                    break
                cost = runs.cost(first, end)
                if cost <= largest and (end not in longer or squares + cost * cost < longer[end][0]):
                    longer[end] = (squares + cost * cost, [*starts, first])
        best = longer
    return best[num_items][1] if num_items in best else None


def owners_of(costs: Sequence[float], num_workers: int) -> list[int]:
    """Number of the worker that holds each of consecutive items, e.g. parts, when they are divided evenly."""
    starts = balance(costs, num_workers)
    return [sum(index >= start for start in starts) - 1 for index in range(len(costs))]


def _is_enough(bound: float, runs: _Runs, num: int) -> bool:
    """Whether `num` runs suffice if each goes as far as the bound allows. Fewer could be divided further."""
    total, first = runs.total, 0
    for _ in range(num):
        if runs.cost(first, len(total) - 1) <= bound:
            return True
        end = min(bisect_right(total, total[first] + bound), len(total) - 1) - 1
        while end + 1 < len(total) - 1 and total[end + 1] - total[first] <= bound:  # the sum above may be rounded down
            end += 1
        while end > first and runs.cost(first, end) > bound:
            end -= 1
        if end == first:
            return False
        first = end
    return False
