"""Faults that machines suffer, over three: the run ends as if nobody had disturbed it, to the bit.

Killed processes and cut links are for the benchmark, and for tests on one machine.
"""

import random
from pathlib import Path

import pytest

from benchmarks.faults.fault import Fault
from benchmarks.faults.node_faults import KINDS, TrainingOnNodes
from benchmarks.faults.trainings import HANG_SECONDS, config_of, differences
from benchmarks.links.hosts import make_hosts
from pipeflow import train

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(400)]
MODE = "concurrent"
TIMEOUTS = {"link_timeout": 2.0, "heartbeat_timeout": 6.0}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config_of(MODE, folder, **TIMEOUTS))
    return folder


@pytest.mark.parametrize("kind", ["a machine lost, and back", "the endpoint's machine lost"])
def test_it_goes_on_by_itself(tmp_path, undisturbed, kind):
    with make_hosts(3) as hosts:
        nodes = "2:3" if kind == "a machine lost, and back" else "3"
        training = TrainingOnNodes(tmp_path / "run", MODE, 3, **TIMEOUTS, hosts=hosts, nodes=nodes, begun_anew=True)
        try:
            training.start()
            assert training.wait_for_line(r"^epoch 3 \(", 0, HANG_SECONDS), training.output(-30)
            fault = Fault(kind, "while it trains")
            KINDS[kind](training, random.Random(0), fault)
            assert fault.kind, "there was nothing to disturb any more"
            assert fault.named and not fault.wrong, fault.wrong
            ended_with_it = kind == "the endpoint's machine lost"
            assert fault.resumed == ("by repeating" if ended_with_it else "by itself")
            if ended_with_it:
                training.start()
            assert training.wait_for_end(HANG_SECONDS) and training.sitting_ended_well(), training.output(-30)
            assert not differences(training.folder, undisturbed)
        finally:
            left = training.end()
    assert not left, training.output(-30)
