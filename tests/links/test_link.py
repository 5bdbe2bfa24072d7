"""Links: in order, bounded, one way, every byte counted; between processes and inside one."""

import pytest
import torch

from pipeflow.errors import WorkerError
from pipeflow.links.channel import EVALUATION, TRAINING, Channel
from pipeflow.links.link import LocalLink
from pipeflow.workers.traffic import Traffic
from tests.small_runs import errors_in, finish


def test_a_local_link_counts_the_bytes_it_hands_on_and_rounds_only_latents_of_training():
    traffic = Traffic()
    link = LocalLink(Channel(2, (3, 4, 4), "bfloat16"), traffic)
    latent = torch.randn(5, 3, 4, 4)
    link.send(TRAINING, 0, 0, latent)
    link.send(EVALUATION, 0, 0, latent)
    received = link.receive(TRAINING, 0, 0)
    assert received.dtype == torch.float32 and torch.equal(received, latent.bfloat16().float())
    assert torch.equal(link.receive(EVALUATION, 0, 0), latent)
    assert traffic.drain() == [("eval", 2, 3, 960), ("latents", 2, 3, 480)]


def test_another_step_than_expected_is_an_error_that_names_both():
    link = LocalLink(Channel(2, (3, 4, 4)), Traffic())
    link.send(TRAINING, 0, 1, torch.zeros(1, 3, 4, 4))
    with pytest.raises(WorkerError, match=r"link 2.*epoch 0, step 2.*epoch 0, step 1"):
        link.receive(TRAINING, 0, 2)


def test_a_micro_batch_is_named():
    link = LocalLink(Channel(2, (3, 4, 4), micro_batches=4), Traffic())
    for micro_batch in (0, 2):
        link.send(TRAINING, 0, 1, torch.zeros(1, 3, 4, 4), micro_batch)
    assert len(link.receive(TRAINING, 0, 1)) == 1
    with pytest.raises(WorkerError, match=r"step 1, micro-batch 1, but the latents of epoch 0, step 1, micro-batch 2"):
        link.receive(TRAINING, 0, 1, 1)


def test_between_processes(launch):
    """One after the other in the same two processes; the last one loses one of them."""
    programs = ["order", "late", "lost"]
    process = launch(2, *programs, entry="tests.links.both_ends:main")
    output = finish(process)
    assert process.returncode == 0, output
    for program in programs:
        for rank in (0, 1):
            assert f"{program} passed on rank {rank}" in output, output
    assert not errors_in(output)
