"""What goes wrong in a run with three workers: said once, exit code not 0, nobody left hanging, nothing saved is lost."""

import os
import shutil
import signal
import subprocess
import threading

import pytest

from pipeflow import train
from pipeflow.errors import ConfigError, TrainingStopped
from tests.launching import Launch
from tests.small_runs import assert_same_tensors, errors_in, finish, learned, options, read_until, small_config

LONG = {"mode": "concurrent", "local_epochs": 400, "finetune_epochs": 400}
QUIET = {"heartbeat_timeout_s": 3}
"""Longer than a busy machine makes a process wait for a core."""


def launch_long(launch, folder, **sections) -> Launch:
    """Three workers, once the first checkpoint is whole: the third epoch's line comes after the second was begun."""
    config = small_config(folder, **{"schedule": LONG, "checkpoint": {"keep": 2}, **sections})
    process = launch(3, *options(config))
    process.seen = read_until(process, lambda line: line.startswith("epoch 2 ("))
    return process


def assert_ended(process: Launch) -> str:
    """Waits for the end of all workers, which come to it by themselves; the output from the beginning."""
    output = process.seen + finish(process)
    assert process.returncode == 1
    assert subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).stdout == b""
    return output


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_ends_the_others_and_is_named(launch, tmp_path, rank):
    process = launch_long(launch, tmp_path / "run")
    os.kill(process.workers[rank], signal.SIGKILL)
    output = assert_ended(process)
    codes = process.exit_codes()
    assert codes.pop(rank) == -signal.SIGKILL and all(codes)
    assert f"worker {rank} was lost" in output or f"worker {rank} ended with -9" in output, output
    assert len(errors_in(output)) <= 1
    assert list((tmp_path / "run/checkpoints").glob("epoch-??????"))


def assert_noticed(process: Launch, rank: int) -> None:
    """A worker that only stands still breaks no connection: its missing heartbeat tells."""
    os.kill(process.workers[rank], signal.SIGSTOP)
    line = read_until(process, lambda line: line.startswith("error: "))
    os.kill(process.workers[rank], signal.SIGKILL)
    assert f"worker {rank} was lost" in line and "heartbeat" in line
    process.seen += line
    assert len(errors_in(assert_ended(process))) == 1


def test_a_stopped_worker_is_noticed_by_its_missing_heartbeat(launch, tmp_path):
    assert_noticed(launch_long(launch, tmp_path / "run", run=QUIET), 1)


