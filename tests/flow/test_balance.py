"""The division into runs of nearly equal cost against all divisions."""

import itertools

import pytest
import torch

from pipeflow.flow.balance import balance


@pytest.mark.parametrize("size", range(1, 11))
@pytest.mark.parametrize("largest", [3, 1000, 1.0], ids=["many equal", "few equal", "seconds"])
@pytest.mark.parametrize("has_endings", [False, True])
@pytest.mark.parametrize("share", [1, 0.75, 0.1])
def test_equals_brute_force(size, largest, has_endings, share):
    generator = torch.Generator().manual_seed(size)
    for num in range(1, size + 1):
        costs = (largest * torch.rand(size, generator=generator, dtype=torch.float64)).tolist()
        endings = (has_endings * largest * torch.rand(size, generator=generator, dtype=torch.float64)).tolist()
        if largest > 1:
            costs, endings = [int(cost) for cost in costs], [int(ending) for ending in endings]

        def score(starts, costs=costs, endings=endings):
            bounds = zip(starts, [*starts[1:], len(costs)])
            shares = [1] * (len(starts) - 1) + [share]
            runs = [own * sum(costs[first:last]) + endings[last - 1] for own, (first, last) in zip(shares, bounds)]
            return max(runs), sum(run**2 for run in runs)

        starts = balance(costs, num, endings if has_endings else None, share)
        assert starts[0] == 0 and starts == sorted(set(starts)) and len(starts) == num
        divisions = ([0, *rest] for rest in itertools.combinations(range(1, size), num - 1))
        assert score(starts) == pytest.approx(min(map(score, divisions)))


def test_among_equally_good_divisions_early_runs_are_short():
    assert balance([3, 1, 1, 1], 2) == [0, 1]
    assert balance([1] * 5, 3) == [0, 1, 3]
    assert balance([0, 0, 1], 2) == [0, 1]
    assert len(balance([1, 2, 2, 5] * 70, 200)) == 200
