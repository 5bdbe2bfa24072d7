"""A recording of what workers do: off it records nothing, on it has every batch's spans."""

import json

import torch

from pipeflow.config import TimelineConfig
from pipeflow.workers.timeline import COMPUTE, LOAD, RECEIVE, SEND, WAIT, Timeline
from tests.small_runs import finish, options, small_config

CPU = torch.device("cpu")


def test_off_a_span_is_one_object_that_does_nothing():
    timeline = Timeline(TimelineConfig(), CPU)
    timeline.at(0, 10)
    assert timeline.span(COMPUTE, "a") is timeline.span(WAIT, "b")
    assert timeline.finish() == [] and not timeline.wanted(0)


def test_only_the_batches_asked_for():
    timeline = Timeline(TimelineConfig(steps=2, epoch=1, first_step=3), CPU)
    for epoch in range(3):
        for step in range(8):
            timeline.at(epoch, step)
            with timeline.span(COMPUTE, f"{epoch} {step}"):
                pass
    spans = timeline.finish()
    assert [span[:2] for span in spans] == [(COMPUTE, "1 3"), (COMPUTE, "1 4")]
    assert spans[0][2] + spans[0][3] <= spans[1][2] and timeline.finish() == []


def test_three_workers_leave_a_trace_and_a_picture(tmp_path, launch):
    config = small_config(tmp_path / "run", data={"num_train": 320}, timeline={"steps": 4, "epoch": 1, "first_step": 3})
    process = launch(3, *options(config))
    output = finish(process)
    assert process.returncode == 0, output
    events = json.loads((tmp_path / "run/timeline.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert all(span["dur"] >= 0 and span["ts"] >= 0 for span in spans)
    computed = {(span["pid"], span["name"]) for span in spans if span["cat"] == COMPUTE}
    for rank in range(3):
        for step in range(3, 7):
            assert {(rank, f"part {rank} forward {step}"), (rank, f"update part {rank}, {step}")} <= computed
    assert {(span["pid"], span["cat"]) for span in spans} >= {(0, SEND), (1, SEND), (1, RECEIVE), (2, WAIT), (0, LOAD)}
    for rank in range(3):  # one thing after another in a computing thread, waits inside nothing
        mine = sorted(
            (span["ts"], span["dur"]) for span in spans if span["pid"] == rank and span["cat"] in (COMPUTE, WAIT)
        )
        assert all(start + length <= after + 1 for (start, length), (after, _) in zip(mine, mine[1:]))
