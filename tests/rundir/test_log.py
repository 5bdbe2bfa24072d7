import dataclasses
import json
import os
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeflow.errors import CheckpointError
from pipeflow.rundir.log import MetricsLog
from pipeflow.rundir.records import Epoch, EpochBytes
from tests import run_records
from tests.run_records import manifest


def epoch(number: int, test_bpd: float | None = 5.0, phase: str = "concurrent") -> Epoch:
    return run_records.epoch(
        number,
        phase,
        train_loss={"0": -3.0, "1": 2.5} if phase == "concurrent" else {"0": 4.0},
        test_bpd=test_bpd,
        exit_bpd=None if test_bpd is None else (test_bpd + 0.5, test_bpd),
        bytes=EpochBytes(latents=((0, 1, 1_000_000),), eval=7, gradients=500_000, control=3),
    )


def started(folder) -> MetricsLog:
    """The log of a run that has just begun."""
    log = MetricsLog(folder)
    log.event("start", initial_bpd=7.1, parts=[])
    return log


def lines(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def scalars(run_dir) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {tag: [(s.step, s.value) for s in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_events_are_lines_in_order_and_on_disk_at_once(tmp_path, monkeypatch):
    """And only those of this run; `sync` has them on the disk."""
    synced = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(os.fstat(file).st_size))
    started(tmp_path).close()
    log = started(tmp_path)
    log.event("checkpoint", path="é")
    start = {"event": "start", "initial_bpd": 7.1, "parts": []}
    assert lines(tmp_path) == [start, {"event": "checkpoint", "path": "é"}]
    log.sync()
    assert [log.position()] == synced == [(tmp_path / "metrics.jsonl").stat().st_size]
    log.close()


def test_resume_does_again_what_came_after_the_checkpoint(tmp_path, monkeypatch):
    log = started(tmp_path)
    log.epoch(epoch(0, 6.0))
    position = log.position()
    log.epoch(epoch(1, 99.0))
    log.close()

    # TensorBoard orders files by the second they were begun in; no process resumes in the second in which another ended.
    later = time.time() + 10
    monkeypatch.setattr("time.time", lambda: later)
    log = MetricsLog(tmp_path, manifest(1, history=(epoch(0, 6.0),), log_position=position))
    assert log.position() == position
    log.epoch(epoch(1, 5.0))
    log.close()

    assert [event.get("test_bpd") for event in lines(tmp_path)] == [None, 6.0, 5.0]
    written = scalars(tmp_path)
    assert written["bits_per_dim/test"] == [(0, 6.0), (1, 5.0)]
    assert written["megabytes_sent"] == [(0, 1.5), (1, 3.0)]


@pytest.mark.parametrize("position", [5, 10_000, 10**20])
def test_a_log_that_is_not_the_checkpoints_is_refused_and_left_alone(tmp_path, position):
    started(tmp_path).close()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=f"byte {position}"):
        MetricsLog(tmp_path, manifest(1, log_position=position))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError):
        MetricsLog(tmp_path, manifest(1, log_position=position))


def test_tensorboard_has_every_scalar_of_an_epoch(tmp_path):
    log = MetricsLog(tmp_path)
    log.epoch(dataclasses.replace(epoch(0), rate={"0": 0.25}, gradient_norm={"1": 8.0}, idle=(0.5,)))
    log.epoch(epoch(1, test_bpd=None))
    log.epoch(dataclasses.replace(epoch(2, phase="finetune"), exit_bpd=None))
    log.close()
    assert scalars(tmp_path) == {
        "bits_per_dim/test": [(0, 5.0), (2, 5.0)],
        "bits_per_dim/exit_of_part_0": [(0, 5.5)],
        "bits_per_dim/exit_of_part_1": [(0, 5.0)],
        "train_loss/part_0": [(0, -3.0), (1, -3.0)],
        "train_loss/part_1": [(0, 2.5), (1, 2.5)],
        "train_loss/whole_flow": [(2, 4.0)],
        "learning_rate/part_0": [(0, 0.25)],
        "gradient_norm/part_1": [(0, 8.0)],
        "idle/worker_0": [(0, 0.5)],
        "megabytes_per_second/0_to_1": [(0, 0.5), (1, 0.5), (2, 0.5)],
        "seconds": [(0, 2.0), (1, 2.0), (2, 2.0)],
        "multiply_adds": [(0, 1e9), (1, 1e9), (2, 1e9)],
        "images_per_second": [(0, 50.0), (1, 50.0), (2, 50.0)],
        "megabytes_sent": [(0, 1.5), (1, 3.0), (2, 4.5)],
    }
