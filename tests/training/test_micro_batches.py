"""`memory.micro_batches`: the update of a whole batch, from slices of it that come one after the other."""

import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.modules.module import register_module_forward_pre_hook

from pipeflow import train
from pipeflow.config import Config
from pipeflow.errors import Preempted
from pipeflow.flow import Part, glow, split_flow
from pipeflow.plan.plan import make_plan
from pipeflow.plan.traffic import replica_bytes
from pipeflow.training.data_parallel import DataParallelTrainer
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.replicas import Replicas
from pipeflow.workers.traffic import Traffic
from tests.small_runs import assert_same_tensors, checkpoint_tensors, learned, small_config, train_in_turn

CLOSE = 1e-6
"""By how much the parameters of one update may differ, of their norm: gradients are summed in another order."""

ONE_UPDATE = {
    "data": {"num_train": 32, "num_test": 8},
    "eval": {"num_images": 8},
    "optim": {"warmup_steps": 0, "batch_size": 32, "ema": 0.9},
}
CONCURRENT = {"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 0}
WHOLE = {"mode": "end_to_end", "local_epochs": 1, "finetune_epochs": 0}

RUNS = {
    "unequal": (5, {}),
    "int8": (4, {"link": {"dtype": "int8"}}),
    "alternate": (4, {"schedule": {"mode": "alternate", "alternate_every": "2 steps"}}),
    "recompute": (3, {"memory": {"activations": "recompute"}}),
    "invert": (3, {"memory": {"activations": "invert"}}),
    "bfloat16": (32, {"link": {"dtype": "bfloat16", "depth": 1}}),
}
"""Micro-batches of the 32 images of a batch, and what else is changed, by name. 5 are 6, 6, 7, 6 and 7 images."""


def config_of(folder: Path, name: str, replicas: int = 1) -> Config:
    """The configuration of one of them, in a folder of its name."""
    num, changed = RUNS[name]
    memory, parts = changed.get("memory", {}), {"split": "across", "num": 3, "replicas": replicas}
    sections = {"schedule": {"mode": "concurrent"}, **changed}
    return small_config(folder / name, **{**sections, "memory": {**memory, "micro_batches": num}, "parts": parts})


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[int, int], Path]:
    """Folders of runs by number of workers and of replicas."""
    folders = {key: tmp_path_factory.mktemp("workers{}replicas{}".format(*key)) for key in [(1, 1), (3, 1)]}
    for name in RUNS:
        train(config_of(folders[1, 1], name))
    train_in_turn(3, [config_of(folders[3, 1], name) for name in RUNS])
    return folders


@pytest.mark.parametrize("name", RUNS)
def test_workers_do_not_change_the_run(runs, name):
    assert_same_tensors(runs[1, 1] / name, runs[3, 1] / name)
    assert learned(runs[1, 1] / name) == learned(runs[3, 1] / name)


@pytest.mark.parametrize("name", RUNS)
def test_the_plan_knows_the_bytes(runs, name):
    summary = json.loads((runs[3, 1] / name / "summary.json").read_text())
    assert make_plan(config_of(runs[3, 1], name)).forward_bytes == summary["bytes"]["forward"]


def test_int8_has_a_range_for_each(runs):
    """Two numbers of 4 bytes a channel, in 4 micro-batches of 3 batches of 2 epochs: 12 channels, and 24."""
    ranges = [2 * 3 * 4 * 8 * channels for channels in (12, 24)]
    full, dithered = (learned(runs[1, 1] / name)["forward"] for name in ("unequal", "int8"))
    assert [one - four // 4 for one, four in zip(dithered, full)] == ranges


@pytest.mark.parametrize("activations", ["keep", "recompute", "invert"])
@pytest.mark.parametrize("schedule", [CONCURRENT, WHOLE], ids=["parts", "whole"])
def test_one_update_is_that_of_the_whole_batch(tmp_path, schedule, activations):
    """ActNorm too, which is initialised on the whole batch: the first evaluation is the same to the last bit."""
    for num in (1, 5, 32):
        memory = {"activations": activations, "micro_batches": num}
        train(small_config(tmp_path / str(num), schedule=schedule, memory=memory, **ONE_UPDATE))
    whole, before = parameters(tmp_path / "1"), learned(tmp_path / "1")
    for num in (5, 32):
        assert (parameters(tmp_path / str(num)) - whole).norm() < CLOSE * whole.norm()
        after = learned(tmp_path / str(num))
        assert after["initial_bpd"] == before["initial_bpd"]
        assert after[0]["train_loss"] == pytest.approx(before[0]["train_loss"], abs=1e-6)


def parameters(run_dir: Path) -> torch.Tensor:
    """All parameters and buffers of a run's checkpoints."""
    tensors = sorted(checkpoint_tensors(run_dir).items())
    return torch.cat([value.double().flatten() for name, value in tensors if " model/" in name])


def test_a_part_runs_on_a_micro_batch_at_a_time(tmp_path):
    """With gradients: 3 parts on 3 batches."""
    sizes: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple) -> None:
        if isinstance(module, Part) and torch.is_grad_enabled():
            sizes.append(len(inputs[0]))

    with register_module_forward_pre_hook(note):
        train(small_config(tmp_path, schedule=CONCURRENT, memory={"micro_batches": 5}))
    assert sizes == [size for size in (6, 6, 7, 6, 7) for _ in range(3)] * 3


