"""Bytes that a worker sends, and its share of a batch."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeflow.workers.replicas import Replicas, share_of
from pipeflow.workers.traffic import Traffic


def test_counts_by_kind_and_ends_once():
    traffic = Traffic()
    for payload in [("latents", 0, 1, 5), ("eval", 0, 1, 7), ("latents", 1, 2, 1), ("latents", 0, 1, 6)]:
        traffic.add(*payload)
    assert traffic.drain() == [("eval", 0, 1, 7), ("latents", 0, 1, 11), ("latents", 1, 2, 1)]
    assert traffic.drain() == []
    traffic.add("latents", 0, 1, 2)
    assert traffic.drain() == [("latents", 0, 1, 2)]
    assert traffic.training == 14, "evaluation is not training"


def test_nothing_is_lost_between_threads():
    """Four threads add while this one drains; each addition is slow enough for another thread to come between."""

    class SlowBytes(int):
        def __radd__(self, other):
            time.sleep(1e-4)
            return int(other) + int(self)

    traffic, drained = Traffic(), []

    def add(source: int) -> None:
        for _ in range(50):
            traffic.add("latents", source % 2, 1, SlowBytes(3))

    with ThreadPoolExecutor() as adders:
        adding = [adders.submit(add, source) for source in range(4)]
        while not all(each.done() for each in adding):
            drained += traffic.drain()
    drained += traffic.drain()
    assert traffic.training == sum(count for *_, count in drained) == 4 * 50 * 3
    assert sum(count for _, source, _, count in drained if source == 1) == 2 * 50 * 3


@pytest.mark.parametrize("num_replicas", range(1, 9))
@pytest.mark.parametrize("batch_size", [8, 9, 15, 64])
def test_shares_cover_the_batch_in_order_and_differ_by_one_at_most(batch_size, num_replicas):
    images = list(range(batch_size))
    shares = [images[share_of(batch_size, num_replicas, index)] for index in range(num_replicas)]
    assert list(itertools.chain(*shares)) == images
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1 <= min(sizes)
    replicas = Replicas(tuple(range(num_replicas)), 0)
    assert sum(replicas.weight(batch_size, rank) for rank in range(num_replicas)) == pytest.approx(1)
