"""Divides a sequence of costs into consecutive runs of nearly equal cost: layers into parts, parts onto workers."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


def balance(costs: Sequence[float], num: int) -> list[int]:
    """First index of each of `num` runs of consecutive items whose most expensive run is as cheap as possible.

    Among equally good divisions, the one with the smallest sum of squared costs wins. E.g. `balance([3, 1, 1, 1], 2)` is
    `[0, 1]`.
    """
    total = list(accumulate(costs, initial=0))
    largest = _least_largest(total, num)
    # By the end of the runs so far: their least sum of squared costs, and where each of them starts.
    best: dict[int, tuple[float, list[int]]] = {0: (0, [])}
    for left in reversed(range(num)):
        longer: dict[int, tuple[float, list[int]]] = {}
        for first, (squares, starts) in best.items():
            for end in range(first + 1, len(costs) - left + 1):
                cost = total[end] - total[first]
                if cost > largest:
                    break
                if end not in longer or squares + cost * cost < longer[end][0]:
                    longer[end] = (squares + cost * cost, [*starts, first])
        best = longer
    return best[len(costs)][1]


def owners_of(costs: Sequence[float], num_workers: int) -> list[int]:
    """Number of the worker that holds each of consecutive items, e.g. parts, when they are divided evenly."""
    starts = balance(costs, num_workers)
    return [sum(index >= start for start in starts) - 1 for index in range(len(costs))]


def _least_largest(total: Sequence[float], num: int) -> float:
    """Cost of the most expensive of `num` runs in the best division; total: costs up to each item, starting with 0."""

    def is_enough(bound: float) -> bool:
        """Whether `num` runs suffice if each is filled up to the bound. Fewer could be divided further."""
        first, runs = 0, 1
        for end in range(1, len(total)):
            if total[end] - total[first] > bound:
                first, runs = end - 1, runs + 1
                if total[end] - total[first] > bound:
                    return False
        return runs <= num

    candidates = sorted({end - first for index, first in enumerate(total) for end in total[index + 1 :]})
    return candidates[bisect_left(candidates, True, key=is_enough)]
