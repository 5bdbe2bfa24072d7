import pytest

from benchmarks.machine import describe_machine
from benchmarks.plan.check import EPOCH, check, check_table, median_of, small_plan
from pipeflow.plan.predict.machines import Machines
from pipeflow.plan.predict.predictor import Predictor

pytestmark = pytest.mark.slow

PROBES = {False: Machines(workers=2, flops=1e10, bandwidth=1e9), True: Machines(flops=2e10)}


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
    table = check_table(median_of([rows]), describe_machine(), 2, "command")
    assert "| 1f1b | 512 | 4 |" in table and f"| {rows[0]['error']:+.0%} |" in table


def test_errors_are_taken_within_a_round():
    """A machine that was slow in one round was slow for its probe and its measurement."""
    (row,) = check(measured(), PROBES)[:1]
    slow = {**row, "measured": 3 * row["measured"], "predicted": 3 * row["predicted"]}
    worse = {**row, "error": 1.0}
    (merged,) = median_of([[row], [slow], [worse]])
    assert merged["error"] == row["error"] and merged["errors"] == [row["error"], row["error"], 1.0]
    assert merged["measured"] == row["measured"]
    assert "(" in check_table([merged], describe_machine(), 2, "command").splitlines()[-1]


def test_a_byte_too_many_is_an_error():
    with pytest.raises(ValueError, match=r"pipeflow_concurrent, batch 512: .* bytes were predicted"):
        check(measured(sent_backward=1), PROBES)
