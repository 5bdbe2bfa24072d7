"""End-to-end epochs as a pipeline, disturbed: a worker that is lost or preempted, and a loss that is no number."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeflow.config import Config
from pipeflow.errors import PREEMPTED_EXIT_CODE
from tests.small_runs import assert_same_tensors, errors_in, finish, learned, options, read_until, train_in_turn
from tests.training.pipeline_runs import config_of

FOREVER = {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": 400}


def test_a_nan_stops_all_workers(launch, tmp_path):
    schedule = {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": 2}
    config = config_of(tmp_path, "plain", schedule=schedule, optim={"lr": 1e6, "warmup_steps": 0, "clip_norm": 0})
    process = launch(3, *options(config))
    (said,) = errors_in(finish(process))
    assert process.returncode == 1
    assert "the training loss of part " in said and "epoch 0, step " in said and "optim.lr" in said


def long_config(folder: Path, **sections: dict) -> Config:
    """Epochs of 20 batches, all end to end: what happens at any time most likely happens inside torch's schedule."""
    about = {"schedule": {"mode": "end_to_end", "local_epochs": 0, "finetune_epochs": 2}, "data": {"num_train": 640}}
    return config_of(folder, "plain", **{**about, **sections})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The folder of a long run by three workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train_in_turn(3, [long_config(folder)])
    return folder / "plain"


@pytest.mark.slow
@pytest.mark.parametrize("workers, parallel", [(2, "pipeline"), (1, "single")])
def test_workers_that_are_preempted_stop_at_one_batch(undisturbed, launch, tmp_path, workers, parallel):
    """And go on inside the epoch, as a pipeline to the last bit, as one device up to rounding; with the epoch's losses."""
    process = launch(3, *options(long_config(tmp_path)))
    seen = read_until(process, lambda line: line.startswith("epoch 0 ("))
    process.send_signal(signal.SIGTERM)
    output = seen + finish(process)
    assert "preempted (SIGTERM at worker" in output and "nothing that was trained is lost" in output, output
    assert process.exit_codes() == [PREEMPTED_EXIT_CODE] * 3 and not errors_in(output)
    train_in_turn(workers, [long_config(tmp_path, finetune={"parallel": parallel})])
    for path in tmp_path.glob("plain/checkpoints/*-step-*"):
        shutil.rmtree(path)
    if parallel == "pipeline":
        assert_same_tensors(tmp_path / "plain", undisturbed)
    ours, theirs = learned(tmp_path / "plain")[1], learned(undisturbed)[1]
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=0 if parallel == "pipeline" else 1e-3)


@pytest.mark.parametrize(
    "rank, signal_sent, told",
    [(0, signal.SIGSTOP, "not heard its heartbeat"), pytest.param(1, signal.SIGKILL, "", marks=pytest.mark.slow)],
)
def test_a_worker_that_is_lost_is_named(launch, tmp_path, rank, signal_sent, told):
    config = long_config(tmp_path, schedule=FOREVER, run={"heartbeat_timeout_s": 3})
    process = launch(3, *options(config))
    seen = read_until(process, lambda line: line.startswith("epoch 0 ("))
    os.kill(process.workers[rank], signal_sent)
    seen += read_until(process, lambda line: line.startswith("error: ") or " ended with -9" in line)
    if signal_sent == signal.SIGSTOP:
        os.kill(process.workers[rank], signal.SIGKILL)
    output = seen + finish(process)
    codes = process.exit_codes()
    assert codes.pop(rank) == -signal.SIGKILL and codes == [1, 1]
    (said,) = errors_in(output)
    assert f"worker {rank} was lost" in said and told in said


@pytest.mark.slow
def test_a_worker_that_is_lost_among_replicas_is_named(launch, tmp_path):
    """Worker 4 waits for the gradients of worker 5, and others for it; all hear of it."""
    shared = {"split": "across", "num": 3, "replicas": 2}
    process = launch(6, *options(long_config(tmp_path, schedule=FOREVER, parts=shared, run={"heartbeat_timeout_s": 3})))
    read_until(process, lambda line: line.startswith("epoch 0 ("))
    os.kill(process.workers[5], signal.SIGSTOP)
    said = read_until(process, lambda line: line.startswith("error: "))
    os.kill(process.workers[5], signal.SIGKILL)
    assert "worker 5 was lost" in said and not errors_in(finish(process))
    assert process.exit_codes() == [1] * 5 + [-signal.SIGKILL]