def test_a_run_that_was_stopped_inside_an_epoch_goes_on_to_the_same_end(runs, tmp_path):
    """Between two batches, never between two micro-batches."""
    told, asked = [], itertools.count()
    config = config_of(tmp_path, "unequal")
    with pytest.raises(Preempted, match="epoch-000001-step-000001"):
        train(config, report=told.append, stop=lambda: bool(told) and next(asked) == 1)
    train(config)
    whole, resumed = (checkpoint_tensors(folder / "unequal") for folder in (runs[1, 1], tmp_path))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Runs of 4 workers, two for each of two parts, and of as many for the whole flow."""
    folder = tmp_path_factory.mktemp("workers4")
    train_in_turn(4, [replicated(folder / str(num), num, 2) for num in (1, 5)])
    return folder


def replicated(folder: Path, num: int, replicas: int) -> Config:
    return small_config(
        folder,
        parts={"split": "across", "num": 2, "replicas": replicas},
        optim={"batch_size": 30, "ema": 0.9},
        finetune={"parallel": "ddp"},
        memory={"micro_batches": num},
    )


def test_gradients_travel_with_the_last_micro_batch_alone():
    """Sent with each they would come to the same sum, at as many times the bytes."""
    config = Config.from_dict({"optim": {"batch_size": 8}, "memory": {"micro_batches": 4}})
    (part,) = split_flow(glow((3, 8, 8), 1, 2, 4), [])
    trainer = DataParallelTrainer(part, torch.device("cpu"), config, 1e-3, 1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        trainer.join(Replicas((0,), 0, dist.group.WORLD), config, torch.device("cpu"), Traffic(), Alarm())
        sent: list[torch.Tensor] = []
        trainer._wrapped.register_comm_hook(sent, keep)
        for number in range(4):
            _, loss = trainer.forward(torch.rand(2, 3, 8, 8), is_last=number == 3)
            (trainer.update if number == 3 else trainer.accumulate)(loss / 4)
        (gradients,) = sent
    finally:
        dist.destroy_process_group()
    assert torch.equal(gradients.sort().values, torch.cat([p.grad.flatten() for p in part.parameters()]).sort().values)


def keep(sent: list[torch.Tensor], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A hook of torch's data parallelism that notes what there is to send."""
    sent.append(bucket.buffer().clone())
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


@pytest.mark.slow
def test_replicas_and_data_parallel_workers_average_gradients_once_a_batch(shared, tmp_path):
    """5 micro-batches of 3 images of each part's replica; after the gather of 1 or 2, of the 7 or 8 of each worker."""
    train(replicated(tmp_path / "alone", 1, 1))
    whole, several = parameters(tmp_path / "alone"), parameters(shared / "5")
    assert (several - whole).norm() < 1e-5 * whole.norm(), "three epochs of three updates"
    records = [json.loads((shared / name / "summary.json").read_text())["epochs"] for name in ("1", "5")]
    counts = [[record["bytes"]["gradients"] for record in epochs] for epochs in records]
    assert counts[0] == counts[1]
    plan = make_plan(replicated(shared / "5", 5, 2))
    assert counts[1] == [*(replica_bytes(phase, plan.parts, 2) for phase in plan.local_phases), plan.gradient_bytes]
