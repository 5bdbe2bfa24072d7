"""After SIGTERM the run saves itself where it is and ends; resumed, it ends as if nothing had happened."""

import itertools
import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from pipeflow import train
from pipeflow.config import Config
from pipeflow.errors import PREEMPTED_EXIT_CODE, Preempted
from pipeflow.flow import Flow, build_flow
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.training.saver import Saver
from pipeflow.training.worker import Worker
from tests.launching import Launch
from tests.small_runs import assert_same_tensors, finish, learned, options, read_until, small_config, train_in_turn

SHAPE = (3, 32, 32)
MODES = {
    "concurrent": {"mode": "concurrent", "local_epochs": 2, "finetune_epochs": 1},
    "alternate": {"mode": "alternate", "local_epochs": 3, "finetune_epochs": 1, "alternate_every": "2 steps"},
    "sequential": {"mode": "sequential", "local_epochs": 3, "finetune_epochs": 1},
    "end to end": {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": 2},
}


def config_of(mode: str, folder) -> Config:
    return small_config(folder, schedule=MODES[mode], checkpoint={"keep": 99})


def flow_of(config: Config, terminate_at: int | None = None) -> Flow:
    """The small flow; its layer in the middle sends SIGTERM to this process when it is run that often."""
    torch.manual_seed(0)
    flow = build_flow(config, SHAPE)
    runs = itertools.count(1)

    def count(*_: object) -> None:
        if next(runs) == terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)

    modules = list(flow.modules())
    modules[len(modules) // 2].register_forward_hook(count)
    return flow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(mode)`: the folder of a run of that mode which nobody disturbed."""
    folders = {}

    def run(mode: str):
        if mode not in folders:
            folders[mode] = tmp_path_factory.mktemp("undisturbed") / "run"
            config = config_of(mode, folders[mode])
            train(config, flow=flow_of(config))
        return folders[mode]

    return run


@pytest.mark.parametrize("mode, every", [*((mode, 7) for mode in MODES), ("concurrent", 9)])
def test_preempted_again_and_again_it_is_the_same_run(undisturbed, tmp_path, mode, every):
    """In training, in evaluations, between: every sitting is ended after some forwards, until one comes to the end."""
    config = config_of(mode, tmp_path / "run")
    summary, saved = None, set()
    for _ in range(99):
        try:
            summary = train(config, flow=flow_of(config, every))
            break
        except Preempted as notice:
            assert "nothing that was trained is lost" in str(notice)
            saved |= {path.name for path in (tmp_path / "run").glob("checkpoints/*")}
    assert summary.num_epochs == config.num_epochs
    assert any("-step-" in name for name in saved) and not any(name.endswith(".partial") for name in saved)
    put_aside_what_was_saved_inside_epochs(tmp_path / "run")
    assert_same_tensors(undisturbed(mode), tmp_path / "run")
    assert learned(undisturbed(mode)) == learned(tmp_path / "run")


def test_preempted_in_the_last_evaluation_the_checkpoint_before_it_is_waited_for(tmp_path, monkeypatch):
    """On a disk so slow that the last checkpoint is written only once somebody waits for it."""
    config = small_config(tmp_path / "run", schedule={"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 0})
    waited_for = threading.Event()
    write, wait, evaluate = Checkpoints.write, Saver.wait, Worker.evaluate

    def slow_write(*arguments):
        waited_for.wait(60)
        return (yield from write(*arguments))

    def seen_wait(saver):
        if saver._job is not None:
            waited_for.set()
        wait(saver)

    def evaluate_with_notice(worker, epoch, num_images):
        if epoch == config.num_epochs:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(worker, epoch, num_images)

    monkeypatch.setattr(Checkpoints, "write", slow_write)
    monkeypatch.setattr(Saver, "wait", seen_wait)
    monkeypatch.setattr(Worker, "evaluate", evaluate_with_notice)
    with pytest.raises(Preempted, match="the last good checkpoint is .*epoch-000001"):
        train(config)


def preempt(launch, num_workers: int, config: Config) -> Launch:
    """A launch that gets SIGTERM after its first epoch, which it passes on to all workers, and has ended."""
    process = launch(num_workers, *options(config))
    seen = read_until(process, lambda line: line.startswith("epoch 0 ("))
    process.send_signal(signal.SIGTERM)
    output = seen + finish(process)
    assert "preempted (SIGTERM at worker" in output and "nothing that was trained is lost" in output, output
    assert "error:" not in output
    assert process.exit_codes() == [PREEMPTED_EXIT_CODE] * num_workers
    return process


def put_aside_what_was_saved_inside_epochs(run: Path) -> None:
    """What remains is to be the undisturbed run's."""
    for path in run.glob("checkpoints/*-step-*"):
        path.rename(run.parent / path.name)


def test_workers_stop_at_one_batch_and_the_exit_code_says_it(tmp_path, launch):
    """Two of them resume what three have saved."""
    about = {"data": {"num_train": 320}, "schedule": {"mode": "concurrent", "local_epochs": 3, "finetune_epochs": 1}}
    config = small_config(tmp_path / "run", **about)
    preempt(launch, 3, config)
    assert "resuming after 1 epoch" in train_in_turn(2, [config])
    train(small_config(tmp_path / "undisturbed", **about))
    put_aside_what_was_saved_inside_epochs(tmp_path / "run")
    assert_same_tensors(tmp_path / "undisturbed", tmp_path / "run")
    assert learned(tmp_path / "undisturbed") == learned(tmp_path / "run")


@pytest.mark.slow
def test_data_parallel_workers_stop_at_one_batch(tmp_path, launch):
    schedule = {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": 3}
    about = {"data": {"num_train": 320}, "schedule": schedule, "finetune": {"parallel": "ddp"}}
    configs = [small_config(tmp_path / name, **about) for name in ("run", "undisturbed")]
    preempt(launch, 2, configs[0])
    train_in_turn(2, configs)
    assert learned(tmp_path / "undisturbed") == learned(tmp_path / "run")


def test_cut_otherwise_inside_an_epoch_all_that_moved_is_counted(tmp_path):
    """The epoch's first batches crossed two links, the others one."""
    schedule = {"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 0}
    about = {"data": {"num_train": 160}, "schedule": schedule, "eval": {"num_images": 1}}
    config = small_config(tmp_path / "run", **about)
    with pytest.raises(Preempted):
        train(config, flow=flow_of(config, terminate_at=5))
    (name,) = (path.name for path in (tmp_path / "run").glob("checkpoints/*-step-*"))
    done = int(name[-6:])
    assert 0 < done < 5
    config = small_config(tmp_path / "run", **about, parts={"split": "across", "num": 2})
    summary = train(config, flow=flow_of(config))
    first, second = (32 * math.prod(shape) * 4 for shape in ((12, 16, 16), (24, 8, 8)))  # bytes of a batch of latents
    assert summary.bytes.forward == (5 * first, done * second)
    (record,) = summary.epochs
    assert [count for _, _, count in record.bytes.latents] == [5 * first, done * second]
    assert [(change.epoch, change.step) for change in summary.changes] == [(0, done)]
