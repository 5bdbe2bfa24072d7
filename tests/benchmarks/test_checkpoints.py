import pytest
import torch

from benchmarks.checkpoints.report import report
from benchmarks.checkpoints.run import measure
from tests.benchmarks.pretended import MACHINE

pytestmark = pytest.mark.slow


def test_a_small_flow_is_measured(tmp_path):
    measured = measure(torch.device("cpu"), 2, batch_size=4, num_steps=1, width=8, folder=tmp_path, quiet_steps=2)
    assert len(measured["rounds"]) == 2 and measured["bytes"] > 12 * measured["num_parameters"]
    for result in measured["rounds"]:
        assert len(result["quiet_steps_s"]) == 4
        assert all(result[key] > 0 for key in ("stall_s", "whole_s", "waited_for_s", "as_before_s"))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["epoch-000004"]


def test_table_and_goal():
    def turn(step: float, beside: list[float]) -> dict:
        seconds = {"stall_s": 0.04, "whole_s": 9.0, "waited_for_s": 1.5, "as_before_s": 2.5}
        return {"quiet_steps_s": [step] * 4, "steps_s": beside, **seconds}

    rounds = [turn(0.5, [0.5, 0.51, 0.9]), turn(0.5, [0.53] * 3), turn(0.4, [0.408] * 3), turn(0.5, [])]
    measured = {"machine": MACHINE, "command": "the command", "threads": 2, "num_parameters": 44_000_000, "bytes": 53e7}
    text = report({"cpu": {**measured, "batch_size": 4, "first_copy_s": 0.3, "rounds": rounds}})
    assert "at most 1.05 of one without: 1.020, met." in text
    assert "| 1 | 0.500 | 0.510 | 3 | 1.020 | 1.300 | 0.040 | 9.0 | 1.50 | 2.50 |" in text
    assert "| median | 0.500 | 0.510 | 3 | 1.020 | 1.087 | 0.040 | 9.0 | 1.50 | 2.50 |" in text
    assert "Not measured: `python -m benchmarks.checkpoints.run --device cuda`." in text
    slow = report({"cpu": {**measured, "batch_size": 4, "first_copy_s": 0.3, "rounds": [turn(0.5, [0.6])]}})
    assert "1.200, missed." in slow
