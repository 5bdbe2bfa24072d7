import pytest

from benchmarks.machine import describe_machine
from benchmarks.plan.run import EPOCH, check, check_table, small_plan
from pipeflow.plan.machines import Machines
from pipeflow.plan.predict import Predictor

PROBES = {
    False: Machines(workers=2, flops=1e10, bandwidth=1e9),
    True: Machines(flops=2e10),
}


def measured(**changes) -> dict:
    """As benchmarks/pipelines writes it."""
    plan = small_plan(512, 2)
    predictor = Predictor(plan, PROBES[False])
    ours = predictor.local("concurrent", predictor.cuts()[0]).bytes * EPOCH / (9 * 512)
    row = {"images_per_s": 100.0, "sent_forward": ours, "sent_backward": 0, "micro_batches": None, **changes}
    systems = {"pipeflow_concurrent": row, "local_sgd": row, "gpipe": {"not_possible": "no"}}
    systems["1f1b"] = {**row, "sent_backward": 1, "micro_batches": 4}
    return {"settings": {"workers": 2, "batch": [512]}, "results": {"512": systems}}


def test_systems_that_are_predicted_are_compared():
    rows = check(measured(), PROBES)
    assert [row["system"] for row in rows] == ["pipeflow_concurrent", "1f1b"]
    assert rows[0]["measured"] == EPOCH / 100 and round(rows[0]["bytes_predicted"]) == round(rows[0]["bytes_measured"])
    assert rows[0]["error"] == pytest.approx(rows[0]["predicted"] / rows[0]["measured"] - 1)
    assert "| 1f1b | 512 | 4 |" in check_table(rows, describe_machine(), 2, "command")


def test_a_byte_too_many_is_an_error():
    with pytest.raises(ValueError, match=r"pipeflow_concurrent, batch 512: .* bytes were predicted"):
        check(measured(sent_backward=1), PROBES)
