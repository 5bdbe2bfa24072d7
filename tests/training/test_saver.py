"""Checkpoints are written beside the training. A gate at the disk shows what waits for it, and what does not."""

import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeflow import train
from pipeflow.config import Config
from pipeflow.errors import CheckpointError, Preempted
from pipeflow.flow import build_flow
from pipeflow.rundir.checkpoint import Checkpoints
from pipeflow.training.entries import Entries
from pipeflow.training.saver import Saver
from pipeflow.workers.alarm import Alarm
from pipeflow.workers.traffic import Traffic
from tests.run_records import manifest
from tests.small_runs import assert_same_tensors, errors_in, finish, learned, options, read_until, small_config

SCHEDULE = {"mode": "concurrent", "local_epochs": 2, "finetune_epochs": 1}


def writers() -> list[threading.Thread]:
    """Threads that write a checkpoint: one, and another one once somebody waits for it."""
    return [thread for thread in threading.enumerate() if thread.name == "pipeflow-checkpoint"]


def until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.002)


class Gate:
    """Nothing of a checkpoint is written before it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.priorities: list[int] = []
        """Of the threads that came to it."""
        self.seen: list = []
        self._make_folder = os.mkdir

    def mkdir(self, path, *arguments) -> None:
        """In place of the operating system's."""
        if str(path).endswith(".partial"):
            assert threading.current_thread() is not threading.main_thread(), "the training waits for the disk"
            self.priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            self.opened.wait()
        self._make_folder(path, *arguments)

    def open_when_waited_for(self, look: Callable[[], object]) -> None:
        """Opens as soon as somebody waits for the checkpoint; `seen` gets what `look` saw before."""

        def watch() -> None:
            until(lambda: len(writers()) > 1)
            self.seen.append(look())
            self.opened.set()

        threading.Thread(target=watch, daemon=True).start()


@pytest.fixture
def gate(monkeypatch):
    made = Gate()
    monkeypatch.setattr(os, "mkdir", made.mkdir)
    yield made
    made.opened.set()
    until(lambda: not writers())


def whole(run: Path) -> list[str]:
    """Checkpoints that are there."""
    return sorted(path.name for path in run.glob("checkpoints/*") if path.suffix != ".partial")


