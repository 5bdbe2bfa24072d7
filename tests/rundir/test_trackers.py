"""What trackers get: TensorBoard always, and the one that `track.to` names."""

import json
import sqlite3
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.rundir.log import MetricsLog
from pipeflow.rundir.trackers import Guarded
from tests.run_records import epochs, manifest

PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def test_tensorboard_has_the_samples(tmp_path):
    log = MetricsLog(tmp_path)
    log.samples(PICTURE, 3)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (3, 4, 4)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_with_the_fix(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"track.to: {name} is not installed here: pip install {name}"):
        MetricsLog(tmp_path, config=Config.from_dict({"track": {"to": name}}))


def test_a_tracker_that_fails_does_not_end_the_training(capsys):
    class Failing:
        calls = 0

        def scalars(self, values, epoch):
            self.calls += 1
            raise OSError("no route to host")

    failing = Failing()
    guarded = Guarded("wandb", failing)
    for number in range(3):
        guarded.scalars({"loss": 1.0}, number)
    guarded.close()
    assert failing.calls == 1
    assert capsys.readouterr().err == "track.to: wandb failed, and gets nothing more of this run: no route to host\n"


def test_trackio_gets_every_epoch_and_samples_with_those_before_a_resume(tmp_path, monkeypatch):
    """Offline, in a database. A sitting that resumes gives the epochs before it again, in a run of its own."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))  # is read at its import, which is here
    pytest.importorskip("trackio")
    folder = tmp_path / "my_run"
    folder.mkdir()
    config = Config.from_dict({"track": {"to": "trackio", "project": "flows"}, "optim": {"lr": 0.5}})
    records = epochs([("concurrent", [0, 1, 2])] * 3)
    first = MetricsLog(folder, config=config)
    first.epoch(records[0])
    first.samples(PICTURE, 0)
    position = first.position()
    first.close()
    resumed = MetricsLog(folder, manifest(1, history=records[:1], log_position=position), config)
    resumed.epoch(records[1])
    resumed.close()
    with sqlite3.connect(tmp_path / "kept" / "flows.db") as base:
        rows = base.execute("select run_id, run_name, step, metrics from metrics order by id").fetchall()
        configs = [json.loads(config) for (config,) in base.execute("select config from configs")]
    sittings = list(dict.fromkeys(run for run, *_ in rows))
    found = [[(step, json.loads(values)) for run, _, step, values in rows if run == sitting] for sitting in sittings]
    bits = [[(step, values["bits_per_dim/test"]) for step, values in each if "samples" not in values] for each in found]
    assert bits == [[(0, 6.0)], [(0, 6.0), (1, 5.9)]]
    assert all(name.startswith("my_run") for _, name, *_ in rows)
    assert [step for step, values in found[0] if "samples" in values] == [0]
    assert [each["optim"]["lr"] for each in configs] == [0.5, 0.5]
    assert len(list((tmp_path / "kept" / "media").rglob("*.png"))) == 1
