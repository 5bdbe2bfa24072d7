"""Workers of one attempt agree on a prefix, whatever attempts before them have left in the store."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from pipeflow.workers.meeting import agree_on_prefix


def agreed(store: HashStore, world_size: int) -> set[str]:
    """The prefixes of the workers of one attempt. Worker 0 is the last to come."""
    with ThreadPoolExecutor(world_size) as pool:
        others = [pool.submit(agree_on_prefix, store, rank, world_size, 30) for rank in range(1, world_size)]
        first = pool.submit(agree_on_prefix, store, 0, world_size, 30)
        return {each.result(60) for each in [first, *others]}


def test_each_attempt_has_a_prefix_of_its_own_that_all_of_its_workers_know():
    store = HashStore()
    found = [agreed(store, world_size) for world_size in (3, 3, 2, 3)]
    assert all(len(prefixes) == 1 for prefixes in found)
    assert len(set.union(*found)) == 4


def test_a_worker_that_was_lost_before_its_answer_is_not_taken_for_the_one_that_follows():
    store = HashStore()
    store.set("pipeflow/arrived/1", "the word of a process that is gone")
    (prefix,) = agreed(store, 2)
    assert store.check([f"{prefix}/met/1"])


def test_the_error_says_who_has_not_come():
    store = HashStore()
    store.set_timeout(timedelta(seconds=5))
    store.set("pipeflow/arrived/1", "gone")
    with pytest.raises(RuntimeError, match="after 0 s without worker 1, 2$"):
        agree_on_prefix(store, 0, 3, timeout=0)
