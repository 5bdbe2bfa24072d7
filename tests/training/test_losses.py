"""The losses of a phase: their means, and what stops a run."""

import math

import pytest
import torch

from pipeflow.errors import TrainingStopped
from pipeflow.training.losses import LARGEST_LOSS, Losses

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, GPU])
def test_mean_of_each_part(device):
    """40 losses: on a GPU two looks at 16, and the rest at the end."""
    losses = Losses(3, device)
    for step in range(40):
        losses.add("0", step, torch.tensor(float(step)))
        losses.add("2", step, torch.tensor(5.0 if step else -1.0, dtype=torch.float64))
    for _ in range(2):
        assert losses.means() == {"0": 19.5, "2": (39 * 5 - 1) / 40}
    assert Losses(0, device).means() == {}


@pytest.mark.parametrize(
    "value, shown", [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (1.5 * LARGEST_LOSS, "15000")]
)
def test_stops_at_once_and_names_part_epoch_and_step(value, shown):
    losses = Losses(7, CPU)
    losses.add("1", 0, torch.tensor(2.0))
    with pytest.raises(TrainingStopped) as error:
        losses.add("1", 12, torch.tensor(value))
    assert str(error.value) == f"the training loss of part 1 became {shown} bits/dim in epoch 7, step 12"


@pytest.mark.parametrize("value", [LARGEST_LOSS, -2 * LARGEST_LOSS, 0.0])
def test_takes_what_is_a_number(value):
    """A density may be as high as it likes: only a loss that is too large is a divergence."""
    losses = Losses(0, CPU)
    losses.add("0", 0, torch.tensor(value))
    assert losses.means() == {"0": value}


def test_on_a_gpu_the_step_that_failed_is_named_not_the_one_that_looked():
    losses = Losses(2, GPU)
    for step in range(31):  # 16 are on their way when the next 16 begin
        losses.add("0", step, torch.tensor(math.nan if step == 4 else 1.0))
    with pytest.raises(TrainingStopped, match=r"part 0 became nan .* epoch 2, step 4$"):
        losses.add("0", 31, torch.tensor(1.0))


def test_recovered_activations_that_are_too_far_off_stop_the_run():
    losses = Losses(2, CPU, max_error=1e-3)
    losses.add("1", 4, torch.tensor(2.0), torch.tensor(9e-4))
    with pytest.raises(TrainingStopped, match=r"part 1 .* off by 2.0e-03 in epoch 2, before step 5, .*max_error 0.001"):
        losses.add("1", 5, torch.tensor(2.0), torch.tensor(2e-3))


def test_recovered_activations_that_are_no_number_stop_it_at_the_end_of_the_phase():
    losses = Losses(2, GPU, max_error=1e-3)
    losses.add("1", 5, torch.tensor(2.0), torch.tensor(math.nan))
    with pytest.raises(TrainingStopped, match="off by nan"):
        losses.means()


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_batch_in_micro_batches_has_their_weighted_mean_and_their_largest_error(device):
    losses = Losses(0, device, max_error=0.5)
    for step, error in enumerate([0.1, 0.4]):
        losses.add("0", step, torch.tensor(4.0), torch.tensor(error), 0.25, is_last=False)
        losses.add("1", step, torch.tensor(7.0))
        losses.add("0", step, torch.tensor(8.0), torch.tensor(0.1), 0.75)
    assert losses.values() == {"0": [7.0, 7.0], "1": [7.0, 7.0]}
    with pytest.raises(TrainingStopped, match=r"off by 6.0e-01 in epoch 0, before step 2"):
        losses.add("0", 2, torch.tensor(4.0), torch.tensor(0.6), 0.25, is_last=False)
        losses.add("0", 2, torch.tensor(8.0), torch.tensor(0.1), 0.75)
        losses.values()


@pytest.mark.parametrize("value", [math.nan, 1.5 * LARGEST_LOSS])
def test_a_micro_batch_stops_the_run_before_the_next(value):
    """On the CPU: its mean with the others might be a number below all bounds."""
    losses = Losses(7, CPU)
    losses.add("1", 12, torch.tensor(2.0), None, 1 / 16, is_last=False)
    with pytest.raises(TrainingStopped, match="part 1 became .* in epoch 7, step 12"):
        losses.add("1", 12, torch.tensor(value), None, 1 / 16, is_last=False)
    on_gpu = Losses(7, GPU)
    on_gpu.add("1", 12, torch.tensor(math.nan), None, 1 / 2, is_last=False)
    on_gpu.add("1", 12, torch.tensor(2.0), None, 1 / 2)
    with pytest.raises(TrainingStopped, match="part 1 became nan .* in epoch 7, step 12"):
        on_gpu.values()


def test_latest():
    on_cpu, on_gpu = Losses(0, CPU), Losses(0, GPU)
    for step in range(33):
        on_cpu.add("0", step, torch.tensor(float(step)))
        on_gpu.add("0", step, torch.tensor(float(step)))
    assert (on_cpu.latest, on_gpu.latest) == ({"0": 32.0}, {"0": 15.0})


def test_keeps_no_graph():
    losses = Losses(0, GPU)
    losses.add("0", 0, torch.ones(1, requires_grad=True).sum())
    ((_, kept),) = losses._waiting["0"]
    assert not kept.requires_grad
