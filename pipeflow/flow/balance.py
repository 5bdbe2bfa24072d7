"""Divides a sequence of costs into consecutive runs of nearly equal cost: layers into parts, parts onto workers."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate


def balance(costs: Sequence[float], num: int, endings: Sequence[float] | None = None) -> list[int]:
    """First index of each of `num` runs of consecutive items whose most expensive run is as cheap as possible.

    Among equally good divisions, the one with the smallest sum of squared costs wins. E.g. `balance([3, 1, 1, 1], 2)` is
    `[0, 1]`.

    endings: what a run costs beside its items, by its last item: 0 or more; nothing if None.
    """
    total = list(accumulate(costs, initial=0))
    up_to = total if endings is None else [0, *(cost + ending for cost, ending in zip(total[1:], endings))]
    bounds = sorted({end - first for index, first in enumerate(total) for end in up_to[index + 1 :]})
    least = bisect_left(bounds, True, key=lambda bound: _is_enough(bound, total, up_to, num))
    divisions = (_divide(bound, total, up_to, num) for bound in bounds[least:])
    return next(starts for starts in divisions if starts is not None)  # dearer endings than the least may be needed


def _divide(largest: float, total: Sequence[float], up_to: Sequence[float], num: int) -> list[int] | None:
    """Starts of `num` runs of which none costs more than `largest`, with the least sum of squares; None if there are none.

    total: costs up to each item, starting with 0; up_to: the same with what a run costs that ends there.
    """
    # By the end of the runs so far: their least sum of squared costs, and where each of them starts.
    best: dict[int, tuple[float, list[int]]] = {0: (0, [])}
    for left in reversed(range(num)):
        longer: dict[int, tuple[float, list[int]]] = {}
        for first, (squares, starts) in best.items():
            for end in range(first + 1, len(total) - left):
                if total[end] - total[first] > largest:
                    break
                cost = up_to[end] - total[first]
                if cost <= largest and (end not in longer or squares + cost * cost < longer[end][0]):
                    longer[end] = (squares + cost * cost, [*starts, first])
        best = longer
    return best[len(total) - 1][1] if len(total) - 1 in best else None


def owners_of(costs: Sequence[float], num_workers: int) -> list[int]:
    """Number of the worker that holds each of consecutive items, e.g. parts, when they are divided evenly."""
    starts = balance(costs, num_workers)
    return [sum(index >= start for start in starts) - 1 for index in range(len(costs))]


def _is_enough(bound: float, total: Sequence[float], up_to: Sequence[float], num: int) -> bool:
    """Whether `num` runs suffice if each goes as far as the bound allows. Fewer could be divided further."""
    first, runs = 0, 0
    while first < len(total) - 1:
        end = bisect_right(total, total[first] + bound) - 1
        while end + 1 < len(total) and total[end + 1] - total[first] <= bound:  # the sum above may be rounded down
            end += 1
        while end > first and up_to[end] - total[first] > bound:
            end -= 1
        if end == first or runs == num:
            return False
        first, runs = end, runs + 1
    return True
