import pytest
import torch

from pipeflow.flow import cut_names, glow, split_flow
from pipeflow.plan.traffic import eval_link_bytes, gather_bytes, gradient_bytes, latent_bytes, phase_link_bytes
from pipeflow.training.schedule import Phase


@pytest.fixture(scope="module")
def parts():
    """Latents of 12 x 16 x 16 = 3072 and 24 x 8 x 8 = 1536 values behind the first two of three parts."""
    torch.manual_seed(0)
    flow = glow((3, 32, 32), num_blocks=3, num_steps=2, width=4)
    return split_flow(flow, cut_names(flow, "across", 3))


def test_bytes_of_a_latent_and_in_an_evaluation_they_are_float32(parts):
    assert latent_bytes(parts[0], 10, "float32") == 3072 * 10 * 4
    assert latent_bytes(parts[1], 10, "bfloat16") == 1536 * 10 * 2
    assert latent_bytes(parts[1], 10, "int8") == 1536 * 10 + 24 * 8
    assert latent_bytes(parts[1], 10, "int8", messages=4) == 1536 * 10 + 4 * 24 * 8
    assert latent_bytes(parts[1], 10, "bfloat16", messages=4) == 1536 * 10 * 2
    assert eval_link_bytes(parts, 100) == [3072 * 100 * 4, 1536 * 100 * 4]


@pytest.mark.parametrize(
    "mode, turns, first, second",
    [
        ("concurrent", ((0, 1, 2),), 6, 6),
        ("sequential", ((1,),), 6, 0),
        ("sequential", ((2,),), 6, 6),
        ("alternate", ((0,), (1,), (2,)), 4, 2),  # a turn a batch: 2 of 6 batches end at each part
        ("finetune", ((0, 1, 2),), 0, 0),
    ],
)
def test_a_link_carries_what_the_part_behind_it_runs_on(parts, mode, turns, first, second):
    phase = Phase(epoch=0, mode=mode, steps=6, turns=turns, turn_steps=1)
    assert phase_link_bytes(phase, parts, 10, "bfloat16") == [first * 3072 * 10 * 2, second * 1536 * 10 * 2]


def test_bytes_of_the_gather_are_those_of_the_flow_without_heads(parts):
    num_parameters = [part.describe()["parameters"] for part in parts]
    prior = 2 * 48  # mean and log-scale of the flow's own prior, which is the last part's head
    buffers = sum(tensor.nbytes for part in parts[1:] for tensor in part.layers.buffers())
    expected = 4 * (num_parameters[1] + num_parameters[2] + prior)
    counts = gather_bytes(parts, [0, 1, 2], trained={0, 1, 2}, ema=True)
    assert counts == {"parameters": expected + buffers, "optimizer": 2 * expected, "ema": expected}
    counts = gather_bytes(parts, [0, 0, 1], trained={0, 1}, ema=False)
    buffers = sum(tensor.nbytes for tensor in parts[2].layers.buffers())
    assert counts == {"parameters": 4 * (num_parameters[2] + prior) + buffers, "optimizer": 0, "ema": 0}


def test_bytes_of_gradients_are_those_of_a_ring(parts):
    num_parameters = sum(part.describe()["parameters"] for part in parts) + 2 * 48
    assert gradient_bytes(parts, 4, steps=10) == 2 * 3 * num_parameters * 4 * 10
