"""The division into runs of nearly equal cost against all divisions."""

import itertools

import pytest
import torch

from pipeflow.flow.balance import balance


def run_costs(costs, starts):
    return [sum(costs[first:last]) for first, last in zip(starts, [*starts[1:], len(costs)])]


def all_divisions(size, num):
    return [(0, *starts) for starts in itertools.combinations(range(1, size), num - 1)]


@pytest.mark.parametrize("size", range(1, 11))
@pytest.mark.parametrize("largest", [3, 1000])
def test_equals_brute_force(size, largest):
    generator = torch.Generator().manual_seed(size)
    for num in range(1, size + 1):
        costs = torch.randint(0, largest, (size,), generator=generator).tolist()

        def score(starts, costs=costs):
            runs = run_costs(costs, starts)
            return max(runs), sum(run**2 for run in runs)

        starts = balance(costs, num)
        assert starts[0] == 0 and starts == sorted(set(starts)) and len(starts) == num
        assert score(starts) == min(map(score, all_divisions(size, num)))


@pytest.mark.parametrize("seed", range(3))
def test_costs_may_be_measured_seconds(seed):
    costs = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    for num in range(1, 10):
        found = max(run_costs(costs, balance(costs, num)))
        assert found == pytest.approx(min(max(run_costs(costs, starts)) for starts in all_divisions(9, num)))


def test_among_equally_good_divisions_early_runs_are_short():
    assert balance([3, 1, 1, 1], 2) == [0, 1]
    assert balance([1] * 5, 3) == [0, 1, 3]
    assert balance([0, 0, 1], 2) == [0, 1]


def test_a_deep_flow_over_many_workers():
    starts = balance([1, 2, 2, 5] * 70, 200)
    assert len(starts) == 200 and max(run_costs([1, 2, 2, 5] * 70, starts)) == 5
