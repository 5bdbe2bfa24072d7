import math
from statistics import fmean

import pytest
import torch

from pipeflow.config import Config
from pipeflow.errors import ConfigError
from pipeflow.flow import build_flow
from pipeflow.plan import make_plan
from pipeflow.plan.predict.compute_probe import ComputeProbe, combine
from pipeflow.plan.predict.link_probe import link_fields
from pipeflow.plan.predict.machines import read_machines, write_machines
from pipeflow.plan.predict.memory import Activations
from pipeflow.plan.predict.predictor import Predictor
from pipeflow.plan.predict.probe import probe
from tests.training.labelled_runs import config_of


def test_equal_dictionaries_are_combined_number_by_number():
    ones, threes = {"a": {"b": [1.0, 2.0]}, "c": 1.0}, {"a": {"b": [3.0, 6.0]}, "c": 3.0}
    assert combine([ones, threes], fmean) == {"a": {"b": [2.0, 4.0]}, "c": 2.0}


def test_what_cannot_be_told_from_noise_is_a_bound():
    """A message of 1 kB, one of 4 MB, and an all-reduce of 4 hops."""
    slow = {"small": (1e-4, 4e-5), "large": (1e-3, 8e-5), "micro_batch_seconds": 1e-3}
    found = link_fields(**slow, hops=4, reduced_bits=1e7, reduce_seconds=5e-3)
    assert found["faster_than_measured"] == []
    assert found["bandwidth"] == pytest.approx(8 * 4e6 / 9e-4, rel=1e-3)
    assert found["reduce_bandwidth"] == pytest.approx(1e7 / 4.6e-3)
    quick = {"small": (1e-4, 4e-5), "large": (1.02e-4, 4e-5), "micro_batch_seconds": 0.0}
    found = link_fields(**quick, hops=4, reduced_bits=1e7, reduce_seconds=4e-4)
    assert found["faster_than_measured"] == ["bandwidth", "byte_seconds", "reduce_bandwidth", "pass_seconds"]
    assert found["bandwidth"] == pytest.approx(8 * 4e6 / 1.02e-4, rel=1e-3), "of the whole message"
    assert (found["reduce_bandwidth"], found["byte_seconds"], found["pass_seconds"]) == (1e7 / 4e-4, 0.0, 0.0)


def test_what_two_processes_measure_is_what_a_prediction_takes(tmp_path):
    """One round of a flow of two steps: how fast it is does not matter here."""
    config = {
        "data": {"num_train": 64}, "model": {"num_blocks": 2, "num_steps": 1, "width": 4},
        "parts": {"split": "blocks", "num": 2}, "optim": {"batch_size": 2},
    }  # fmt: skip
    plan = make_plan(Config.from_dict(config))
    machines = probe(plan.config, plan.flow.shape, 2, seconds=0.0)
    assert machines.workers == 2 and machines.step_seconds.batch_size == (2,)
    assert list(machines.step_seconds.train) == list(machines.step_seconds.forward) == plan.flow.names
    write_machines(machines, tmp_path / "machines.yaml")
    assert read_machines(tmp_path / "machines.yaml") == machines
    predictor = Predictor(plan, machines)
    assert all(0 < each.seconds < math.inf for each in predictor.all())
    wider = make_plan(Config.from_dict({**config, "model": {**config["model"], "width": 8}}))
    with pytest.raises(ConfigError, match=r"step_seconds.multiply_adds: the times are of a flow .*--probe"):
        Predictor(wider, machines).all()


def test_a_device_that_is_not_there_is_no_processes_affair(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda, but torch finds no GPU here"):
        probe(Config.from_dict({"run": {"device": "cuda"}}), (3, 8, 8), 2)


def test_flows_that_take_labels_are_measured_and_planned(tmp_path):
    config = config_of(tmp_path, "plain")
    plan = make_plan(config)
    probed = ComputeProbe(build_flow(config, (3, 8, 8)), config, torch.device("cpu")).measure([2], 0)
    assert probed["train"].keys() == {*plan.flow.names} and probed["whole"][0] > 0
    kept = [Activations(plan.flow).of(part).at(8) for part in plan.parts]
    assert len(kept) == 3 and min(kept) > 0
