import math

import pytest
import torch

from pipeflow.config import Config
from pipeflow.flow import cut_names, glow, split_flow
from pipeflow.plan.predict.memory import Activations, copied_bytes, saved_bytes, trained_bytes
from pipeflow.training.trainer import PartTrainer


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    return glow((3, 16, 16), num_blocks=3, num_steps=2, width=8)


def test_what_is_counted_without_memory_is_what_a_real_forward_keeps(flow):
    """The flow's layers alone: `Part.forward` adds sums over the batch and the prior's."""
    for batch_size in (3, 8):
        kept = Activations(flow).of_layers(flow.names).at(batch_size)
        measured = saved_bytes(flow, torch.rand(batch_size, 3, 16, 16))
        assert kept == measured


def test_a_part_keeps_what_a_real_forward_of_it_keeps(flow):
    """Within 2 %: inside the flow a part's first layer also keeps what the gradient of its input needs."""
    counted = Activations(flow)
    for part in split_flow(flow, cut_names(flow, "across", 3)):
        measured = saved_bytes(part, torch.rand(8, *part.input_shape))
        assert counted.of(part).at(8) == pytest.approx(measured, rel=0.02)


def test_weights_gradients_and_moments(flow):
    part = split_flow(flow, [])[0]
    num_bytes = 4 * sum(parameter.numel() for parameter in part.parameters())
    buffers = sum(buffer.nbytes for buffer in part.buffers())
    assert trained_bytes([part], ema=False) == 4 * num_bytes + buffers
    assert trained_bytes([part], ema=True) == 5 * num_bytes + buffers


@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_copies_what_a_trainer_holds(flow, ema):
    config = Config.from_dict({"optim": {"ema": 0.9 if ema else 0.0}})
    for part in split_flow(flow, cut_names(flow, "across", 3)):
        trainer = PartTrainer(part, torch.device("cpu"), config, 1e-3, 1)
        trainer.load_training({}, {}, same_stage=True)
        _, loss = trainer.forward(torch.rand(2, *part.input_shape) - 0.5)
        trainer.update(loss)
        assert copied_bytes([part], ema) == sum(tensor.nbytes for tensor in trainer.tensors().values())


def test_recomputing_keeps_the_inputs_and_one_layer(flow):
    counted = Activations(flow, "recompute").of_layers(flow.names)
    kept = Activations(flow)
    fullest = max(kept.of_layers([name]).at(8) for name in flow.names)
    inputs = 8 * 4 * sum(math.prod(shape) for shape in flow.shapes[:-1])
    assert counted.at(8) == inputs + fullest
    assert counted.at(8) < kept.of_layers(flow.names).at(8) / 2


def test_inverting_keeps_the_two_ends_what_was_taken_out_and_one_layer(flow):
    counted = Activations(flow, "invert").of_layers(flow.names)
    kept = Activations(flow)
    fullest = max(kept.of_layers([name]).at(8) for name in flow.names)
    first, last = (8 * 4 * math.prod(shape) for shape in (flow.shapes[0], flow.shapes[-1]))
    assert counted.at(8) == fullest + first + last + (first - last)
