"""What goes wrong in a run with three workers: said once, exit code not 0, nobody left hanging, nothing saved is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeflow import train
from pipeflow.errors import ConfigError, TrainingStopped
from tests.launching import Launch
from tests.small_runs import errors_in, finish, options, read_until, small_config

LONG = {"mode": "concurrent", "local_epochs": 400, "finetune_epochs": 400}


def launch_long(launch, folder, **sections) -> Launch:
    config = small_config(folder, **{"schedule": LONG, "checkpoint": {"keep": 2}, **sections})
    process = launch(3, *options(config))
    process.seen = read_until(process, lambda line: line.startswith("epoch 3/"))  # so the first checkpoint is whole
    return process


def assert_ended(process: Launch, within: float) -> str:
    """Waits for the launcher's end; its output from the beginning. All workers are gone with it."""
    begin = time.monotonic()
    output = process.seen + finish(process)
    assert time.monotonic() - begin < within
    assert process.returncode != 0
    assert subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).stdout == b""
    return output


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_ends_the_others_and_is_named(launch, tmp_path, rank):
    process = launch_long(launch, tmp_path / "run")
    os.kill(process.workers[rank], signal.SIGKILL)
    output = assert_ended(process, within=30)
    assert f"worker {rank} was lost" in output or f"worker {rank} ended with -9" in output, output
    assert len(errors_in(output)) <= 1
    assert list((tmp_path / "run/checkpoints").glob("epoch-??????"))


def test_a_stopped_worker_is_noticed_by_its_missing_heartbeat(launch, tmp_path):
    """A worker that only stands still breaks no connection: the heartbeat tells."""
    process = launch_long(launch, tmp_path / "run")
    pid = process.workers[1]
    os.kill(pid, signal.SIGSTOP)
    line = read_until(process, lambda line: line.startswith("error: "))
    os.kill(pid, signal.SIGKILL)
    assert "worker 1 was lost" in line and "heartbeat" in line
    process.seen += line
    assert len(errors_in(assert_ended(process, within=30))) == 1


