"""Both ends of a real link over gloo, for two workers: their arguments are functions of this file, `lost` as the last.

Prints 'NAME passed on rank R'.
"""

import os
import threading
import time

import pytest
import torch
import torch.distributed as dist

from pipeflow.config import LinkConfig, TimelineConfig
from pipeflow.errors import WorkerError
from pipeflow.links.channel import EVALUATION, TRAINING, Channel
from pipeflow.links.link import LinkEnd, ReceivingEnd, SendingEnd
from pipeflow.links.wire import make_wire
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.timeline import Timeline
from pipeflow.workers.traffic import Traffic

CHANNEL = Channel(0, (2, 3), "bfloat16")
DEPTH = 3
CPU = torch.device("cpu")


def end(rank: int, timeout: float = 60.0, channel: Channel = CHANNEL) -> LinkEnd:
    """A sending end on rank 0, a receiving one on rank 1."""
    wire = make_wire(dist.new_group([0, 1], backend="gloo"), None, 1 - rank, CPU)
    kind = SendingEnd if rank == 0 else ReceivingEnd
    config, timeline = LinkConfig(depth=DEPTH, timeout_s=timeout), Timeline(TimelineConfig(), CPU)
    return kind(channel, wire, config, Traffic(), Alarm(rank), timeline)


def latent(step: int) -> torch.Tensor:
    return torch.full((step % 4 + 1, 2, 3), float(step))


def order(rank: int) -> None:
    """The sender runs ahead by `depth` batches at each end, then waits for the receiver; all arrive in order, as float32.

    Bytes are counted where they are sent.
    """
    link = end(rank)
    if rank == 0:
        sent: list[int] = []

        def run() -> None:
            for step in range(40):
                link.send(TRAINING, 1, step, latent(step))
                sent.append(step)

        thread = threading.Thread(target=run)
        thread.start()
        while len(sent) < 2 * DEPTH:  # so far it must come without anything being received
            time.sleep(0.01)
        dist.barrier()
        thread.join(0.5)
        assert thread.is_alive() and len(sent) == 2 * DEPTH, len(sent)
        dist.barrier()
        thread.join()
        link.send(EVALUATION, 1, 0, latent(2) / 3)
    else:
        dist.barrier()
        dist.barrier()
        for step in range(40):
            assert torch.equal(link.receive(TRAINING, 1, step), latent(step))
        assert torch.equal(link.receive(EVALUATION, 1, 0), latent(2) / 3)
    link.close()
    values = sum(latent(step).numel() for step in range(40))
    control = (41 + DEPTH) * 40  # with the headers that close the link
    counts = {"latents": 2 * values, "eval": 4 * latent(2).numel(), "control": control} if rank == 0 else {}
    assert {kind: count for kind, _, _, count in link.traffic.drain()} == counts, "nothing ever goes back"


def late(rank: int) -> None:
    """A latent that does not come in time names the link, the worker and what was waited for.

    Those of the first two batches may take longer, each micro-batch of them.
    """
    link = end(rank, 0.5, Channel(0, (2, 3), "bfloat16", micro_batches=2))
    for step in (7, 8):
        if rank == 0:
            time.sleep(1.0)
        for micro_batch in (0, 1):
            if rank == 0:
                link.send(TRAINING, 2, step, latent(step), micro_batch)
            else:
                assert torch.equal(link.receive(TRAINING, 2, step, micro_batch), latent(step))
    if rank == 1:
        with pytest.raises(WorkerError) as caught:
            link.receive(TRAINING, 2, 9)
        assert all(text in str(caught.value) for text in ("link 0", "worker 0", "0.5 s", "epoch 2, step 9"))
    dist.barrier()


def lost(rank: int) -> None:
    """A worker that is gone is named at once by whoever waits for it."""
    link = end(rank)
    if rank == 0:
        print("lost passed on rank 0", flush=True)
        os._exit(0)
    with pytest.raises(
        WorkerError,
        match=r"worker 0 was lost: link 0 .* broke, while worker 1 (waited for the latents of epoch 0, step 0|computed)",
    ):
        link.receive(TRAINING, 0, 0)
    print("lost passed on rank 1", flush=True)
    os._exit(0)


def main(arguments: list[str]) -> None:
    dist.init_process_group("gloo")
    for name in arguments:
        globals()[name](dist.get_rank())
        print(f"{name} passed on rank {dist.get_rank()}\n", end="", flush=True)
        dist.barrier()
