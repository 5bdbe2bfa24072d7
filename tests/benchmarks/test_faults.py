"""One fault of each kind, at a moment that a printed line gives: the run ends as if nobody had disturbed it, to the bit."""

import os
import random
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults import kinds
from benchmarks.faults.kinds import Fault
from benchmarks.faults.trainings import HANG_SECONDS, Training, config_of, differences
from benchmarks.links.hosts import make_hosts
from pipeflow import train

pytestmark = pytest.mark.slow
MODE = "brief"
LINK_TIMEOUT = 2.0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run of one process that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config_of(MODE, folder, link_timeout=LINK_TIMEOUT))
    return folder


@pytest.fixture
def training(tmp_path):
    """`training(workers, **how)`; nothing of it may be left after the test."""
    made: list[Training] = []

    def make(workers: int, **how) -> Training:
        made.append(Training(tmp_path / "place" / "run", MODE, workers, link_timeout=LINK_TIMEOUT, **how))
        return made[-1]

    yield make
    left = [pid for each in made for pid in each.end()]
    assert not left, made[-1].said(-30)


def disturb(training: Training, kind: Callable, epoch: int, seed: int = 0) -> Fault:
    """The command, and a fault once it has said that this many epochs are done."""
    if not training.is_running:
        training.start()
    assert training.wait_for_line(rf"^epoch {epoch}/", 0, HANG_SECONDS), training.said(-30)
    fault = Fault("of the test", "while it trains")
    kind(training, random.Random(seed), fault)
    assert fault.kind, "there was nothing to disturb any more"
    assert fault.named and not fault.wrong, fault.wrong
    return fault


def assert_ends_as_if_nothing_had_happened(training: Training, undisturbed: Path) -> None:
    """With the same command once more, unless it goes on by itself."""
    if not training.is_running:
        training.start()
    assert training.wait_for_end(HANG_SECONDS) and training.sitting_ended_well(), training.said(-30)
    assert not differences(training.folder, undisturbed)


def test_killed_preempted_and_damaged(training, undisturbed):
    """Begun anew, it is restarted by its launcher once, then repeated twice."""
    run = training(3, restarts=1, begun_anew=True)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text("of an older run")
    assert disturb(run, kinds.kill_rank, 1, seed=1).resumed == "by itself"
    assert (run.folder.parent / "run.old-1/config.yaml").read_text() == "of an older run"
    assert disturb(run, kinds.preempt, 3).resumed == "by repeating"
    disturb(run, kinds.damage, 5)
    assert_ends_as_if_nothing_had_happened(run, undisturbed)
    assert [path.name for path in run.folder.parent.glob("run.old-*")] == ["run.old-1"]


def test_stopped_for_longer_than_the_time_out(training, undisturbed):
    """The first of three: the last one waits for a worker that waits itself, and leaves it to that one to name it."""
    run = training(3, restarts=1)
    fault = disturb(run, kinds.stop_long, 2, seed=1)
    assert (fault.target, fault.resumed) == ("rank 0", "by itself")
    assert_ends_as_if_nothing_had_happened(run, undisturbed)


def test_a_second_run_is_refused_and_the_launcher_of_the_first_killed(training, undisturbed):
    """The first stands still, as if it computed for long, until the second has given up."""
    run = training(1)
    run.start()
    assert run.wait_for_line(r"^epoch 2/", 0, HANG_SECONDS), run.said(-30)
    first = run.worker(0)
    os.kill(first, signal.SIGSTOP)
    said, _ = run.start_second().communicate(timeout=HANG_SECONDS)
    os.kill(first, signal.SIGCONT)
    assert re.search(rf"error: run.dir: .* is in use: process {first} on \S+ trains in it since", said), said
    disturb(run, kinds.kill_launcher, 3)
    assert_ends_as_if_nothing_had_happened(run, undisturbed)


def test_a_full_disk(training, undisturbed, tmp_path):
    """Mounting one that is small needs root: without it this fails, and says so."""
    kinds.mounted(tmp_path / "place")
    try:
        run = training(2)
        disturb(run, kinds.full_disk, 2)
        assert_ends_as_if_nothing_had_happened(run, undisturbed)
        run.end()
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "place")], check=True)


def test_a_link_that_is_cut_and_healed_and_then_for_good(training, undisturbed):
    """Without root there are no network namespaces: then this fails, and says that it needs it."""
    with make_hosts(2) as hosts:
        run = training(2, hosts=hosts)
        assert disturb(run, kinds.cut_and_heal, 1).resumed == "went on"
        disturb(run, kinds.cut_for_good, 3)
        assert_ends_as_if_nothing_had_happened(run, undisturbed)
