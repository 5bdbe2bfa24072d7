"""How the workers of one attempt agree on a prefix for their keys in a store that may serve several attempts.

Nothing that a launcher tells its workers counts attempts: the torchruns of several machines each count the restarts that
they made themselves. So worker 0 draws the prefix, and gives it to those who are there now:

    worker k: arrived/<k> = a random word -> worker 0: answer/<word> = the prefix -> worker k: <prefix>/met/<k>

Each process draws a word of its own, so an answer that was meant for an attempt before reaches nobody.
"""

import secrets
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_POLL_SECONDS = 0.05


def agree_on_prefix(store: "Store", rank: int, world_size: int, timeout: float) -> str:
    """The prefix of this attempt's keys, the same on all workers, once all of them are there.

    store: waits for a key that is not there for as long as `timeout`, in seconds.

    Raises RuntimeError, which says who is missing, or is the store's own.
    """
    if rank == 0:
        return _give_prefix(store, {*range(1, world_size)}, timeout)
    word = secrets.token_hex(8)
    store.set(f"pipeflow/arrived/{rank}", word)
    prefix = store.get(f"pipeflow/answer/{word}").decode()
    store.set(f"{prefix}/met/{rank}", "")
    return prefix


def _give_prefix(store: "Store", missing: set[int], timeout: float) -> str:
    prefix = f"pipeflow/{secrets.token_hex(8)}"
    end = time.monotonic() + timeout
    while missing:
        for other in missing:
            # Maybe the word of an attempt before, until the worker of this one has replaced it.
            if store.check([f"pipeflow/arrived/{other}"]):
                word = store.get(f"pipeflow/arrived/{other}").decode()
                store.set(f"pipeflow/answer/{word}", prefix)
        missing = {other for other in missing if not store.check([f"{prefix}/met/{other}"])}
        if missing and time.monotonic() > end:
            raise RuntimeError(f"after {timeout:g} s without worker {', '.join(map(str, sorted(missing)))}")
        time.sleep(_POLL_SECONDS if missing else 0)
    return prefix
