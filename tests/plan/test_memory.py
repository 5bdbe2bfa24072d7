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


@pytest.fixture(scope="module")
def counted(flow):
    return Activations(flow)


def test_what_is_counted_without_memory_is_what_a_real_forward_keeps(flow, counted):
    """The flow's layers alone: `Part.forward` adds sums over the batch and the prior's."""
    for batch_size in (3, 8):
        measured = saved_bytes(flow, torch.rand(batch_size, 3, 16, 16))
        assert counted.of_layers(flow.names).at(batch_size) == measured


def test_a_part_keeps_what_a_real_forward_of_it_keeps(flow, counted):
    """Within 2 %: inside the flow a part's first layer also keeps what the gradient of its input needs."""
    for part in split_flow(flow, cut_names(flow, "across", 3)):
        measured = saved_bytes(part, torch.rand(8, *part.input_shape))
        assert counted.of(part).at(8) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("ema", [False, True])
def test_what_is_trained_is_counted_and_a_checkpoint_copies_what_a_trainer_holds(flow, ema):
    config = Config.from_dict({"optim": {"ema": 0.9 if ema else 0.0}})
    for part in split_flow(flow, cut_names(flow, "across", 3)):
        trainer = PartTrainer(part, torch.device("cpu"), config, 1e-3, 1)
        trainer.load_training({}, {}, same_stage=True)
        _, loss = trainer.forward(torch.rand(2, *part.input_shape) - 0.5)
        trainer.update(loss)
        held = sum(tensor.nbytes for tensor in trainer.tensors().values())
        gradients = 4 * sum(parameter.numel() for parameter in part.parameters())
        assert copied_bytes([part], ema) == held == trained_bytes([part], ema) - gradients


def test_beside_one_layer_recomputing_keeps_all_inputs_and_inverting_the_ends_and_what_was_taken_out(flow, counted):
    fullest = max(counted.of_layers([name]).at(8) for name in flow.names)
    inputs = [8 * 4 * math.prod(shape) for shape in flow.shapes]
    recomputing, inverting = (
        Activations(flow, activations).of_layers(flow.names).at(8) for activations in ("recompute", "invert")
    )
    assert recomputing == fullest + sum(inputs[:-1])
    assert inverting == fullest + inputs[0] + inputs[-1] + (inputs[0] - inputs[-1])
    assert inverting < recomputing < counted.of_layers(flow.names).at(8) / 2