def flow_that_calls(hook: Callable[..., None], config: Config) -> torch.nn.Module:
    """The run's flow; `hook` is called in the middle of each forward."""
    torch.manual_seed(0)
    flow = build_flow(config, (3, 32, 32))
    modules = list(flow.modules())
    modules[len(modules) // 2].register_forward_hook(hook)
    return flow


def epochs_logged(run: Path) -> int:
    return (run / "metrics.jsonl").read_text().count('"event": "epoch"')


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(small_config(folder, schedule=SCHEDULE))
    return folder


def test_a_whole_epoch_is_trained_while_a_checkpoint_is_not_written_and_it_is_of_its_own_epoch(
    undisturbed, tmp_path, gate
):
    """The next checkpoint waits for it. Weights, history and log that came meanwhile are not in it."""
    run = tmp_path / "run"
    niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    gate.open_when_waited_for(lambda: [whole(run), epochs_logged(run)])
    summary = train(small_config(run, schedule=SCHEDULE))
    assert gate.seen == [[[], 2]]
    assert_same_tensors(undisturbed, run)
    content = json.loads((run / "checkpoints/epoch-000001/manifest.json").read_text())["content"]
    assert content["history"] == summary.to_json()["epochs"][:1]
    log = (run / "metrics.jsonl").read_bytes()[: content["log_position"]].decode().splitlines()
    assert [json.loads(line)["event"] for line in log] == ["start", "epoch", "checkpoint"]
    assert gate.priorities[0] == 19 and os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == niceness


def test_the_last_checkpoint_is_whole_before_the_run_says_that_it_is_done(tmp_path, gate):
    run = tmp_path / "run"
    gate.open_when_waited_for(lambda: [whole(run), (run / "summary.json").exists()])
    train(small_config(run, schedule={**SCHEDULE, "local_epochs": 0, "mode": "end_to_end"}))
    assert gate.seen == [[[], False]]
    assert whole(run) == ["epoch-000001"] and (run / "summary.json").exists()


@pytest.mark.parametrize(
    "reported, ended, left",
    [
        (lambda: os.kill(os.getpid(), signal.SIGTERM), Preempted, "epoch-000001"),
        (None, Preempted, "epoch-000000-step-000002"),
        (lambda: signal.default_int_handler(2, None), KeyboardInterrupt, "epoch-000001"),
    ],
    ids=["preempted behind an epoch", "preempted inside an epoch", "failed"],
)
def test_a_run_that_is_ended_waits_until_its_checkpoint_is_whole(tmp_path, gate, reported, ended, left):
    """The one that a preemption makes, and the one before where nothing was trained since."""
    run = tmp_path / "run"
    config = small_config(run, schedule=SCHEDULE)
    trained = itertools.count(1)

    def preempt_in_the_second_batch(*_: object) -> None:
        if reported is None and torch.is_grad_enabled() and next(trained) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    gate.open_when_waited_for(lambda: whole(run))
    with pytest.raises(ended) as error:
        flow = flow_that_calls(preempt_in_the_second_batch, config)
        train(config, flow=flow, report=lambda _: reported and reported())
    assert gate.seen == [[]] and whole(run) == [left]
    if ended is Preempted:
        assert re.search("nothing that was trained is lost, the last good checkpoint is .*epoch-", str(error.value))


def test_what_cannot_be_written_ends_the_run_at_its_next_batch(tmp_path, gate):
    """Not only where the next checkpoint would wait for it."""
    run = tmp_path / "run"
    config = small_config(run, schedule=SCHEDULE, data={"num_train": 192, "num_test": 40})
    batches = []

    def break_disk(*_: object) -> None:
        if not torch.is_grad_enabled() or not epochs_logged(run):
            return
        batches.append(len(batches))
        if len(batches) == 3:
            (run / "checkpoints").write_text("no folder")
            gate.opened.set()
            until(lambda: not writers())

    words = "after 1 epoch could not be written to .*Free some space .*there is no checkpoint yet"
    with pytest.raises(CheckpointError, match=words):
        train(config, flow=flow_that_calls(break_disk, config))
    assert len(batches) == 3


def test_the_next_copy_is_taken_when_the_file_of_the_one_before_is_written(tmp_path, gate):
    """They have one memory. What is not waited for is seen as wrong values in the first file."""
    saver = Saver(Checkpoints(tmp_path, keep=9), 0, Entries(None, 0, Traffic()), Alarm())

    def save_both() -> None:
        for epoch in (1, 2):
            saver.copy({"model/a.b": torch.full((1000,), float(epoch))})
            saver.save(epoch, 0, [0], manifest(epoch))
        saver.wait()

    saving = threading.Thread(target=save_both)
    gate.open_when_waited_for(lambda: whole(tmp_path))
    saving.start()
    saving.join()
    assert gate.seen == [[]]
    for epoch in (1, 2):
        (value,) = load_file(tmp_path / f"checkpoints/epoch-{epoch:06d}/worker-0.safetensors").values()
        assert torch.equal(value, torch.full((1000,), float(epoch)))


LONG = {"mode": "concurrent", "local_epochs": 8, "finetune_epochs": 1}


@pytest.mark.slow
def test_killed_while_a_worker_writes_the_run_goes_on_from_the_checkpoint_before(tmp_path, launch):
    """Worker 1's file is a pipe that nobody reads: its write never ends. One epoch more is trained, then all wait."""
    settings = {"schedule": LONG, "eval": {"every_epochs": 9}, "checkpoint": {"keep": 99}}
    config = small_config(tmp_path / "run", **settings)
    process = launch(2, *options(config))
    read_until(process, lambda line: line.startswith("epoch 0 ("))
    partial = tmp_path / "run/checkpoints/epoch-000006.partial"
    partial.mkdir(parents=True)
    os.mkfifo(partial / "worker-1.safetensors")
    read_until(process, lambda line: line.startswith("epoch 6 ("))
    until((partial / "worker-0.safetensors").exists)
    process.kill()
    finish(process)
    assert whole(tmp_path / "run")[-1] == "epoch-000005" and partial.exists()
    train(config)
    assert not partial.exists()
    train(small_config(tmp_path / "undisturbed", **settings))
    assert_same_tensors(tmp_path / "undisturbed", tmp_path / "run")
    assert learned(tmp_path / "undisturbed") == learned(tmp_path / "run")


def test_a_worker_that_cannot_write_ends_all_and_says_it_once(tmp_path, launch):
    config = small_config(tmp_path / "run", schedule={**LONG, "local_epochs": 400}, checkpoint={"keep": 9})
    process = launch(3, *options(config))
    read_until(process, lambda line: line.startswith("epoch 0 ("))
    (tmp_path / "run/checkpoints/epoch-000006.partial/worker-2.safetensors").mkdir(parents=True)
    output = finish(process)
    assert process.returncode != 0
    (said,) = errors_in(output)
    assert "after 6 epochs could not be written" in said and "Is a directory" in said and "epoch-000005" in said
    assert whole(tmp_path / "run")[-1] == "epoch-000005"
