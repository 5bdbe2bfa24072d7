"""Ctrl-C and its relatives, as a user sends them: what is said, what is saved, and the exit code."""

import itertools
import os
import signal
import socket

import pytest

from pipeflow import train
from pipeflow.errors import PREEMPTED_EXIT_CODE, Preempted
from tests.launching import Launch
from tests.small_runs import errors_in, finish, options, read_until, small_config

LONG = {"mode": "concurrent", "local_epochs": 400, "finetune_epochs": 0}


def is_first_epoch(line: str) -> bool:
    return line.startswith("epoch 0 (")


@pytest.fixture
def long_run(launch, tmp_path):
    """Starts a run that is long enough to be interrupted; comes back after its first epoch."""

    def start(num_workers: int | None, **settings) -> Launch:
        process = launch(num_workers, *options(small_config(tmp_path / "run", schedule=LONG)), **settings)
        read_until(process, is_first_epoch)
        return process

    return start


@pytest.mark.parametrize(
    "number, word", [(signal.SIGTERM, "preempted"), (signal.SIGINT, "interrupted"), (signal.SIGHUP, "preempted")]
)
def test_one_process_saves_itself_and_says_how_to_go_on(long_run, tmp_path, number, word):
    process = long_run(None)
    os.kill(process.workers[0], number)
    output = finish(process)
    (said,) = [line for line in output.splitlines() if line.startswith(word)]
    assert f"({number.name} at worker 0): nothing that was trained is lost" in said and "Resume with: " in said
    assert process.returncode == PREEMPTED_EXIT_CODE and "Traceback" not in output
    assert list(tmp_path.glob("run/checkpoints/*")) and not list(tmp_path.glob("run/checkpoints/*.partial"))


def test_whoever_calls_train_can_stop_it_inside_an_epoch(tmp_path):
    told, asked = [], itertools.count()
    saved = "interrupted .* nothing that was trained is lost, the last good checkpoint is .*/epoch-000001-step-000001"
    with pytest.raises(Preempted, match=saved):
        train(small_config(tmp_path / "run"), report=told.append, stop=lambda: bool(told) and next(asked) == 1)


def test_stopped_before_anything_is_trained_it_leaves_nothing(tmp_path):
    with pytest.raises(Preempted, match=r"interrupted \(stop\(\) at worker 0\): nothing was trained yet"):
        train(small_config(tmp_path / "run"), stop=lambda: True)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_while_the_run_is_opened_leaves_nothing(launch, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import threading\ndef data(options):\n    print('asked', flush=True)\n    threading.Event().wait()\n"
    )
    config = small_config(tmp_path / "deep/run", data={"name": "mine:data"})
    process = launch(None, *options(config), cwd=tmp_path)
    read_until(process, lambda line: line == "asked\n")
    assert (tmp_path / "deep/run/run.lock").exists()
    os.kill(process.workers[0], signal.SIGINT)
    (said,) = finish(process).splitlines()
    assert said.startswith("interrupted: ended at once") and not (tmp_path / "deep").exists()


def test_an_error_of_the_user_s_function_names_it_once_and_leaves_nothing(launch, tmp_path):
    (tmp_path / "mine.py").write_text("def layers(config, shape):\n    return 1 / 0\n")
    config = small_config(tmp_path / "run", model={"name": "mine:layers"}, parts={"split": "balanced", "num": 2})
    process = launch(2, *options(config), cwd=tmp_path)
    output = finish(process)
    assert output.count("Traceback") == 1 and "model.name: mine:layers raised this error." in output
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_ends_at_once(launch, tmp_path):
    """While the disk does not take the checkpoint that the first one waits for."""
    config = small_config(tmp_path / "run", schedule=LONG)
    process = launch(None, *options(config), entry="tests.training.programs.hanging_disk:main")
    read_until(process, is_first_epoch)
    os.kill(process.workers[0], signal.SIGINT)
    read_until(process, lambda line: line == "asked to leave\n")
    os.kill(process.workers[0], signal.SIGINT)
    (said,) = finish(process).splitlines()
    assert said.startswith("interrupted: ended at once, without saving. Resume with: ")
    assert process.returncode == 128 + signal.SIGINT


def test_ctrl_c_while_the_others_have_not_come(launch, tmp_path):
    """Which torch waits for inside its own code, deaf to signals."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    process = launch(None, *options(small_config(tmp_path / "run")), **environment)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert process.poll() is None, finish(process)
    os.kill(process.workers[0], signal.SIGINT)
    (said,) = finish(process).splitlines()
    assert said.startswith("interrupted: ended at once") and process.returncode == 128 + signal.SIGINT


@pytest.mark.slow
def test_ctrl_c_under_torchrun(torchrun, tmp_path):
    """The agent alone is in the terminal's group. No worker prints a traceback; torchrun's own cannot be helped."""
    process = torchrun(2, "-m", "pipeflow.launch", *options(small_config(tmp_path / "run", schedule=LONG)))
    read_until(process, is_first_epoch)
    os.killpg(process.pid, signal.SIGINT)
    output = finish(process)
    (said,) = [line for line in output.splitlines() if line.startswith("interrupted")]
    assert "nothing that was trained is lost" in said and "torch.distributed.run --standalone" in said
    assert output.count("Traceback") == 1 and "SignalException" in output and not errors_in(output), output


def test_an_error_leaves_the_process_fit_for_another_run(launch, tmp_path):
    process = launch(2, str(tmp_path), entry="tests.training.programs.fails_then_trains:main")
    output = finish(process)
    assert process.returncode == 0, output
    for rank in range(2):
        assert f"worker {rank}: first failed: the training loss of part" in output
        assert f"worker {rank}: second trained" in output and f"worker {rank}: nothing is left" in output