def test_workers_that_wait_out_the_fine_tuning_notice_that_rank_0_is_gone(launch, tmp_path):
    schedule = {"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 400}
    process = launch_long(launch, tmp_path / "run", schedule=schedule)
    pid, *waiting = process.workers
    used = [open(f"/proc/{each}/stat").read().split()[13:15] for each in waiting]
    read_until(process, lambda line: line.startswith("epoch 12/"))
    for each, before in zip(waiting, used):
        now = open(f"/proc/{each}/stat").read().split()[13:15]
        spent = (sum(map(int, now)) - sum(map(int, before))) / os.sysconf("SC_CLK_TCK")
        assert spent < 1.0, "a waiting worker must not spin"
    os.kill(pid, signal.SIGSTOP)
    line = read_until(process, lambda line: line.startswith("error: "))
    os.kill(pid, signal.SIGKILL)
    assert "worker 0 was lost" in line and "heartbeat" in line
    process.seen += line
    assert_ended(process, within=30)


def test_a_nan_stops_all_workers_and_names_part_step_and_checkpoint(launch, tmp_path):
    config = small_config(tmp_path / "run", optim={"lr": 1e6, "warmup_steps": 0})
    process = launch(3, *options(config))
    process.seen = ""
    (said,) = errors_in(assert_ended(process, within=60))
    assert "part " in said and "epoch 0, step " in said and "there is no checkpoint yet" in said and "optim.lr" in said


def test_a_nan_stops_one_process_with_the_last_good_checkpoint(tmp_path):
    good = {"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 0}
    train(small_config(tmp_path / "run", schedule=good, optim={"ema": 0}))
    worse = {"mode": "concurrent", "local_epochs": 3, "finetune_epochs": 0}
    with pytest.raises(TrainingStopped, match=r"epoch 1, step \d.*epoch-000001"):
        train(small_config(tmp_path / "run", schedule=worse, optim={"lr": 1e6, "warmup_steps": 0, "ema": 0}))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["epoch-000001"]


def test_a_run_stopped_by_the_coordinator_goes_on_from_the_epoch_before(tmp_path):
    """What diverged is not among the checkpoints: with a lower rate the same command goes on."""
    schedule = {"mode": "concurrent", "local_epochs": 3, "finetune_epochs": 0}
    train(small_config(tmp_path / "run", schedule={**schedule, "local_epochs": 1}))
    wild = {"lr": 3.0, "warmup_steps": 0}
    with pytest.raises(TrainingStopped, match=r"epoch-000001"):
        train(small_config(tmp_path / "run", schedule=schedule, optim=wild))
    assert train(small_config(tmp_path / "run", schedule=schedule))["num_epochs"] == 3


def test_a_nan_of_the_last_update_is_found_before_the_checkpoint(tmp_path):
    """Losses are looked at before their update; here there is but one batch an epoch."""
    data = {"num_train": 32, "num_test": 8}
    with pytest.raises(TrainingStopped, match=r"loss of part 0 became .* in epoch 0, step 1: .*no checkpoint yet"):
        train(small_config(tmp_path / "run", data=data, optim={"lr": 1e30, "warmup_steps": 0, "ema": 0}))
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_full_disk_at_a_checkpoint_loses_nothing(tmp_path):
    """On a tmpfs with room for some checkpoints only, in a mount namespace of its own."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    keep = {"keep": 50}
    config = small_config(folder / "run", schedule=LONG, checkpoint=keep, optim={"ema": 0})
    command = [sys.executable, "-m", "pipeflow.launch", *options(config)]
    script = 'mount -t tmpfs -o size=1500k tmpfs "$0" && { "$@"; code=$?; ls "$0/run/checkpoints"; exit $code; }'
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, str(folder), *command], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1, result.stderr
    (said,) = errors_in(result.stderr)
    listed = result.stdout.split("\n")
    checkpoints = [line for line in listed if line.startswith("epoch-")]
    assert "No space left" in said and "Free some space" in said and checkpoints[-1] in said
    assert checkpoints and not any(line.endswith(".partial") for line in checkpoints)


def process_of(rank: int, launcher: subprocess.Popen) -> int:
    """The process of a worker, a child of torchrun."""
    for pid in subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split():
        environment = open(f"/proc/{pid}/environ").read().split("\0")
        if f"RANK={rank}" in environment:
            return int(pid)
    raise AssertionError(f"no process has rank {rank}")


def test_torchrun_restarts_a_run_by_itself(torchrun, tmp_path):
    """With --max-restarts a killed worker costs the work since the last checkpoint, nothing else."""
    schedule = {"mode": "concurrent", "local_epochs": 8, "finetune_epochs": 1}
    config = small_config(tmp_path / "run", schedule=schedule, data={"num_train": 320, "num_test": 40})
    process = torchrun(2, "--max-restarts=2", "-m", "pipeflow.launch", *options(config))
    seen = read_until(process, lambda line: line.startswith("epoch 3/"))
    os.kill(process_of(1, process), signal.SIGKILL)
    output = seen + finish(process)
    assert process.returncode == 0, output
    assert "resuming after" in output
    disturbed = json.loads((tmp_path / "run/summary.json").read_text())
    undisturbed = train(small_config(tmp_path / "other", schedule=schedule, data={"num_train": 320, "num_test": 40}))
    assert disturbed["test_bpd"] == undisturbed["test_bpd"]


def test_after_an_error_nothing_is_left_that_could_end_the_caller(tmp_path):
    with pytest.raises(ConfigError, match="nccl"):
        train(small_config(tmp_path / "run", run={"device": "cpu"}, link={"backend": "nccl"}))
    for thread in threading.enumerate():
        if thread.name == "pipeflow-guard":
            thread.join(30)
            assert not thread.is_alive()