@pytest.mark.slow
def test_workers_that_wait_out_the_fine_tuning_notice_that_rank_0_is_gone(launch, tmp_path):
    schedule = {"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 400}
    process = launch_long(launch, tmp_path / "run", schedule=schedule, run=QUIET)
    waiting = process.workers[1:]
    before = [cpu_seconds(pid) for pid in waiting]
    read_until(process, lambda line: line.startswith("epoch 11 ("))
    assert all(cpu_seconds(pid) - used < 1.0 for pid, used in zip(waiting, before)), "a waiting worker must not spin"
    assert_noticed(process, 0)


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far."""
    times = open(f"/proc/{pid}/stat").read().rsplit(")")[-1].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def test_workers_end_when_their_launcher_is_killed(launch, tmp_path):
    process = launch_long(launch, tmp_path / "run")
    process.kill()
    output = finish(process)  # comes back only when the last of the workers has let go of the output
    assert process.returncode == -signal.SIGKILL
    (said,) = errors_in(output)
    assert f"the launcher (process {process.pid}) is gone" in said


@pytest.mark.slow
def test_workers_end_when_their_launcher_is_stopped(launch, tmp_path):
    """And with it the store, as by Ctrl-Z, which reaches torchrun alone."""
    process = launch_long(launch, tmp_path / "run", run=QUIET)
    process.send_signal(signal.SIGSTOP)
    seen = read_until(process, lambda line: line.startswith("error: "))
    assert f"the launcher (process {process.pid}) is stopped" in seen
    process.send_signal(signal.SIGCONT)
    process.seen = seen
    assert len(errors_in(assert_ended(process))) == 1


@pytest.mark.slow
def test_a_run_that_is_stopped_and_continued_goes_on(launch, tmp_path):
    """For longer than a heartbeat may take, as a suspended job."""
    process = launch_long(launch, tmp_path / "run", run=QUIET, link={"timeout_s": 3})
    os.killpg(process.pid, signal.SIGSTOP)
    threading.Event().wait(3.6)  # seconds that pass for everybody else
    os.killpg(process.pid, signal.SIGCONT)
    read_until(process, lambda line: line.startswith("epoch "))
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert "nothing that was trained is lost" in output and not errors_in(output), output


def test_a_nan_stops_all_workers_and_names_part_step_and_checkpoint(launch, tmp_path):
    process = launch(3, *options(small_config(tmp_path / "run", optim={"lr": 1e6, "warmup_steps": 0})))
    process.seen = ""
    (said,) = errors_in(assert_ended(process))
    assert "part " in said and "epoch 0, step " in said and "there is no checkpoint yet" in said and "optim.lr" in said


def test_a_failure_that_nobody_foresaw_has_one_traceback(launch, tmp_path):
    """Of a user's function, at worker 1: worker 0 waits for it, and must not call it lost, or advise to start again."""
    process = launch(2, f"--run.dir={tmp_path / 'run'}", entry="tests.training.programs.careless_report:main")
    output = finish(process)
    assert process.returncode == 1 and errors_in(output) == [], output
    assert output.count("Traceback") == 1 and "ZeroDivisionError" in output


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    """The folder of a run that ended after a good epoch."""
    folder = tmp_path_factory.mktemp("one_epoch") / "run"
    train(small_config(folder, schedule={"mode": "concurrent", "local_epochs": 1, "finetune_epochs": 0}))
    return folder


@pytest.mark.parametrize(
    "lr, told", [(1e6, r"epoch 1, step \d.*epoch-000001"), (3.0, "epoch-000001")], ids=["no number", "diverged"]
)
def test_a_run_that_diverged_goes_on_from_the_epoch_before_with_a_lower_rate(one_epoch, tmp_path, lr, told):
    """A loss that is no number stops it at the batch, one that only grows at the epoch's end: it is not saved."""
    folder = shutil.copytree(one_epoch, tmp_path / "run")
    schedule = {"mode": "concurrent", "local_epochs": 3, "finetune_epochs": 0}
    with pytest.raises(TrainingStopped, match=told):
        train(small_config(folder, schedule=schedule, optim={"lr": lr, "warmup_steps": 0}))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["epoch-000001"]
    assert train(small_config(folder, schedule=schedule)).num_epochs == 3


@pytest.mark.parametrize(
    "sections, advice",
    [
        ({"optim": {"part_lr": [1e30, 1e30, 1e30], "warmup_steps": 0}}, "lower optim.part_lr or with optim.clip_norm"),
        ({"schedule": {"mode": "end_to_end"}, "finetune": {"lr": 1e30}}, "lower finetune.lr or with optim.clip_norm"),
        ({"memory": {"activations": "invert", "max_error": 1e-30}}, "Resume with memory.activations recompute, or cut"),
    ],
    ids=["rates by part", "rate of end-to-end epochs", "no rate"],
)
def test_the_advice_is_of_what_went_wrong(tmp_path, sections, advice):
    with pytest.raises(TrainingStopped, match=advice) as stopped:
        train(small_config(tmp_path / "run", **sections))
    assert str(stopped.value).count("recompute") + str(stopped.value).count("lower") == 1


def test_a_nan_of_the_last_update_is_found_before_the_checkpoint(tmp_path):
    """Losses are checked before their update; here there is but one batch an epoch."""
    data = {"num_train": 32, "num_test": 8}
    with pytest.raises(TrainingStopped, match=r"loss of part 0 became .* in epoch 0, step 1: .*no checkpoint yet"):
        train(small_config(tmp_path / "run", data=data, optim={"lr": 1e30, "warmup_steps": 0, "ema": 0}))
    assert not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.root
def test_a_full_disk_at_a_checkpoint_loses_nothing(launch, tmp_path):
    """On a file system with room for some checkpoints only."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    config = small_config(folder / "run", schedule=LONG, checkpoint={"keep": 50}, optim={"ema": 0})
    entry = "tests.training.programs.on_a_small_disk:main"
    prepare = ("tests.namespaces:small_disk", str(folder), "1500k")
    output = finish(launch(None, *options(config), entry=entry, prepare=prepare))
    (said,) = errors_in(output)
    _, *checkpoints = output.splitlines()[-1].split()
    assert "No space left" in said and "Free some space" in said and checkpoints[-1] in said
    assert all(name.startswith("epoch-") and not name.endswith(".partial") for name in checkpoints)


@pytest.mark.slow
def test_torchrun_restarts_a_run_by_itself(torchrun, tmp_path):
    """With --max-restarts a killed worker costs the work since the last checkpoint, nothing else."""
    about = {"schedule": {"mode": "concurrent", "local_epochs": 8, "finetune_epochs": 1}, "data": {"num_train": 320}}
    process = torchrun(
        2, "--max-restarts=2", "-m", "pipeflow.launch", *options(small_config(tmp_path / "run", **about))
    )
    seen = read_until(process, lambda line: line.startswith("epoch 2 ("))
    os.kill(process_of(1, process), signal.SIGKILL)
    output = seen + finish(process)
    assert process.returncode == 0, output
    assert "resuming after" in output
    train(small_config(tmp_path / "undisturbed", **about))
    assert_same_tensors(tmp_path / "undisturbed", tmp_path / "run")
    assert learned(tmp_path / "undisturbed") == learned(tmp_path / "run")


def process_of(rank: int, launcher: subprocess.Popen) -> int:
    """The process of a worker, a child of torchrun."""
    for pid in subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split():
        if f"RANK={rank}" in open(f"/proc/{pid}/environ").read().split("\0"):
            return int(pid)
    raise AssertionError(f"no process has rank {rank}")


def test_after_an_error_nothing_is_left_that_could_end_the_caller(tmp_path):
    with pytest.raises(ConfigError, match="nccl"):
        train(small_config(tmp_path / "run", run={"device": "cpu"}, link={"backend": "nccl"}))
    for thread in threading.enumerate():
        if thread.name == "pipeflow-guard":
            thread.join(30)
            assert not thread.is_alive()
