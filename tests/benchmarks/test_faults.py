"""Faults at a moment that a printed line gives: the run ends as if nobody had disturbed it, to the bit."""

import random
from collections.abc import Callable

import pytest

from benchmarks.faults import kinds
from benchmarks.faults.fault import Fault
from benchmarks.faults.trainings import HANG_SECONDS, Training, config_of, differences
from benchmarks.links.hosts import make_hosts
from pipeflow import train

pytestmark = pytest.mark.slow
MODE = "brief"
TIMEOUTS = {"link_timeout": 2.0, "heartbeat_timeout": 6.0}


def disturb(training: Training, kind: Callable[[Training, random.Random, Fault], None], epoch: int) -> Fault:
    """A fault once the command has said that this many epochs are done."""
    assert training.wait_for_line(rf"^epoch {epoch - 1} \(", 0, HANG_SECONDS), training.output(-30)
    fault = Fault("of the test", "while it trains")
    kind(training, random.Random(0), fault)
    assert fault.kind, "there was nothing to disturb any more"
    assert fault.named and not fault.wrong, fault.wrong
    return fault


@pytest.mark.root
def test_a_link_that_is_cut_and_healed_and_then_for_good(tmp_path):
    """The run goes on, and is resumed when the command is repeated."""
    train(config_of(MODE, tmp_path / "undisturbed" / "run", **TIMEOUTS))
    with make_hosts(2) as hosts:
        training = Training(tmp_path / "place" / "run", MODE, 2, **TIMEOUTS, hosts=hosts)
        try:
            training.start()
            assert disturb(training, kinds.cut_and_heal, 1).resumed == "went on"
            disturb(training, kinds.cut_for_good, 3)
            if not training.is_running:
                training.start()
            assert training.wait_for_end(HANG_SECONDS) and training.sitting_ended_well(), training.output(-30)
            assert not differences(training.folder, tmp_path / "undisturbed" / "run")
        finally:
            left = training.end()
    assert not left, training.output(-30)
