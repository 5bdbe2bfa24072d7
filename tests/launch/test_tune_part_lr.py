"""The search of a rate for each part: what one trial does, without a cluster."""

from pathlib import Path

import pytest
import ray.tune
import torch
from ray.exceptions import RayTaskError
from safetensors.torch import load_file

from pipeflow.errors import ConfigError, DataError
from pipeflow.ray.tune import _trial, in_words, search
from tests.small_runs import small_config

SEQUENTIAL = {"mode": "sequential", "local_epochs": 6, "finetune_epochs": 0}


@pytest.fixture
def told(monkeypatch) -> list[dict]:
    """What a trial reports to the search."""
    reports: list[dict] = []
    monkeypatch.setattr(ray.tune, "report", reports.append)
    return reports


def test_a_trial_is_one_turn_on_from_the_best_of_the_part_before(tmp_path, told):
    config = small_config(tmp_path, schedule=SEQUENTIAL, optim={"ema": 0.0}).to_dict()
    _trial({"rate": 1e-3, "part": 0, "before": [], "start": None, "config": config})
    assert len(told) == 2 and told[1]["exit_bpd"] < told[0]["exit_bpd"]
    start = told[-1]["dir"]
    assert start == str(tmp_path / "part0_lr0.001")
    folders = [tmp_path / "part1_lr0.001", tmp_path / "part1_lr0.002"]
    for rate in (1e-3, 2e-3):
        _trial({"rate": rate, "part": 1, "before": [1e-3], "start": start, "config": config})
    assert [report["dir"] for report in told[2:]] == [str(folder) for folder in folders for _ in range(2)]
    before, one, other = (
        load_file(max(folder.glob("checkpoints/epoch-*/*.safetensors"))) for folder in (Path(start), *folders)
    )
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert any(name.startswith("model/blocks.0.steps.1.") for name in changed)
    first = [name for name in one if name.startswith("model/blocks.0.steps.0.")]
    assert first and all(torch.equal(before[name], tensors[name]) for name in first for tensors in (one, other))


def test_a_rate_that_diverges_is_the_worst(tmp_path, told):
    config = small_config(tmp_path, schedule=SEQUENTIAL, optim={"warmup_steps": 0}).to_dict()
    _trial({"rate": 1e6, "part": 0, "before": [], "start": None, "config": config})
    assert told[-1]["exit_bpd"] == float("inf")


@pytest.mark.parametrize("schedule", [{"mode": "concurrent"}, {"mode": "sequential", "local_epochs": 4}])
def test_every_part_needs_a_turn_of_the_same_length(tmp_path, schedule):
    with pytest.raises(ConfigError, match=r"schedule\.local_epochs: a turn for each of 3 parts"):
        search(small_config(tmp_path, schedule=schedule))


def test_a_search_does_not_go_on_in_a_folder_with_trials(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "part0_lr0.001").mkdir()
    with pytest.raises(ConfigError, match=f"run.dir: {tmp_path} has a run or a search in it"):
        search(small_config(tmp_path, schedule=SEQUENTIAL))


def test_a_mistake_that_a_trial_meets_is_the_error_of_the_search():
    mistake, bug = DataError("data.path: there is no such file."), KeyError("a bug")
    for error in (
        RayTaskError("_trial", "Traceback", mistake),
        RayTaskError("_trial", "", mistake).as_instanceof_cause(),
    ):
        assert in_words(error) is mistake
    unforeseen = RayTaskError("_trial", "Traceback", bug)
    assert in_words(unforeseen) is unforeseen
