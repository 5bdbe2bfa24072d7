"""Faults at moments that a printed line gives: the run ends as if nobody had disturbed it, to the bit."""

import random
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
TIMEOUTS = {"link_timeout": 2.0, "heartbeat_timeout": 6.0}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run of one process that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config_of(MODE, folder, **TIMEOUTS))
    return folder


@pytest.fixture
def training(tmp_path):
    """`training(workers, **how)`; nothing of it may be left after the test."""
    made: list[Training] = []

    def make(workers: int, **how) -> Training:
        made.append(Training(tmp_path / "place" / "run", MODE, workers, **TIMEOUTS, **how))
        return made[-1]

    yield make
    left = [pid for each in made for pid in each.end()]
    assert not left, made[-1].output(-30)


def disturb(training: Training, kind: Callable, epoch: int, seed: int = 0) -> Fault:
    """The command, and a fault once it has said that this many epochs are done."""
    if not training.is_running:
        training.start()
    assert training.wait_for_line(rf"^epoch {epoch}/", 0, HANG_SECONDS), training.output(-30)
    fault = Fault("of the test", "while it trains")
    kind(training, random.Random(seed), fault)
    assert fault.kind, "there was nothing to disturb any more"
    assert fault.named and not fault.wrong, fault.wrong
    return fault


def assert_ends_as_if_nothing_had_happened(training: Training, undisturbed: Path) -> None:
    """Repeats the command, unless the training goes on by itself, and compares the runs."""
    if not training.is_running:
        training.start()
    assert training.wait_for_end(HANG_SECONDS) and training.sitting_ended_well(), training.output(-30)
    assert not differences(training.folder, undisturbed)


def test_a_damaged_checkpoint(training, undisturbed):
    """The run is begun anew beside an older one, killed, and resumed from the checkpoint before the damaged one."""
    run = training(1, begun_anew=True)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text("of an older run")
    assert disturb(run, kinds.damage, 3).resumed == "by repeating"
    assert_ends_as_if_nothing_had_happened(run, undisturbed)
    assert (run.folder.parent / "run.old-1/config.yaml").read_text() == "of an older run"


@pytest.mark.root
def test_a_link_that_is_cut_and_healed_and_then_for_good(training, undisturbed):
    with make_hosts(2) as hosts:
        run = training(2, hosts=hosts)
        assert disturb(run, kinds.cut_and_heal, 1).resumed == "went on"
        disturb(run, kinds.cut_for_good, 3)
        assert_ends_as_if_nothing_had_happened(run, undisturbed)
